// A vector register of this instruction set, through the compiler's vector extensions. Included once per
// instruction set, inside its namespace: KSDA_BYTES is the register's width.

template <class T>
struct VecOf {
  typedef T type __attribute__((vector_size(KSDA_BYTES)));
};
template <class T>
using Vec = typename VecOf<T>::type;

template <class T>
constexpr int kLanes = KSDA_BYTES / int(sizeof(T));

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

template <class V>
using Acc = std::conditional_t<std::is_same_v<V, double>, double, float>;

static inline float from_bits(uint32_t bits) { return __builtin_bit_cast(float, bits); }
static inline uint32_t to_bits(float x) { return __builtin_bit_cast(uint32_t, x); }

static inline float widen(float x) { return x; }
static inline double widen(double x) { return x; }
static inline float widen(BFloat16 x) { return from_bits(uint32_t(x.bits) << 16); }
static inline float widen(Half x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000u) << 16, rest = uint32_t(x.bits & 0x7fffu);
  // rest << 13 read as a float is the value times 2^-112, also for subnormals
  float y = from_bits(rest << 13) * from_bits(239u << 23);
  if (rest >= 0x7c00u) y = from_bits(0x7f800000u | (rest & 0x3ffu) << 13);
  return from_bits(to_bits(y) | sign);
}

static inline void narrow(float x, float* y) { *y = x; }
static inline void narrow(double x, double* y) { *y = x; }
static inline void narrow(float x, BFloat16* y) {
  const uint32_t bits = to_bits(x);
  // to nearest, ties to even; NaN stays NaN
  y->bits = x != x ? 0x7fc0 : uint16_t((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
static inline void narrow(float x, Half* y) {
  const uint32_t bits = to_bits(x), sign = bits >> 16 & 0x8000u, rest = bits & 0x7fffffffu;
  if (rest > 0x7f800000u) {
    y->bits = uint16_t(sign | 0x7e00u);
  } else if (rest >= 0x477ff000u) {  // rounds to infinity
    y->bits = uint16_t(sign | 0x7c00u);
  } else if (rest < 0x38800000u) {  // subnormal: the addition rounds at the right bit
    y->bits = uint16_t(sign | (to_bits(from_bits(rest) + 0.5f) - 0x3f000000u));
  } else {
    y->bits = uint16_t(sign | (rest - 0x38000000u + 0xfffu + (rest >> 13 & 1u)) >> 13);
  }
}

template <class A>
static inline Vec<A> load(const A* p) {
  Vec<A> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
static inline Vec<float> load(const BFloat16* p) {
  typedef uint16_t Narrow __attribute__((vector_size(KSDA_BYTES / 2)));
  typedef uint32_t Wide __attribute__((vector_size(KSDA_BYTES)));
  Narrow bits;
  __builtin_memcpy(&bits, p, sizeof bits);
  const Wide wide = __builtin_convertvector(bits, Wide) << 16;
  return (Vec<float>)wide;
}
static inline Vec<float> load(const Half* p) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__F16C__)
  return (Vec<float>)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
  Vec<float> v;
  for (int i = 0; i < kLanes<float>; i++) v[i] = widen(p[i]);
  return v;
#endif
}

template <class A>
static inline void store(A* p, Vec<A> v) {
  __builtin_memcpy(p, &v, sizeof v);
}

template <class A>
static inline Vec<A> splat(A x) {
  return x - Vec<A>{};  // x + 0 would be an instruction: it turns -0 into 0
}

template <class V>
using Lanes = std::make_integer_sequence<int, sizeof(V) / sizeof(V{}[0])>;

template <int kFirst, class V, int... I>
static inline V every_second(V a, V b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (kFirst + 2 * I)...);
}
template <int kFirst, class V, int... I>
static inline V zipped(V a, V b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (kFirst + I / 2 + I % 2 * int(sizeof...(I)))...);
}

// evens, odds: lanes 0, 2, 4 .. and 1, 3, 5 .. of a followed by b; zip_low, zip_high undo them.
template <class V>
static inline V evens(V a, V b) { return every_second<0>(a, b, Lanes<V>{}); }
template <class V>
static inline V odds(V a, V b) { return every_second<1>(a, b, Lanes<V>{}); }
template <class V>
static inline V zip_low(V a, V b) { return zipped<0>(a, b, Lanes<V>{}); }
template <class V>
static inline V zip_high(V a, V b) { return zipped<Lanes<V>::size() / 2>(a, b, Lanes<V>{}); }

// The vectors of a row, NV of them. Two vectors of bfloat16 are read at once: its lanes 0, 2, 4 .. are the first, 1, 3, 5 ..
// the second; `paired` brings others into this order, `unpaired` back.
template <class V, int NV>
constexpr bool kPairs = std::is_same_v<V, BFloat16> && NV % 2 == 0;

template <class V, int NV>
static inline void load_row(const V* row, Vec<Acc<V>>* v) {
  constexpr int lanes = kLanes<Acc<V>>;
  if constexpr (kPairs<V, NV>) {
    typedef uint32_t Words __attribute__((vector_size(KSDA_BYTES)));
#pragma GCC unroll 8
    for (int j = 0; j < NV; j += 2) {
      Words words;
      __builtin_memcpy(&words, row + j * lanes, sizeof words);
      v[j] = (Vec<float>)(words << 16);
      v[j + 1] = (Vec<float>)(words & 0xffff0000u);
    }
  } else {
#pragma GCC unroll 8
    for (int j = 0; j < NV; j++) v[j] = load(row + j * lanes);
  }
}

template <class V, int NV>
static inline void paired(Vec<Acc<V>>* v) {
  if constexpr (kPairs<V, NV>)
    for (int j = 0; j < NV; j += 2) {
      const Vec<float> low = evens(v[j], v[j + 1]), high = odds(v[j], v[j + 1]);
      v[j] = low, v[j + 1] = high;
    }
}

template <class V, int NV>
static inline void unpaired(Vec<Acc<V>>* v) {
  if constexpr (kPairs<V, NV>)
    for (int j = 0; j < NV; j += 2) {
      const Vec<float> low = zip_low(v[j], v[j + 1]), high = zip_high(v[j], v[j + 1]);
      v[j] = low, v[j + 1] = high;
    }
}

// Lane i of the result is the sum over all lanes of v[i]. Adding neighbours of pairs of vectors, again and again,
// turns n vectors of n lanes into the vector of their sums.
template <class A>
static inline Vec<A> sums(const A* vectors) {
  Vec<A> v[kLanes<A>];
  for (int i = 0; i < kLanes<A>; i++) v[i] = load(vectors + i * kLanes<A>);
#pragma GCC unroll 8
  for (int count = kLanes<A>; count > 1; count /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < count / 2; i++) v[i] = evens(v[2 * i], v[2 * i + 1]) + odds(v[2 * i], v[2 * i + 1]);
  }
  return v[0];
}

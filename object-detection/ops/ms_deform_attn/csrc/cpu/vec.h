// A vector register of this instruction set, through the compiler's vector extensions. Included once per
// instruction set, inside its namespace: KSDA_BYTES is the register's width.

template <class T>
struct VecOf;
template <>
struct VecOf<float> {
  typedef float type __attribute__((vector_size(KSDA_BYTES)));
};
template <>
struct VecOf<double> {
  typedef double type __attribute__((vector_size(KSDA_BYTES)));
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
struct AccumulatorOf {
  typedef float type;
};
template <>
struct AccumulatorOf<double> {
  typedef double type;
};
template <class V>
using Acc = typename AccumulatorOf<V>::type;

static inline float from_bits(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, 4);
  return x;
}
static inline uint32_t to_bits(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  return bits;
}

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

static inline Vec<float> load(const float* p) {
  Vec<float> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
static inline Vec<double> load(const double* p) {
  Vec<double> v;
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

// evens, odds: lanes 0, 2, 4 .. and 1, 3, 5 .. of a followed by b; zip_low, zip_high undo them.
#if KSDA_BYTES == 64
static inline Vec<float> evens(Vec<float> a, Vec<float> b) {
  return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
}
static inline Vec<float> odds(Vec<float> a, Vec<float> b) {
  return __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}
static inline Vec<double> evens(Vec<double> a, Vec<double> b) {
  return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14);
}
static inline Vec<double> odds(Vec<double> a, Vec<double> b) {
  return __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
}
static inline Vec<float> zip_low(Vec<float> a, Vec<float> b) {
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
static inline Vec<float> zip_high(Vec<float> a, Vec<float> b) {
  return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}
static inline Vec<double> zip_low(Vec<double> a, Vec<double> b) {
  return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
}
static inline Vec<double> zip_high(Vec<double> a, Vec<double> b) {
  return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
}
#elif KSDA_BYTES == 32
static inline Vec<float> evens(Vec<float> a, Vec<float> b) {
  return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14);
}
static inline Vec<float> odds(Vec<float> a, Vec<float> b) {
  return __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
}
static inline Vec<double> evens(Vec<double> a, Vec<double> b) {
  return __builtin_shufflevector(a, b, 0, 2, 4, 6);
}
static inline Vec<double> odds(Vec<double> a, Vec<double> b) {
  return __builtin_shufflevector(a, b, 1, 3, 5, 7);
}
static inline Vec<float> zip_low(Vec<float> a, Vec<float> b) {
  return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
}
static inline Vec<float> zip_high(Vec<float> a, Vec<float> b) {
  return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
}
static inline Vec<double> zip_low(Vec<double> a, Vec<double> b) {
  return __builtin_shufflevector(a, b, 0, 4, 1, 5);
}
static inline Vec<double> zip_high(Vec<double> a, Vec<double> b) {
  return __builtin_shufflevector(a, b, 2, 6, 3, 7);
}
#else
static inline Vec<float> evens(Vec<float> a, Vec<float> b) {
  return __builtin_shufflevector(a, b, 0, 2, 4, 6);
}
static inline Vec<float> odds(Vec<float> a, Vec<float> b) {
  return __builtin_shufflevector(a, b, 1, 3, 5, 7);
}
static inline Vec<double> evens(Vec<double> a, Vec<double> b) {
  return __builtin_shufflevector(a, b, 0, 2);
}
static inline Vec<double> odds(Vec<double> a, Vec<double> b) {
  return __builtin_shufflevector(a, b, 1, 3);
}
static inline Vec<float> zip_low(Vec<float> a, Vec<float> b) {
  return __builtin_shufflevector(a, b, 0, 4, 1, 5);
}
static inline Vec<float> zip_high(Vec<float> a, Vec<float> b) {
  return __builtin_shufflevector(a, b, 2, 6, 3, 7);
}
static inline Vec<double> zip_low(Vec<double> a, Vec<double> b) {
  return __builtin_shufflevector(a, b, 0, 2);
}
static inline Vec<double> zip_high(Vec<double> a, Vec<double> b) {
  return __builtin_shufflevector(a, b, 1, 3);
}
#endif

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

// Forward and backward for one instruction set, in the compiler's vector extensions. Compiled once per instruction set,
// with its flags and KSDA_ISA, its name, and KSDA_BYTES, the width of its registers; run only where the processor has it.
#include <type_traits>
#include <utility>

#include "kernels.h"
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace ksda {
namespace KSDA_ISA {

#include "vec.h"
#include "samples.h"

// Registers that may hold sums: enough independent chains hide the latency of a fused multiply-add.
constexpr int kSumRegisters = KSDA_BYTES == 64 ? 16 : 8;

// Stands for a row that is not in the same array: rows are at most this many elements long.
constexpr uint32_t kElsewhere = 0xffffffffu;

template <bool kChecked, class V>
static inline uint32_t outside_offset(const Rows& rows) {
  return kChecked ? kElsewhere : uint32_t((const V*)rows.outside - (const V*)rows.base);
}

constexpr int64_t kAhead = 8;  // queries between asking for coordinates and reading them

template <class V>
static inline void prefetch(const V* row, int64_t channels) {
  for (int64_t d = 0; d < channels; d += 64 / sizeof(V)) __builtin_prefetch(row + d);
}

static inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }

// Queries staged together: as many as fill whole vectors of 16 samples, and so that one's places are known while the
// rows of the one before are read.
static inline int64_t queries_per_block(int64_t samples) {
  int64_t queries = 1;
  while (queries < 16 && ((queries * samples) % 16 != 0 || queries * samples < 128)) queries *= 2;
  return queries;
}

// The row at `offset`; with kChecked, `outside` rows live elsewhere.
template <bool kChecked, class T>
static inline T* row_at(const Rows& rows, uint32_t offset) {
  T* row = (T*)rows.base + offset;
  if (kChecked) row = offset == kElsewhere ? (T*)rows.outside : row;
  return row;
}

// out[0 .. NV * lanes) = sum over k < count and corners of corner * row
template <class V, int NV, bool kChecked>
static inline void sum_rows(const Block<Acc<V>>& b, const Rows& value, int64_t from, int64_t count, int64_t channel,
                            Acc<V>* out) {
  typedef Acc<V> A;
  constexpr int kChains = 4 * NV <= kSumRegisters ? 4 : (2 * NV <= kSumRegisters ? 2 : 1);
  constexpr int lanes = kLanes<A>;
  Vec<A> sum[kChains][NV];
  for (int c = 0; c < kChains; c++)
    for (int j = 0; j < NV; j++) sum[c][j] = Vec<A>{};
  for (int64_t k = from; k < from + count; k++) {
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
      const V* row = row_at<kChecked, const V>(value, b.offset[c][k]) + channel;
      const Vec<A> factor = splat<A>(b.corner[c][k]);
      Vec<A> read[NV];
      load_row<V, NV>(row, read);
#pragma GCC unroll 8
      for (int j = 0; j < NV; j++) sum[c % kChains][j] += factor * read[j];
    }
  }
  for (int c = 1; c < kChains; c++)
    for (int j = 0; j < NV; j++) sum[0][j] += sum[c][j];
  unpaired<V, NV>(sum[0]);
  for (int j = 0; j < NV; j++) store(out + j * lanes, sum[0][j]);
}

template <class V, int NV, bool kChecked>
static void forward_blocked(const Forward& f, const Rows& value, int64_t n, int64_t m, int64_t begin, int64_t end) {
  typedef Acc<V> A;
  const Shape& s = f.shape;
  const int64_t samples = s.L * s.P, width = padded(s.D), group = queries_per_block(samples);
  constexpr int lanes = kLanes<A>;
  Block<A> block(group * samples);
  for (int64_t i = 0; i < group * samples; i++) block.set_level(i, s, i % samples / s.P, s.starts[i % samples / s.P]);
  A* sum = (A*)__builtin_malloc(width * sizeof(A));
  const bool in_place = s.D == width && sizeof(V) == sizeof(A);
  for (int64_t first = begin; first < end; first += group) {
    const int64_t queries = min_of(group, end - first);
    for (int64_t i = 0; i < queries && first + i + kAhead < end; i++)
      block.prefetch(samples, f.locations, f.weights, f.coordinate_kind,
                     ((n * s.Q + first + i + kAhead) * s.M + m) * samples);
    for (int64_t i = 0; i < queries; i++)
      block.read(i * samples, samples, f.locations, f.weights, f.coordinate_kind,
                 ((n * s.Q + first + i) * s.M + m) * samples);
    block.template locate<true>(queries * samples, uint32_t(value.stride), outside_offset<kChecked, V>(value));
    for (int64_t i = 0; i < queries; i++) {
      V* out = (V*)f.out + ((n * s.Q + first + i) * s.M + m) * s.D;
      A* to = in_place ? (A*)out : sum;
      if (kChecked && i + 1 < queries)  // rows of one head lie far apart; packed ones are near enough
        for (int64_t k = (i + 1) * samples; k < (i + 2) * samples; k++)
          for (int c = 0; c < 4; c++) prefetch(row_at<kChecked, const V>(value, block.offset[c][k]), s.D);
      for (int64_t d = 0; d < width; d += NV * lanes)
        sum_rows<V, NV, kChecked>(block, value, i * samples, samples, d, to + d);
      if (!in_place)
        for (int64_t d = 0; d < s.D; d++) narrow(sum[d], out + d);
    }
  }
  __builtin_free(sum);
}

// Products of gradients with the corners' rows, summed over lanes: 4 for each sample, in order. Vectors are collected
// until there are enough to sum them together.
template <class A>
struct Dots {
  static constexpr int lanes = kLanes<A>, full = lanes > 4 ? lanes : 4;
  A* sum;  // of the next sample
  bool first;
  int count = 0;
  alignas(64) A slots[full * lanes] = {};

  Dots(A* sum, bool first) : sum(sum), first(first) {}
  A* slot() { return slots + count * lanes; }
  void taken() {  // the four slots of a sample are filled
    count += 4;
    if (count == full) flush();
  }
  void flush() {
    for (int i = 0; i < full; i += lanes) {
      const Vec<A> fresh = sums(slots + i * lanes);
      store(sum + i, first ? fresh : load(sum + i) + fresh);
    }
    sum += full;
    count = 0;
  }
};

// Of the samples of one query: dots += row * grad; grad_row += weight * corner * grad
template <class V, int NV, bool kChecked>
static inline void spread(const Block<Acc<V>>& b, const Rows& value, const Rows& grad_value, int64_t from,
                          int64_t count, int64_t channel, const Vec<Acc<V>>* g, Dots<Acc<V>>& dots) {
  typedef Acc<V> A;
  constexpr int lanes = kLanes<A>;
  const Rows from_rows = value, to_rows = grad_value;  // copies: stores below cannot change them
  const uint32_t* const offset[4] = {b.offset[0], b.offset[1], b.offset[2], b.offset[3]};
  const A* const corner[4] = {b.corner[0], b.corner[1], b.corner[2], b.corner[3]};
  const A* const weights = b.weight;
  Vec<A> other[NV];  // g in the order of a row
  for (int j = 0; j < NV; j++) other[j] = g[j];
  paired<V, NV>(other);
  for (int64_t k = from; k < from + count; k++) {
    const A weight = weights[k];
    A* slot = dots.slot();
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
      const uint32_t at = offset[c][k];
      const V* row = row_at<kChecked, const V>(from_rows, at) + channel;
      A* target = row_at<kChecked, A>(to_rows, at) + channel;
      const Vec<A> factor = splat<A>(weight * corner[c][k]);
      Vec<A> read[NV], dot = {};
      load_row<V, NV>(row, read);
#pragma GCC unroll 8
      for (int j = 0; j < NV; j++) {
        dot += other[j] * read[j];
        store(target + j * lanes, load(target + j * lanes) + factor * g[j]);
      }
      store(slot + c * lanes, dot);
    }
    dots.taken();
  }
}

// Gradients of `count` samples, rounded up, from the products of grad and their corners. Overwrites the block's
// locations and weights with their gradients.
template <class A>
static void finish(Block<A>& b, int64_t count, const A* dots) {
  constexpr int lanes = kLanes<A>;
  for (int64_t k = 0; k < count; k += lanes) {
    Vec<A> d[4];
    for (int i = 0; i < 4; i++) d[i] = load(dots + 4 * k + i * lanes);
    const Vec<A> even0 = evens(d[0], d[1]), even1 = evens(d[2], d[3]), odd0 = odds(d[0], d[1]), odd1 = odds(d[2], d[3]);
    const Vec<A> d0 = evens(even0, even1), d1 = evens(odd0, odd1), d2 = odds(even0, even1), d3 = odds(odd0, odd1);
    const Vec<A> c0 = load(b.corner[0] + k), c1 = load(b.corner[1] + k), c2 = load(b.corner[2] + k),
                 c3 = load(b.corner[3] + k);
    const Vec<A> rx = load(b.dx + k), ry = load(b.dy + k), weight = load(b.weight + k);
    const auto in = c0 + c1 + c2 + c3 > A(0);
    typedef decltype(c0 > A(0)) Mask;
    const Vec<A> slope_x = (A(1) - ry) * (d1 - d0) + ry * (d3 - d2), slope_y = (A(1) - rx) * (d2 - d0) + rx * (d3 - d1);
    const Vec<A> gx = (Vec<A>)((Mask)(weight * load(b.width + k) * slope_x) & in);
    const Vec<A> gy = (Vec<A>)((Mask)(weight * load(b.height + k) * slope_y) & in);
    store(b.weight + k, c0 * d0 + c1 * d1 + c2 * d2 + c3 * d3);
    store(b.location + 2 * k, zip_low(gx, gy));
    store(b.location + 2 * k + lanes, zip_high(gx, gy));
  }
}

template <class V, int NV, bool kChecked>
static void backward_blocked(const Backward& f, const Rows& value, const Rows& grad_value, const Part& part) {
  typedef Acc<V> A;
  const Shape& s = f.shape;
  constexpr int lanes = kLanes<A>;
  const int64_t each = (part.end - part.begin) * s.P, width = padded(s.D), group = queries_per_block(each);
  Block<A> block(group * each);
  for (int64_t i = 0; i < group * each; i++) {
    const int64_t l = part.begin + i % each / s.P;
    block.set_level(i, s, l, s.starts[l] - part.origin);
  }
  A* memory = (A*)__builtin_malloc(sizeof(A) * (width + 4 * (block.capacity + 16)));
  A *grad = memory, *products = grad + width;
  for (int64_t d = 0; d < width + 4 * (block.capacity + 16); d++) memory[d] = A(0);
  const auto place = [&](int64_t q) { return (part.n * s.Q + q) * s.M + part.m; };  // of a query's head
  const auto sample = [&](int64_t q) { return (place(q) * s.L + part.begin) * s.P; };
  for (int64_t first = 0; first < s.Q; first += group) {
    const int64_t queries = min_of(group, s.Q - first), samples = queries * each;
    for (int64_t q = first + group; q < min_of(first + 2 * group, s.Q); q++) {
      block.prefetch(each, f.locations, f.weights, f.coordinate_kind, sample(q));
      prefetch((const V*)f.grad_out + place(q) * s.D, s.D);
    }
    for (int64_t i = 0; i < queries; i++)
      block.read(i * each, each, f.locations, f.weights, f.coordinate_kind, sample(first + i));
    block.template locate<false>(samples, uint32_t(value.stride), outside_offset<kChecked, V>(value));
    for (int64_t d = 0; d < width; d += NV * lanes) {
      Dots<A> dots(products, d == 0);
      for (int64_t i = 0; i < queries; i++) {
        const V* given = (const V*)f.grad_out + place(first + i) * s.D;
        Vec<A> g[NV];
        if (s.D == width) {
          for (int j = 0; j < NV; j++) g[j] = load(given + d + j * lanes);
        } else {
          for (int64_t c = 0; c < s.D; c++) grad[c] = widen(given[c]);
          for (int j = 0; j < NV; j++) g[j] = load(grad + d + j * lanes);
        }
        spread<V, NV, kChecked>(block, value, grad_value, i * each, each, d, g, dots);
      }
      if (dots.count) dots.flush();
    }
    finish(block, samples, products);
    for (int64_t i = 0; i < queries; i++)
      block.write(i * each, each, f.grad_locations, f.grad_weights, f.coordinate_kind, sample(first + i));
  }
  __builtin_free(memory);
}

// The widest run of channels whose sums stay in registers and that divides the padded row.
template <class V, class F>
static void with_width(int64_t channels, F run) {
  constexpr int lanes = kLanes<Acc<V>>;
  const int64_t vectors = padded(channels) / lanes;
  if (vectors % 4 == 0) {
    run.template operator()<V, 4>();
  } else if (vectors % 2 == 0) {
    run.template operator()<V, 2>();
  } else {
    run.template operator()<V, 1>();
  }
}

template <class F>
static void with_kind(Kind kind, int64_t channels, F run) {
  switch (kind) {
    case Kind::f32: return with_width<float>(channels, run);
    case Kind::f64: return with_width<double>(channels, run);
    case Kind::bf16: return with_width<BFloat16>(channels, run);
    default: return with_width<Half>(channels, run);
  }
}

static void forward(const Forward& f, const Rows& value, int64_t n, int64_t m, int64_t begin, int64_t end) {
  with_kind(f.value_kind, f.shape.D, [&]<class V, int NV>() {
    const auto run = value.outside_in_array ? forward_blocked<V, NV, false> : forward_blocked<V, NV, true>;
    run(f, value, n, m, begin, end);
  });
}

static void backward(const Backward& f, const Rows& value, const Rows& grad_value, const Part& part) {
  with_kind(f.value_kind, f.shape.D, [&]<class V, int NV>() {
    const auto run = value.outside_in_array ? backward_blocked<V, NV, false> : backward_blocked<V, NV, true>;
    run(f, value, grad_value, part);
  });
}

#define KSDA_TEXT(word) #word
#define KSDA_NAME(word) KSDA_TEXT(word)
static const Kernels kKernels = {KSDA_NAME(KSDA_ISA), forward, backward};

}  // namespace KSDA_ISA

#define KSDA_JOIN(a, b) a##b
#define KSDA_ENTRY(isa) KSDA_JOIN(isa, _kernels)
const Kernels* KSDA_ENTRY(KSDA_ISA)() { return &KSDA_ISA::kKernels; }

}  // namespace ksda

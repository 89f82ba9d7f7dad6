// Forward and backward for one instruction set, in the compiler's vector extensions.
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

static inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }

// Queries staged together: as few as fill whole vectors of 16 samples.
static inline int64_t queries_per_block(int64_t samples) {
  int64_t queries = 1;
  while (queries < 16 && (queries * samples) % 16 != 0) queries *= 2;
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
#pragma GCC unroll 8
      for (int j = 0; j < NV; j++) sum[c % kChains][j] += factor * load(row + j * lanes);
    }
  }
  for (int c = 1; c < kChains; c++)
    for (int j = 0; j < NV; j++) sum[0][j] += sum[c][j];
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
      for (int64_t d = 0; d < width; d += NV * lanes)
        sum_rows<V, NV, kChecked>(block, value, i * samples, samples, d, to + d);
      if (!in_place)
        for (int64_t d = 0; d < s.D; d++) narrow(sum[d], out + d);
    }
  }
  __builtin_free(sum);
}

// partial[lanes per corner] += row * grad; grad_row += factor * grad
template <class V, int NV, bool kChecked>
static inline void spread(const Block<Acc<V>>& b, const Rows& value, const Rows& grad_value, int64_t from,
                          int64_t count, int64_t channel, const Acc<V>* grad, bool first, Acc<V>* partial) {
  typedef Acc<V> A;
  constexpr int lanes = kLanes<A>;
  Vec<A> g[NV];
  for (int j = 0; j < NV; j++) g[j] = load(grad + channel + j * lanes);
  for (int64_t k = from; k < from + count; k++) {
    const Vec<A> weight = splat<A>(b.weight[k]);
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
      const V* row = row_at<kChecked, const V>(value, b.offset[c][k]) + channel;
      A* target = row_at<kChecked, A>(grad_value, b.offset[c][k]) + channel;
      A* slot = partial + (4 * k + c) * lanes;
      const Vec<A> factor = weight * splat<A>(b.corner[c][k]);
      Vec<A> dot = first ? Vec<A>{} : load(slot);
#pragma GCC unroll 8
      for (int j = 0; j < NV; j++) {
        dot += g[j] * load(row + j * lanes);
        store(target + j * lanes, load(target + j * lanes) + factor * g[j]);
      }
      store(slot, dot);
    }
  }
}

// Gradients of `count` samples from the dot products of their corners: dots[4 * k + c].
template <class A>
static inline void finish(const Block<A>& b, int64_t count, const A* dots, A* gx, A* gy, A* gw) {
  for (int64_t k = 0; k < count; k++) {
    const A d0 = dots[4 * k], d1 = dots[4 * k + 1], d2 = dots[4 * k + 2], d3 = dots[4 * k + 3];
    const A rx = b.dx[k], ry = b.dy[k], one = A(1);
    const bool in = b.corner[0][k] + b.corner[1][k] + b.corner[2][k] + b.corner[3][k] > A(0);
    gw[k] = b.corner[0][k] * d0 + b.corner[1][k] * d1 + b.corner[2][k] * d2 + b.corner[3][k] * d3;
    const A slope_x = (one - ry) * (d1 - d0) + ry * (d3 - d2), slope_y = (one - rx) * (d2 - d0) + rx * (d3 - d1);
    gx[k] = in ? b.weight[k] * b.width[k] * slope_x : A(0);
    gy[k] = in ? b.weight[k] * b.height[k] * slope_y : A(0);
  }
}

template <class V, int NV, bool kChecked>
static void backward_blocked(const Backward& f, const Rows& value, const Rows& grad_value, int64_t n, int64_t m,
                             int64_t l) {
  typedef Acc<V> A;
  const Shape& s = f.shape;
  constexpr int lanes = kLanes<A>;
  const int64_t width = padded(s.D), group = 16;
  Block<A> block(group * s.P);
  const int64_t capacity = block.capacity;
  for (int64_t i = 0; i < capacity; i++) block.set_level(i, s, l, 0);
  A* memory = (A*)__builtin_malloc(sizeof(A) * (width + capacity * (4 * lanes + 7)) + 64);
  A *grad = memory, *partial = grad + width, *dots = partial + capacity * 4 * lanes, *gx = dots + 4 * capacity,
    *gy = gx + capacity, *gw = gy + capacity;
  for (int64_t d = 0; d < width; d++) grad[d] = A(0);
  for (int64_t i = 0; i < capacity * 4 * lanes; i++) partial[i] = A(0);
  const bool in_place = s.D == width && sizeof(V) == sizeof(A);
  for (int64_t first = 0; first < s.Q; first += group) {
    const int64_t queries = min_of(group, s.Q - first), samples = queries * s.P;
    for (int64_t i = 0; i < queries; i++)
      block.read(i * s.P, s.P, f.locations, f.weights, f.coordinate_kind,
                 (((n * s.Q + first + i) * s.M + m) * s.L + l) * s.P);
    block.template locate<false>(samples, uint32_t(value.stride), outside_offset<kChecked, V>(value));
    for (int64_t i = 0; i < queries; i++) {
      const V* given = (const V*)f.grad_out + ((n * s.Q + first + i) * s.M + m) * s.D;
      const A* g = (const A*)given;
      if (!in_place) {
        for (int64_t d = 0; d < s.D; d++) grad[d] = widen(given[d]);
        g = grad;
      }
      for (int64_t d = 0; d < width; d += NV * lanes)
        spread<V, NV, kChecked>(block, value, grad_value, i * s.P, s.P, d, g, d == 0, partial);
    }
    for (int64_t k = 0; k < 4 * samples; k += lanes) store(dots + k, sums(partial + k * lanes));
    finish(block, samples, dots, gx, gy, gw);
    for (int64_t i = 0; i < queries; i++) {
      const int64_t to = (((n * s.Q + first + i) * s.M + m) * s.L + l) * s.P;
      for (int64_t p = 0; p < s.P; p++) {
        write_as(f.grad_locations, f.coordinate_kind, 2 * (to + p), gx[i * s.P + p]);
        write_as(f.grad_locations, f.coordinate_kind, 2 * (to + p) + 1, gy[i * s.P + p]);
        write_as(f.grad_weights, f.coordinate_kind, to + p, gw[i * s.P + p]);
      }
    }
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

static void backward(const Backward& f, const Rows& value, const Rows& grad_value, int64_t n, int64_t m, int64_t l) {
  with_kind(f.value_kind, f.shape.D, [&]<class V, int NV>() {
    const auto run = value.outside_in_array ? backward_blocked<V, NV, false> : backward_blocked<V, NV, true>;
    run(f, value, grad_value, n, m, l);
  });
}

static const Kernels kKernels = {KSDA_NAME, forward, backward};

}  // namespace KSDA_ISA

const Kernels* KSDA_ENTRY() { return &KSDA_ISA::kKernels; }

}  // namespace ksda

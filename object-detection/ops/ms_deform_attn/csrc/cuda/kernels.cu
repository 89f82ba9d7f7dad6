// Forward and backward on CUDA. A group of neighbouring threads shares one (image, query, head); each thread owns
// some channels, read 16 bytes at a time, and walks over the samples. Gradients of locations and weights are summed
// over the group in registers; that of `value` is added atomically, in float32 (4 at a time on sm_90).
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#ifndef KSDA_LAUNCH  // the tests run this file without a GPU, with a launcher of their own
#include <cuda_runtime.h>
#define KSDA_LAUNCH(kernel, blocks, threads, stream, ...) \
  kernel<<<unsigned(blocks), unsigned(threads), 0, static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__)
#endif

#include "kernels.h"

namespace ksda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 1 << 20;  // larger problems loop

template <class T>
using Acc = std::conditional_t<std::is_same_v<T, double>, double, float>;

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

__device__ __forceinline__ void narrow(float x, float& y) { y = x; }
__device__ __forceinline__ void narrow(double x, double& y) { y = x; }
__device__ __forceinline__ void narrow(float x, __half& y) { y = __float2half_rn(x); }
__device__ __forceinline__ void narrow(float x, __nv_bfloat16& y) { y = __float2bfloat16_rn(x); }

template <class T, int V>
struct alignas(V * sizeof(T)) Pack {
  T item[V];
};

// A sample: where its four corners are and how much of each it takes. Corners (y0,x0) (y0,x1) (y1,x0) (y1,x1).
template <class A>
struct Sample {
  bool in;
  A dx, dy, width, height;
  A corner[4];
  int64_t row[4];  // -1 beyond the map
};

template <class A>
__device__ __forceinline__ Sample<A> locate(const Shape& s, int level, A u, A v) {
  const int height = s.height[level], width = s.width[level];
  Sample<A> p;
  p.width = A(width);
  p.height = A(height);
  const A x = u * p.width - A(0.5), y = v * p.height - A(0.5);
  p.in = x > A(-1) && y > A(-1) && x < p.width && y < p.height;  // false for NaN
  if (!p.in) return p;
  int x0 = int(x), y0 = int(y);
  x0 -= x < A(x0);  // floor
  y0 -= y < A(y0);
  p.dx = x - A(x0);
  p.dy = y - A(y0);
  p.corner[0] = (A(1) - p.dy) * (A(1) - p.dx);
  p.corner[1] = (A(1) - p.dy) * p.dx;
  p.corner[2] = p.dy * (A(1) - p.dx);
  p.corner[3] = p.dy * p.dx;
  const int64_t at = s.start[level] + int64_t(y0) * width + x0;
  const bool left = x0 >= 0, right = x0 + 1 < width, top = y0 >= 0, bottom = y0 + 1 < height;
  p.row[0] = top && left ? at : -1;
  p.row[1] = top && right ? at + 1 : -1;
  p.row[2] = bottom && left ? at + width : -1;
  p.row[3] = bottom && right ? at + width + 1 : -1;
  return p;
}

// Thread `lane` of a group owns channels lane * V + i + k * group * V.
template <class T, class C, int V>
__global__ void __launch_bounds__(kThreads) forward_kernel(const Shape s, int64_t items, const T* __restrict__ value,
                                                           const C* __restrict__ locations,
                                                           const C* __restrict__ weights, T* __restrict__ out) {
  using A = Acc<T>;
  const int64_t packs = s.D / V;  // threads per item
  const int samples = s.L * s.P;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < items * packs;
       i += int64_t(gridDim.x) * blockDim.x) {
    const int64_t item = i / packs, channel = i % packs * V;
    const int64_t head = item % s.M, image = item / s.M / s.Q;
    const T* base = value + (image * s.S * s.M + head) * s.D + channel;
    const C *location = locations + item * samples * 2, *weight = weights + item * samples;
    A sum[V] = {};
    for (int k = 0; k < samples; k++) {
      const Sample<A> p = locate<A>(s, k / s.P, A(widen(location[2 * k])), A(widen(location[2 * k + 1])));
      if (!p.in) continue;
      const A factor = A(widen(weight[k]));
#pragma unroll
      for (int c = 0; c < 4; c++) {
        if (p.row[c] < 0) continue;
        const auto row = *reinterpret_cast<const Pack<T, V>*>(base + p.row[c] * s.M * s.D);
        const A part = factor * p.corner[c];
#pragma unroll
        for (int j = 0; j < V; j++) sum[j] += part * A(widen(row.item[j]));
      }
    }
    Pack<T, V> result;
#pragma unroll
    for (int j = 0; j < V; j++) narrow(sum[j], result.item[j]);
    *reinterpret_cast<Pack<T, V>*>(out + item * s.D + channel) = result;
  }
}

template <class A, int V>
__device__ __forceinline__ void add_to(A* target, const A* x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  constexpr bool four = sizeof(A) == 4 && V % 4 == 0;
#else
  constexpr bool four = false;
#endif
  if constexpr (four) {
#pragma unroll
    for (int j = 0; j < V; j += 4)
      atomicAdd(reinterpret_cast<float4*>(target + j), make_float4(x[j], x[j + 1], x[j + 2], x[j + 3]));
  } else {
#pragma unroll
    for (int j = 0; j < V; j++) atomicAdd(target + j, x[j]);
  }
}

template <class A>
__device__ __forceinline__ A group_sum(A x, int group) {
  for (int step = group / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}

// `group` is a power of two, at most 32; all threads of a warp stay together, those past the end without effect.
template <class T, class C, int V>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const Shape s, int64_t items, int group, const T* __restrict__ grad_out,
                    const T* __restrict__ value, const C* __restrict__ locations, const C* __restrict__ weights,
                    Acc<T>* __restrict__ grad_value, C* __restrict__ grad_locations, C* __restrict__ grad_weights) {
  using A = Acc<T>;
  const int samples = s.L * s.P, lane = threadIdx.x % group, groups = blockDim.x / group;
  const int64_t rounds = (items + groups - 1) / groups;
  for (int64_t round = blockIdx.x; round < rounds; round += gridDim.x) {
    const int64_t wanted = round * groups + threadIdx.x / group;
    const bool real = wanted < items;
    const int64_t item = real ? wanted : items - 1;
    const int64_t head = item % s.M, image = item / s.M / s.Q;
    const int64_t base = (image * s.S * s.M + head) * s.D;
    for (int k = 0; k < samples; k++) {
      const int64_t at = item * samples + k;
      const Sample<A> p = locate<A>(s, k / s.P, A(widen(locations[2 * at])), A(widen(locations[2 * at + 1])));
      const A factor = A(widen(weights[at]));
      A dot[4] = {};
      if (p.in && real) {
        for (int64_t channel = int64_t(lane) * V; channel < s.D; channel += int64_t(group) * V) {
          const auto given = *reinterpret_cast<const Pack<T, V>*>(grad_out + item * s.D + channel);
#pragma unroll
          for (int c = 0; c < 4; c++) {
            if (p.row[c] < 0) continue;
            const int64_t offset = base + p.row[c] * s.M * s.D + channel;
            const auto row = *reinterpret_cast<const Pack<T, V>*>(value + offset);
            const A part = factor * p.corner[c];
            A change[V];
#pragma unroll
            for (int j = 0; j < V; j++) {
              const A g = A(widen(given.item[j]));
              dot[c] += g * A(widen(row.item[j]));
              change[j] = part * g;
            }
            add_to<A, V>(grad_value + offset, change);
          }
        }
      }
      A gw = 0, gx = 0, gy = 0;
      if (p.in) {
        gw = p.corner[0] * dot[0] + p.corner[1] * dot[1] + p.corner[2] * dot[2] + p.corner[3] * dot[3];
        gx = factor * p.width * ((A(1) - p.dy) * (dot[1] - dot[0]) + p.dy * (dot[3] - dot[2]));
        gy = factor * p.height * ((A(1) - p.dx) * (dot[2] - dot[0]) + p.dx * (dot[3] - dot[1]));
      }
      gw = group_sum(gw, group);
      gx = group_sum(gx, group);
      gy = group_sum(gy, group);
      if (real && lane == 0) {
        narrow(gx, grad_locations[2 * at]);
        narrow(gy, grad_locations[2 * at + 1]);
        narrow(gw, grad_weights[at]);
      }
    }
  }
}

int64_t blocks_for(int64_t count, int64_t each) {
  const int64_t blocks = (count + each - 1) / each;
  return blocks < kMostBlocks ? blocks : kMostBlocks;
}

bool aligned(const void* a, const void* b) { return (uintptr_t(a) | uintptr_t(b)) % 16 == 0; }

struct Forward {
  const Shape& s;
  const void *value, *locations, *weights;
  void *out, *stream;

  template <class T, class C, int V>
  void run() const {
    const int64_t items = s.N * s.Q * s.M;
    KSDA_LAUNCH((forward_kernel<T, C, V>), blocks_for(items * (s.D / V), kThreads), kThreads, stream, s, items,
                static_cast<const T*>(value), static_cast<const C*>(locations), static_cast<const C*>(weights),
                static_cast<T*>(out));
  }
  bool packable() const { return aligned(value, out); }
};

struct Backward {
  const Shape& s;
  const void *grad_out, *value, *locations, *weights;
  void *grad_value, *grad_locations, *grad_weights, *stream;

  template <class T, class C, int V>
  void run() const {
    const int64_t items = s.N * s.Q * s.M;
    int group = 1;
    while (group < 32 && int64_t(group) * V < s.D) group *= 2;
    KSDA_LAUNCH((backward_kernel<T, C, V>), blocks_for(items, kThreads / group), kThreads, stream, s, items, group,
                static_cast<const T*>(grad_out), static_cast<const T*>(value), static_cast<const C*>(locations),
                static_cast<const C*>(weights), static_cast<Acc<T>*>(grad_value), static_cast<C*>(grad_locations),
                static_cast<C*>(grad_weights));
  }
  bool packable() const { return aligned(value, grad_out) && aligned(grad_value, grad_value); }
};

template <class T, class C, class F>
void with_pack(const F& f) {
  constexpr int most = 16 / sizeof(T);
  f.s.D % most == 0 && f.packable() ? f.template run<T, C, most>() : f.template run<T, C, 1>();
}

template <class T, class F>
void with_coordinates(Kind value_kind, Kind coordinate_kind, const F& f) {
  coordinate_kind == value_kind ? with_pack<T, T>(f) : with_pack<T, float>(f);
}

template <class F>
void with_kinds(Kind value_kind, Kind coordinate_kind, const F& f) {
  switch (value_kind) {
    case Kind::f32: return with_pack<float, float>(f);
    case Kind::f64: return with_pack<double, double>(f);
    case Kind::bf16: return with_coordinates<__nv_bfloat16>(value_kind, coordinate_kind, f);
    default: return with_coordinates<__half>(value_kind, coordinate_kind, f);
  }
}

}  // namespace

int forward(const Shape& s, Kind value_kind, Kind coordinate_kind, const void* value, const void* locations,
            const void* weights, void* out, void* stream) {
  with_kinds(value_kind, coordinate_kind, Forward{s, value, locations, weights, out, stream});
  return int(cudaGetLastError());
}

int backward(const Shape& s, Kind value_kind, Kind coordinate_kind, const void* grad_out, const void* value,
             const void* locations, const void* weights, void* grad_value, void* grad_locations, void* grad_weights,
             void* stream) {
  with_kinds(value_kind, coordinate_kind,
             Backward{s, grad_out, value, locations, weights, grad_value, grad_locations, grad_weights, stream});
  return int(cudaGetLastError());
}

}  // namespace ksda

// What op.cpp asks of kernels.cu. No torch header here, so that nvcc compiles the kernels in seconds.
#pragma once
#include <cstdint>

namespace ksda {

enum class Kind : int { f32 = 0, f64 = 1, bf16 = 2, f16 = 3 };

constexpr int kMostLevels = 16;

struct Shape {
  int64_t N, S, M, D, Q;
  int L, P;
  int height[kMostLevels], width[kMostLevels];
  int64_t start[kMostLevels];  // first row of each level
};

// All tensors contiguous: value [N, S, M, D], locations [N, Q, M, L, P, 2], weights [N, Q, M, L, P],
// out and grad_out [N, Q, M, D]. The coordinates are float32 or of value's kind.
// Returns 0, or the cudaError_t of the launch.
int forward(const Shape&, Kind value_kind, Kind coordinate_kind, const void* value, const void* locations,
            const void* weights, void* out, void* stream);

// grad_value must hold zeros: float64 for f64, else float32.
int backward(const Shape&, Kind value_kind, Kind coordinate_kind, const void* grad_out, const void* value,
             const void* locations, const void* weights, void* grad_value, void* grad_locations, void* grad_weights,
             void* stream);

}  // namespace ksda

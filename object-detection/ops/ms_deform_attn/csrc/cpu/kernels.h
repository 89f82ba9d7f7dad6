// What the dispatcher (op.cpp) asks of one instruction set's kernels. No torch header here or in the kernels:
// an inline function compiled with AVX-512 must never be the copy the linker keeps for every machine.
#pragma once
#include <cstdint>

namespace ksda {

enum class Kind : int { f32 = 0, f64 = 1, bf16 = 2, f16 = 3 };

// Rows are padded to a multiple of this many channels, so that kernels need no tail.
constexpr int64_t kChannelPad = 16;

inline int64_t padded(int64_t channels) { return (channels + kChannelPad - 1) / kChannelPad * kChannelPad; }

struct Shape {
  int64_t N, S, M, D, Q, L, P;
  const int64_t *heights, *widths, *starts;  // [L]
};

// Rows of one image and head: row r at base + r * stride, each of padded(D) readable channels.
// What lies outside a map is read from `outside`, a row of zeros (or written to it, a row nobody reads); it is
// either the row after the last, or not in the array at all. All offsets are below 2^32 - 1 elements.
struct Rows {
  void* base;
  int64_t stride;  // in elements; the same for a value and its gradient
  void* outside;
  bool outside_in_array;
};

struct Forward {
  Shape shape;
  Kind value_kind, coordinate_kind;
  const void *locations, *weights;  // [N, Q, M, L, P, 2] and [N, Q, M, L, P]
  void* out;                        // [N, Q, M, D], of value_kind
};

struct Backward {
  Shape shape;
  Kind value_kind, coordinate_kind;
  const void *grad_out, *locations, *weights;
  void *grad_locations, *grad_weights;  // of coordinate_kind
};

// What one call of the backward kernel covers: levels [begin, end) of one image and head. Row 0 of its rows is token
// `origin`.
struct Part {
  int64_t n, m, begin, end, origin;
};

// One set per instruction set. Thread-safe: all state is in the arguments and on the stack.
struct Kernels {
  const char* name;
  // Output rows of queries [begin, end) of one image and head; row 0 of `value` is token 0.
  void (*forward)(const Forward&, const Rows& value, int64_t n, int64_t m, int64_t begin, int64_t end);
  // All three gradients of a part; grad_value is added to, in float (float64 for f64).
  void (*backward)(const Backward&, const Rows& value, const Rows& grad_value, const Part&);
};

const Kernels* plain_kernels();
#ifdef KSDA_X86
const Kernels* avx2_kernels();
const Kernels* avx512_kernels();
#endif

}  // namespace ksda

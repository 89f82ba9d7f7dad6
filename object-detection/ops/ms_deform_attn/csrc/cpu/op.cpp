// Scheduling and registration of the CPU kernels: torch.ops.ms_deform_attn_cpu.{forward, backward, use, names}.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "kernels.h"

namespace ksda {
namespace {

constexpr int64_t kMostElements = int64_t(1) << 31;  // offsets are 32-bit

std::vector<const Kernels*> runnable() {
  std::vector<const Kernels*> found = {plain_kernels()};
#ifdef KSDA_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(avx2_kernels());
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq"))
    found.push_back(avx512_kernels());
#endif
  return found;
}

std::atomic<const Kernels*>& chosen() {
  static std::atomic<const Kernels*> kernels{runnable().back()};
  return kernels;
}

Kind kind_of(at::ScalarType type) {
  switch (type) {
    case at::kFloat: return Kind::f32;
    case at::kDouble: return Kind::f64;
    case at::kBFloat16: return Kind::bf16;
    case at::kHalf: return Kind::f16;
    default: TORCH_CHECK_VALUE(false, "`value` must be float32, float64, bfloat16 or float16, got ", type);
  }
}

struct Levels {
  std::vector<int64_t> heights, widths, starts;

  Levels(at::IntArrayRef sizes, at::IntArrayRef first, int64_t tokens) : starts(first.vec()) {
    TORCH_CHECK_VALUE(sizes.size() == 2 * first.size(), "`spatial_shapes` and `level_start_index` differ in length");
    for (size_t l = 0; l < first.size(); l++) {
      heights.push_back(sizes[2 * l]);
      widths.push_back(sizes[2 * l + 1]);
      TORCH_CHECK_VALUE(heights[l] >= 0 && widths[l] >= 0 && starts[l] >= 0 &&
                            heights[l] < (1 << 25) && widths[l] < (1 << 25) &&
                            starts[l] + heights[l] * widths[l] <= tokens,
                        "`spatial_shapes` puts level ", l, " outside the tokens of `value`");
    }
  }
  int64_t rows(int64_t l) const { return heights[l] * widths[l]; }
};

Shape shape_of(const at::Tensor& value, const Levels& levels, const at::Tensor& locations, const at::Tensor& weights) {
  TORCH_CHECK_VALUE(value.dim() == 4 && locations.dim() == 6 && weights.dim() == 5, "wrong number of dimensions");
  const Shape s{value.size(0),     value.size(1),     value.size(2),         value.size(3),        locations.size(1),
                locations.size(3), locations.size(4), levels.heights.data(), levels.widths.data(), levels.starts.data()};
  const std::vector<int64_t> expected = {s.N, s.Q, s.M, s.L, s.P, 2};
  TORCH_CHECK_VALUE(locations.sizes().equals(expected), "`sampling_locations` does not fit `value`");
  TORCH_CHECK_VALUE(weights.sizes().equals(at::IntArrayRef(expected).slice(0, 5)), "`attention_weights` does not fit");
  TORCH_CHECK_VALUE(int64_t(levels.starts.size()) == s.L, "`spatial_shapes` does not fit `sampling_locations`");
  TORCH_CHECK_VALUE(locations.scalar_type() == weights.scalar_type(), "`attention_weights` has another dtype");
  TORCH_CHECK_VALUE((s.S + 1) * padded(s.D) < kMostElements, "`value` has S x D above 2^31");
  TORCH_CHECK_VALUE(value.is_cpu() && locations.is_cpu() && weights.is_cpu(), "all tensors must be on the CPU");
  return s;
}

// Copies rows of `bytes` each, `from` apart, to rows `to` apart.
void copy_rows(const char* source, int64_t from, char* target, int64_t to, int64_t bytes, int64_t rows) {
  if (bytes == 128) {
    for (int64_t r = 0; r < rows; r++) std::memcpy(target + r * to, source + r * from, 128);
  } else if (bytes == 256) {
    for (int64_t r = 0; r < rows; r++) std::memcpy(target + r * to, source + r * from, 256);
  } else {
    for (int64_t r = 0; r < rows; r++) std::memcpy(target + r * to, source + r * from, bytes);
  }
  if (to > bytes)
    for (int64_t r = 0; r < rows; r++) std::memset(target + r * to + bytes, 0, to - bytes);
}

// Runs every task, each by whichever thread is free; `worker()` is what a thread runs its tasks with. Tasks share no
// output.
template <class W>
void each(int64_t tasks, const W& worker) {
  std::atomic<int64_t> next{0};
  const int64_t threads = std::min<int64_t>(tasks, at::get_num_threads());
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    const auto f = worker();
    for (int64_t t = begin; t < end; t++)
      for (int64_t task = next++; task < tasks; task = next++) f(task);
  });
}

// A copy per head pays when it is read often enough; and rows must be padded when D is no multiple of the pad.
bool worth_packing(const Shape& s) {
  return s.D != padded(s.D) || s.Q * s.L * s.P >= 2 * s.S || s.S * s.M * s.D >= kMostElements;
}

at::Tensor scratch(int64_t bytes) { return at::empty({bytes + 64}, at::kByte); }

char* aligned(const at::Tensor& memory) {
  return reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(memory.data_ptr()) + 63) / 64 * 64);
}

void forward_packed(const Kernels& kernels, const Forward& f, const char* value, int64_t item) {
  const Shape& s = f.shape;
  const int64_t heads = s.N * s.M, row = padded(s.D) * item, area = (s.S + 1) * row;
  const int64_t threads = at::get_num_threads(), wave = std::min(heads, threads);
  const int64_t parts = (threads + wave - 1) / wave, chunk = 256;
  const at::Tensor memory = scratch(wave * area);
  char* packed = aligned(memory);
  for (int64_t first = 0; first < heads; first += wave) {
    const int64_t count = std::min(wave, heads - first);
    at::parallel_for(0, count * parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; t++) {
        const int64_t h = first + t / parts, n = h / s.M, m = h % s.M, part = t % parts;
        const int64_t from = s.S * part / parts, to = s.S * (part + 1) / parts;
        char* target = packed + (t / parts) * area;
        copy_rows(value + ((n * s.S + from) * s.M + m) * s.D * item, s.M * s.D * item, target + from * row, row,
                  s.D * item, to - from);
        std::memset(target + s.S * row, 0, row);
      }
    });
    // the same split as above: with as many heads as threads, a thread reads the head it has just copied
    const int64_t chunks = (s.Q + chunk - 1) / chunk;
    at::parallel_for(0, count * chunks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; t++) {
        const int64_t h = t / chunks, q = t % chunks * chunk;
        char* base = packed + h * area;
        kernels.forward(f, Rows{base, padded(s.D), base + s.S * row, true}, (first + h) / s.M, (first + h) % s.M, q,
                        std::min(q + chunk, s.Q));
      }
    });
  }
}

void forward_direct(const Kernels& kernels, const Forward& f, const char* value, int64_t item) {
  const Shape& s = f.shape;
  const std::vector<double> zeros(s.D, 0.0);
  const int64_t chunk = 64, chunks = (s.Q + chunk - 1) / chunk;
  const auto run = [&](int64_t task) {
    const int64_t n = task / chunks / s.M, m = task / chunks % s.M, q = task % chunks * chunk;
    const Rows rows{const_cast<char*>(value) + (n * s.S * s.M + m) * s.D * item, s.M * s.D, (void*)zeros.data(), false};
    kernels.forward(f, rows, n, m, q, std::min(q + chunk, s.Q));
  };
  each(s.N * s.M * chunks, [&] { return run; });
}

at::Tensor forward(const at::Tensor& value_, at::IntArrayRef sizes, at::IntArrayRef starts,
                   const at::Tensor& locations_, const at::Tensor& weights_) {
  const Levels levels(sizes, starts, value_.size(1));
  const Shape s = shape_of(value_, levels, locations_, weights_);
  const at::Tensor value = value_.contiguous(), locations = locations_.contiguous(), weights = weights_.contiguous();
  at::Tensor out = at::empty({s.N, s.Q, s.M * s.D}, value.options());
  if (out.numel() == 0) return out;
  if (s.L * s.P == 0 || s.S == 0) return out.zero_();
  const Forward f{s, kind_of(value.scalar_type()), kind_of(locations.scalar_type()), locations.data_ptr(),
                  weights.data_ptr(), out.data_ptr()};
  const auto run = worth_packing(s) ? forward_packed : forward_direct;
  run(*chosen(), f, static_cast<const char*>(value.data_ptr()), value.element_size());
  return out;
}

// Writes a level's accumulated gradient to its place in grad_value, in the dtype of grad_value.
template <class A, class V>
void unpack(const A* source, int64_t width, V* target, int64_t stride, int64_t channels, int64_t rows) {
  for (int64_t r = 0; r < rows; r++)
    for (int64_t d = 0; d < channels; d++) target[r * stride + d] = static_cast<V>(source[r * width + d]);
}

// Whole heads, so that every coordinate is read once; with too few of them for the threads, every level of a head by
// itself, the finest of all heads first, as the longest tasks must not come last.
struct Tasks {
  const Shape& s;
  bool whole;

  explicit Tasks(const Shape& s) : s(s) {
    const int64_t heads = s.N * s.M, threads = at::get_num_threads();
    whole = heads % threads == 0 || heads >= 4 * threads;
  }
  int64_t count() const { return s.N * s.M * (whole ? 1 : s.L); }
  Part at(int64_t t) const {
    const int64_t l = t / s.M / s.N;
    return whole ? Part{t / s.M, t % s.M, 0, s.L, 0} : Part{t / s.M % s.N, t % s.M, l, l + 1, s.starts[l]};
  }
  int64_t rows(const Part& part) const { return whole ? s.S : s.heights[part.begin] * s.widths[part.begin]; }
};

// One task at a time: its rows and their gradient, side by side, in this thread's cache.
template <class A, class V>
void backward_packed(const Kernels& kernels, const Backward& f, const at::Tensor& value, at::Tensor& grad_value) {
  const Shape& s = f.shape;
  const Tasks tasks(s);
  const int64_t width = padded(s.D), row = width * int64_t(sizeof(V)), apart = s.M * s.D;
  int64_t most = 0;
  for (int64_t t = 0; t < tasks.count(); t++) most = std::max(most, tasks.rows(tasks.at(t)));
  each(tasks.count(), [&] {
    return [&, memory = scratch((most + 1) * width * (sizeof(V) + sizeof(A)))](int64_t t) {
      const Part part = tasks.at(t);
      const int64_t rows = tasks.rows(part), at = ((part.n * s.S + part.origin) * s.M + part.m) * s.D;
      A* grad = reinterpret_cast<A*>(aligned(memory));
      char* packed = reinterpret_cast<char*>(grad + (rows + 1) * width);
      std::memset(grad, 0, (rows + 1) * width * sizeof(A));
      copy_rows(reinterpret_cast<const char*>(value.const_data_ptr<V>() + at), apart * sizeof(V), packed, row,
                s.D * sizeof(V), rows);
      std::memset(packed + rows * row, 0, row);
      kernels.backward(f, Rows{packed, width, packed + rows * row, true}, Rows{grad, width, grad + rows * width, true}, part);
      unpack(grad, width, grad_value.mutable_data_ptr<V>() + at, apart, s.D, rows);
    };
  });
}

template <class A, class V>
void backward_direct(const Kernels& kernels, const Backward& f, const at::Tensor& value, at::Tensor& grad_value) {
  const Shape& s = f.shape;
  const Tasks tasks(s);
  at::Tensor sums = std::is_same_v<A, V> ? grad_value : at::empty(value.sizes(), value.options().dtype(at::kFloat));
  A* to = sums.mutable_data_ptr<A>();
  const V* from = value.const_data_ptr<V>();
  const int64_t apart = s.M * s.D;
  at::parallel_for(0, s.N * s.S, 1024, [&](int64_t begin, int64_t end) {
    std::memset(to + begin * apart, 0, (end - begin) * apart * sizeof(A));
  });
  const auto run = [&](int64_t t) {
    const Part part = tasks.at(t);
    const int64_t at = ((part.n * s.S + part.origin) * s.M + part.m) * s.D;
    std::vector<double> zeros(s.D, 0.0), unread(s.D, 0.0);
    kernels.backward(f, Rows{const_cast<V*>(from) + at, apart, zeros.data(), false}, Rows{to + at, apart, unread.data(), false},
                     part);
  };
  each(tasks.count(), [&] { return run; });
  if (!std::is_same_v<A, V>) grad_value.copy_(sums);
}

template <class A, class V>
void backward_as(const Backward& f, const at::Tensor& value, at::Tensor& grad_value) {
  (worth_packing(f.shape) ? backward_packed<A, V> : backward_direct<A, V>)(*chosen(), f, value, grad_value);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> backward(const at::Tensor& grad_, const at::Tensor& value_,
                                                        at::IntArrayRef sizes, at::IntArrayRef starts,
                                                        const at::Tensor& locations_, const at::Tensor& weights_) {
  const Levels levels(sizes, starts, value_.size(1));
  const Shape s = shape_of(value_, levels, locations_, weights_);
  TORCH_CHECK_VALUE(grad_.numel() == s.N * s.Q * s.M * s.D, "`grad_out` must be [N, Q, M*D]");
  const at::Tensor value = value_.contiguous(), locations = locations_.contiguous(), weights = weights_.contiguous();
  const at::Tensor grad = grad_.to(value.scalar_type()).contiguous();
  at::Tensor grad_locations = at::empty(locations.sizes(), locations.options());
  at::Tensor grad_weights = at::empty(weights.sizes(), weights.options());
  if (grad.numel() == 0 || weights.numel() == 0 || value.numel() == 0)
    return {at::zeros(value.sizes(), value.options()), grad_locations.zero_(), grad_weights.zero_()};
  at::Tensor grad_value = at::empty(value.sizes(), value.options());
  int64_t covered = 0;
  for (int64_t l = 0; l < s.L; l++) covered += levels.rows(l);
  if (covered != s.S) grad_value.zero_();
  const Backward f{s, kind_of(value.scalar_type()), kind_of(locations.scalar_type()), grad.data_ptr(),
                   locations.data_ptr(), weights.data_ptr(), grad_locations.data_ptr(), grad_weights.data_ptr()};
  switch (f.value_kind) {
    case Kind::f32: backward_as<float, float>(f, value, grad_value); break;
    case Kind::f64: backward_as<double, double>(f, value, grad_value); break;
    case Kind::bf16: backward_as<float, at::BFloat16>(f, value, grad_value); break;
    default: backward_as<float, at::Half>(f, value, grad_value);
  }
  return {grad_value, grad_locations, grad_weights};
}

// Names of the instruction sets this machine can run, slowest first.
std::vector<std::string> names() {
  std::vector<std::string> found;
  for (const Kernels* kernels : runnable()) found.push_back(kernels->name);
  return found;
}

// Switches to the named instruction set ("" only asks); returns the one in use before.
std::string use(c10::string_view name) {
  const std::string before = chosen().load()->name;
  if (name.empty()) return before;
  for (const Kernels* kernels : runnable())
    if (name == kernels->name) {
      chosen() = kernels;
      return before;
    }
  TORCH_CHECK_VALUE(false, "this processor has no ", name);
}

}  // namespace
}  // namespace ksda

TORCH_LIBRARY(ms_deform_attn_cpu, m) {
  m.def("forward(Tensor value, int[] sizes, int[] starts, Tensor locations, Tensor weights) -> Tensor");
  m.def("backward(Tensor grad_out, Tensor value, int[] sizes, int[] starts, Tensor locations, Tensor weights)"
        " -> (Tensor, Tensor, Tensor)");
  m.def("names() -> str[]", &ksda::names);
  m.def("use(str name) -> str", &ksda::use);
}

TORCH_LIBRARY_IMPL(ms_deform_attn_cpu, CPU, m) {
  m.impl("forward", &ksda::forward);
  m.impl("backward", &ksda::backward);
}

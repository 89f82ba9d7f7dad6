// Registration of the CUDA kernels: torch.ops.ms_deform_attn_cuda.{forward, backward}.
#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "kernels.h"

namespace ksda {
namespace {

Kind kind_of(at::ScalarType type) {
  switch (type) {
    case at::kFloat: return Kind::f32;
    case at::kDouble: return Kind::f64;
    case at::kBFloat16: return Kind::bf16;
    case at::kHalf: return Kind::f16;
    default: TORCH_CHECK_VALUE(false, "`value` must be float32, float64, bfloat16 or float16, got ", type);
  }
}

Shape shape_of(const at::Tensor& value, at::IntArrayRef sizes, at::IntArrayRef starts, const at::Tensor& locations,
               const at::Tensor& weights) {
  TORCH_CHECK_VALUE(value.dim() == 4 && locations.dim() == 6 && weights.dim() == 5, "wrong number of dimensions");
  const int64_t levels = int64_t(starts.size());
  TORCH_CHECK_VALUE(levels <= kMostLevels, "`spatial_shapes` has more than ", kMostLevels, " levels");
  Shape s{value.size(0), value.size(1), value.size(2), value.size(3), locations.size(1), int(levels),
          int(locations.size(4))};
  const std::vector<int64_t> expected = {s.N, s.Q, s.M, levels, s.P, 2};
  TORCH_CHECK_VALUE(locations.sizes().equals(expected), "`sampling_locations` does not fit `value`");
  TORCH_CHECK_VALUE(weights.sizes().equals(at::IntArrayRef(expected).slice(0, 5)), "`attention_weights` does not fit");
  TORCH_CHECK_VALUE(int64_t(sizes.size()) == 2 * levels, "`spatial_shapes` does not fit `level_start_index`");
  TORCH_CHECK_VALUE(locations.scalar_type() == weights.scalar_type(), "`attention_weights` has another dtype");
  TORCH_CHECK_VALUE(locations.scalar_type() == value.scalar_type() ||
                        (locations.scalar_type() == at::kFloat && value.element_size() == 2),
                    "`sampling_locations` must be float32 or of the dtype of `value`");
  TORCH_CHECK_VALUE(value.is_cuda() && locations.device() == value.device() && weights.device() == value.device(),
                    "all tensors must be on one CUDA device");
  for (int64_t l = 0; l < levels; l++) {
    const int64_t height = sizes[2 * l], width = sizes[2 * l + 1];
    TORCH_CHECK_VALUE(height >= 0 && width >= 0 && height < (1 << 25) && width < (1 << 25) && starts[l] >= 0 &&
                          starts[l] + height * width <= s.S,
                      "`spatial_shapes` puts level ", l, " outside the tokens of `value`");
    s.height[l] = int(height);
    s.width[l] = int(width);
    s.start[l] = starts[l];
  }
  return s;
}

void check(int error) { TORCH_CHECK(error == 0, "the CUDA kernel did not start: error ", error); }

at::Tensor run_forward(const at::Tensor& value_, at::IntArrayRef sizes, at::IntArrayRef starts,
                   const at::Tensor& locations_, const at::Tensor& weights_) {
  const Shape s = shape_of(value_, sizes, starts, locations_, weights_);
  const c10::cuda::CUDAGuard guard(value_.device());
  const at::Tensor value = value_.contiguous(), locations = locations_.contiguous(), weights = weights_.contiguous();
  at::Tensor out = at::empty({s.N, s.Q, s.M * s.D}, value.options());
  if (out.numel() == 0) return out;
  check(forward(s, kind_of(value.scalar_type()), kind_of(locations.scalar_type()), value.const_data_ptr(),
                locations.const_data_ptr(), weights.const_data_ptr(), out.mutable_data_ptr(),
                c10::cuda::getCurrentCUDAStream().stream()));
  return out;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> run_backward(const at::Tensor& grad_, const at::Tensor& value_,
                                                        at::IntArrayRef sizes, at::IntArrayRef starts,
                                                        const at::Tensor& locations_, const at::Tensor& weights_) {
  at::globalContext().alertNotDeterministic("ms_deform_attn backward on CUDA");  // atomic additions
  const Shape s = shape_of(value_, sizes, starts, locations_, weights_);
  TORCH_CHECK_VALUE(grad_.numel() == s.N * s.Q * s.M * s.D, "`grad_out` must be [N, Q, M*D]");
  const c10::cuda::CUDAGuard guard(value_.device());
  const at::Tensor value = value_.contiguous(), locations = locations_.contiguous(), weights = weights_.contiguous();
  const at::Tensor grad = grad_.to(value.scalar_type()).contiguous();
  const auto sum_type = value.element_size() == 2 ? at::kFloat : value.scalar_type();
  at::Tensor grad_value = at::zeros(value.sizes(), value.options().dtype(sum_type));
  at::Tensor grad_locations = at::empty(locations.sizes(), locations.options());
  at::Tensor grad_weights = at::empty(weights.sizes(), weights.options());
  if (grad.numel() == 0 || weights.numel() == 0)
    return {grad_value.to(value.scalar_type()), grad_locations.zero_(), grad_weights.zero_()};
  check(backward(s, kind_of(value.scalar_type()), kind_of(locations.scalar_type()), grad.const_data_ptr(),
                 value.const_data_ptr(), locations.const_data_ptr(), weights.const_data_ptr(),
                 grad_value.mutable_data_ptr(), grad_locations.mutable_data_ptr(), grad_weights.mutable_data_ptr(),
                 c10::cuda::getCurrentCUDAStream().stream()));
  return {grad_value.to(value.scalar_type()), grad_locations, grad_weights};
}

}  // namespace
}  // namespace ksda

TORCH_LIBRARY(ms_deform_attn_cuda, m) {
  m.def("forward(Tensor value, int[] sizes, int[] starts, Tensor locations, Tensor weights) -> Tensor");
  m.def("backward(Tensor grad_out, Tensor value, int[] sizes, int[] starts, Tensor locations, Tensor weights)"
        " -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(ms_deform_attn_cuda, CUDA, m) {
  m.impl("forward", &ksda::run_forward);
  m.impl("backward", &ksda::run_backward);
}

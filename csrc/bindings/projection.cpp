// Normalisation and projection over NumPy arrays.
#include "arrays.h"

namespace mmcore {
namespace {

void l2_normalize_forward(const Floats& x, float eps, const Floats& y, const Floats& inverse_norm, int threads) {
  MutableMatrix xs = matrix("x", x, -1, -1), ys = output("y", y, xs.rows, xs.columns);
  float* norms = output("inverse_norm", inverse_norm, xs.rows);
  checked_threads(threads);
  py::gil_scoped_release released;
  kernels().l2_normalize_forward(xs, eps, ys, norms, threads);
}

void l2_normalize_backward(const Floats& y, const Floats& inverse_norm, const Floats& grad_y, float eps,
                           const Floats& grad_x, int threads) {
  MutableMatrix ys = matrix("y", y, -1, -1), grads = matrix("grad_y", grad_y, ys.rows, ys.columns),
                out = output("grad_x", grad_x, ys.rows, ys.columns);
  float* norms = vector("inverse_norm", inverse_norm, ys.rows);
  checked_threads(threads);
  py::gil_scoped_release released;
  kernels().l2_normalize_backward(ys, norms, grads, eps, out, threads);
}

InputNorm input_norm(const std::string& kind, const std::optional<Floats>& weight, const std::optional<Floats>& bias,
                     float eps, Index columns) {
  InputNorm norm;
  if (kind == "layer") {
    norm.kind = Norm::kLayer;
  } else if (kind == "rms") {
    norm.kind = Norm::kRms;
  } else if (kind != "none") {
    refuse("norm must be one of 'none', 'layer', 'rms', got '" + kind + "'");
  }
  norm.weight = optional_vector("norm_weight", weight, columns);
  norm.bias = optional_vector("norm_bias", bias, columns);
  norm.eps = eps;
  return norm;
}

void project_forward(const Floats& x, const std::string& norm, const std::optional<Floats>& norm_weight,
                     const std::optional<Floats>& norm_bias, float norm_eps, const Floats& weight,
                     const std::optional<Floats>& bias, float output_eps, const Floats& out,
                     const std::optional<Floats>& mean, const std::optional<Floats>& inverse_std,
                     const std::optional<Floats>& inverse_norm, int threads) {
  MutableMatrix xs = matrix("x", x, -1, -1), ws = matrix("weight", weight, -1, xs.columns),
                outs = output("output", out, xs.rows, ws.rows);
  InputNorm in = input_norm(norm, norm_weight, norm_bias, norm_eps, xs.columns);
  float* b = optional_vector("bias", bias, ws.rows);
  ProjectionStatistics statistics{optional_vector("mean", mean, xs.rows, true),
                                  optional_vector("inverse_std", inverse_std, xs.rows, true),
                                  optional_vector("inverse_norm", inverse_norm, xs.rows, true)};
  checked_threads(threads);
  py::gil_scoped_release released;
  kernels().project_forward(xs, in, ws, b, output_eps, outs, statistics, threads);
}

void project_backward(const Floats& x, const std::string& norm, const std::optional<Floats>& norm_weight,
                      const std::optional<Floats>& norm_bias, float norm_eps, const Floats& weight, float output_eps,
                      const Floats& out, const std::optional<Floats>& mean, const std::optional<Floats>& inverse_std,
                      const std::optional<Floats>& inverse_norm, const Floats& grad_output, const Floats& grad_x,
                      const Floats& grad_weight, const std::optional<Floats>& grad_bias,
                      const std::optional<Floats>& grad_norm_weight, const std::optional<Floats>& grad_norm_bias,
                      int threads) {
  MutableMatrix xs = matrix("x", x, -1, -1), ws = matrix("weight", weight, -1, xs.columns),
                outs = matrix("output", out, xs.rows, ws.rows),
                grads = matrix("grad_output", grad_output, xs.rows, ws.rows);
  InputNorm in = input_norm(norm, norm_weight, norm_bias, norm_eps, xs.columns);
  ProjectionStatistics statistics{optional_vector("mean", mean, xs.rows),
                                  optional_vector("inverse_std", inverse_std, xs.rows),
                                  optional_vector("inverse_norm", inverse_norm, xs.rows)};
  ProjectionGradients gradients{output("grad_x", grad_x, xs.rows, xs.columns),
                                output("grad_weight", grad_weight, ws.rows, ws.columns),
                                optional_vector("grad_bias", grad_bias, ws.rows, true),
                                optional_vector("grad_norm_weight", grad_norm_weight, xs.columns, true),
                                optional_vector("grad_norm_bias", grad_norm_bias, xs.columns, true)};
  checked_threads(threads);
  py::gil_scoped_release released;
  kernels().project_backward(xs, in, ws, output_eps, outs, statistics, grads, gradients, threads);
}

}  // namespace

void bind_projection(py::module_& module) {
  using namespace py::literals;
  module.def("l2_normalize_forward", &l2_normalize_forward, "x"_a.noconvert(), "eps"_a, "y"_a.noconvert(),
             "inverse_norm"_a.noconvert(), "threads"_a);
  module.def("l2_normalize_backward", &l2_normalize_backward, "y"_a.noconvert(), "inverse_norm"_a.noconvert(),
             "grad_y"_a.noconvert(), "eps"_a, "grad_x"_a.noconvert(), "threads"_a);
  module.def("project_forward", &project_forward, "x"_a.noconvert(), "norm"_a, "norm_weight"_a.noconvert(),
             "norm_bias"_a.noconvert(), "norm_eps"_a, "weight"_a.noconvert(), "bias"_a.noconvert(), "output_eps"_a,
             "output"_a.noconvert(), "mean"_a.noconvert(), "inverse_std"_a.noconvert(), "inverse_norm"_a.noconvert(),
             "threads"_a);
  module.def("project_backward", &project_backward, "x"_a.noconvert(), "norm"_a, "norm_weight"_a.noconvert(),
             "norm_bias"_a.noconvert(), "norm_eps"_a, "weight"_a.noconvert(), "output_eps"_a, "output"_a.noconvert(),
             "mean"_a.noconvert(), "inverse_std"_a.noconvert(), "inverse_norm"_a.noconvert(),
             "grad_output"_a.noconvert(), "grad_x"_a.noconvert(), "grad_weight"_a.noconvert(),
             "grad_bias"_a.noconvert(), "grad_norm_weight"_a.noconvert(), "grad_norm_bias"_a.noconvert(), "threads"_a);
}

}  // namespace mmcore

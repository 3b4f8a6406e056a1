// Normalisation and projection over arrays.
#include "arrays.h"

namespace mmcore {
namespace {

void l2_normalize_forward(const Array& x, float eps, const Array& y, const Array& inverse_norm, int threads) {
  const AnyMatrix xs = any_matrix("x", x, -1, -1);
  const MutableAnyMatrix ys = any_output_like(xs, "y", y, xs.rows, xs.columns);
  float* norms = vector<float>("inverse_norm", inverse_norm, xs.rows, true);
  checked_threads(threads);
  py::gil_scoped_release released;
  kernels().l2_normalize_forward(xs, eps, ys, norms, threads);
}

void l2_normalize_backward(const Array& y, const Array& inverse_norm, const Array& grad_y, float eps,
                           const Array& grad_x, int threads) {
  const AnyMatrix ys = any_matrix("y", y, -1, -1), grads = any_matrix_like(ys, "grad_y", grad_y, ys.rows, ys.columns);
  const MutableAnyMatrix out = any_output_like(ys, "grad_x", grad_x, ys.rows, ys.columns);
  const float* norms = vector<float>("inverse_norm", inverse_norm, ys.rows);
  checked_threads(threads);
  py::gil_scoped_release released;
  kernels().l2_normalize_backward(ys, norms, grads, eps, out, threads);
}

Norm norm_of(const std::string& name) {
  if (name == "none") return Norm::kNone;
  if (name == "layer") return Norm::kLayer;
  if (name == "rms") return Norm::kRms;
  refuse("norm must be one of 'none', 'layer', 'rms', got '" + name + "'");
}

Held<ProjectionInputs> projection_inputs(const Array& x, const Array& weight, const Array& bias,
                                         const std::string& norm, const Array& norm_weight, const Array& norm_bias,
                                         float norm_eps, bool normalize, float eps, const std::string& precision) {
  ProjectionInputs inputs;
  inputs.x = any_matrix("x", x, -1, -1);
  const Index columns = inputs.x.columns;
  inputs.weight = any_matrix_like(inputs.x, "weight", weight, -1, columns);
  inputs.bias = optional_vector<float>("bias", bias, inputs.weight.rows);
  inputs.norm = {norm_of(norm), optional_vector<float>("norm_weight", norm_weight, columns),
                 optional_vector<float>("norm_bias", norm_bias, columns), norm_eps};
  inputs.normalize = normalize;
  inputs.eps = eps;
  inputs.precision = precision_of(precision);
  return {inputs, {x, weight, bias, norm_weight, norm_bias}};
}

// Those that the projection has; the others are not looked at.
ProjectionStatistics statistics_view(const ProjectionInputs& inputs, const Array& mean, const Array& inverse_std,
                                     const Array& inverse_norm, bool is_written) {
  const auto view = [&](const char* name, const Array& array, bool is_used) {
    return is_used ? vector<float>(name, array, inputs.x.rows, is_written) : nullptr;
  };
  return {view("mean", mean, inputs.norm.kind == Norm::kLayer),
          view("inverse_std", inverse_std, inputs.norm.kind != Norm::kNone),
          view("inverse_norm", inverse_norm, inputs.normalize)};
}

void project_forward(const Held<ProjectionInputs>& held, const Array& out, const Array& mean, const Array& inverse_std,
                     const Array& inverse_norm, int threads) {
  const ProjectionInputs& inputs = held.inputs();
  const MutableAnyMatrix outs = any_output_like(inputs.x, "output", out, inputs.x.rows, inputs.weight.rows);
  const ProjectionStatistics statistics = statistics_view(inputs, mean, inverse_std, inverse_norm, true);
  checked_threads(threads);
  py::gil_scoped_release released;
  kernels().project_forward(inputs, outs, statistics, threads);
}

void project_backward(const Held<ProjectionInputs>& held, const Array& out, const Array& mean, const Array& inverse_std,
                      const Array& inverse_norm, const Array& grad_output, const Array& grad_x,
                      const Array& grad_weight, const Array& grad_bias, const Array& grad_norm_weight,
                      const Array& grad_norm_bias, int threads) {
  const ProjectionInputs& inputs = held.inputs();
  const Index rows = inputs.x.rows, columns = inputs.x.columns, width = inputs.weight.rows;
  const AnyMatrix outs = any_matrix_like(inputs.x, "output", out, rows, width),
                  grads = any_matrix_like(inputs.x, "grad_output", grad_output, rows, width);
  const ProjectionStatistics statistics = statistics_view(inputs, mean, inverse_std, inverse_norm, false);
  ProjectionGradients gradients;
  if (!grad_x.is_none()) gradients.x = any_output_like(inputs.x, "grad_x", grad_x, rows, columns);
  gradients.weight = optional_output("grad_weight", grad_weight, width, columns);
  gradients.bias = optional_vector<float>("grad_bias", grad_bias, width, true);
  gradients.norm_weight = optional_vector<float>("grad_norm_weight", grad_norm_weight, columns, true);
  gradients.norm_bias = optional_vector<float>("grad_norm_bias", grad_norm_bias, columns, true);
  checked_threads(threads);
  py::gil_scoped_release released;
  kernels().project_backward(inputs, outs, statistics, grads, gradients, threads);
}

}  // namespace

void bind_projection(py::module_& module) {
  using namespace py::literals;
  module.def("l2_normalize_forward", &l2_normalize_forward, "x"_a, "eps"_a, "y"_a, "inverse_norm"_a, "threads"_a);
  module.def("l2_normalize_backward", &l2_normalize_backward, "y"_a, "inverse_norm"_a, "grad_y"_a, "eps"_a, "grad_x"_a,
             "threads"_a);
  py::class_<Held<ProjectionInputs>>(module, "ProjectionInputs")
      .def(py::init(&projection_inputs), "x"_a, "weight"_a, "bias"_a, "norm"_a, "norm_weight"_a, "norm_bias"_a,
           "norm_eps"_a, "normalize"_a, "eps"_a, "precision"_a);
  module.def("project_forward", &project_forward, "inputs"_a, "output"_a, "mean"_a, "inverse_std"_a, "inverse_norm"_a,
             "threads"_a);
  module.def("project_backward", &project_backward, "inputs"_a, "output"_a, "mean"_a, "inverse_std"_a, "inverse_norm"_a,
             "grad_output"_a, "grad_x"_a, "grad_weight"_a, "grad_bias"_a, "grad_norm_weight"_a, "grad_norm_bias"_a,
             "threads"_a);
}

}  // namespace mmcore

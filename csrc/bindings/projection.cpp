// Normalisation and projection over NumPy arrays.
#include "arrays.h"

namespace mmcore {
namespace {

void l2_normalize_forward(const py::array& x, float eps, const py::array& y, const Floats& inverse_norm, int threads) {
  const AnyMatrix xs = any_matrix("x", x, -1, -1);
  const MutableAnyMatrix ys = any_output_like(xs, "y", y, xs.rows, xs.columns);
  float* norms = output("inverse_norm", inverse_norm, xs.rows);
  checked_threads(threads);
  py::gil_scoped_release released;
  kernels().l2_normalize_forward(xs, eps, ys, norms, threads);
}

void l2_normalize_backward(const py::array& y, const Floats& inverse_norm, const py::array& grad_y, float eps,
                           const py::array& grad_x, int threads) {
  const AnyMatrix ys = any_matrix("y", y, -1, -1), grads = any_matrix_like(ys, "grad_y", grad_y, ys.rows, ys.columns);
  const MutableAnyMatrix out = any_output_like(ys, "grad_x", grad_x, ys.rows, ys.columns);
  const float* norms = vector("inverse_norm", inverse_norm, ys.rows);
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

// Views of the arrays that describe one projection, which it keeps alive.
class ProjectionArrays {
 public:
  ProjectionArrays(const py::array& x, const std::string& norm, const std::optional<Floats>& norm_weight,
                   const std::optional<Floats>& norm_bias, float norm_eps, const py::array& weight,
                   const std::optional<Floats>& bias, float output_eps, bool multiplies_bfloat16)
      : arrays_(py::make_tuple(x, norm_weight, norm_bias, weight, bias)) {
    inputs.x = any_matrix("x", x, -1, -1);
    inputs.norm = input_norm(norm, norm_weight, norm_bias, norm_eps, inputs.x.columns);
    inputs.weight = any_matrix_like(inputs.x, "weight", weight, -1, inputs.x.columns);
    inputs.bias = optional_vector("bias", bias, inputs.weight.rows);
    inputs.output_eps = output_eps;
    inputs.multiplies_bfloat16 = multiplies_bfloat16 && kernels().has_bfloat16_products;
  }

  // Those that the kind of the projection asks for.
  ProjectionStatistics statistics(const Floats& mean, const Floats& inverse_std, const Floats& inverse_norm,
                                  bool is_written) const {
    const auto view = [&](const char* name, const Floats& array, bool is_used) {
      return is_used ? vector(name, array, inputs.x.rows, is_written) : nullptr;
    };
    return {view("mean", mean, inputs.norm.kind == Norm::kLayer),
            view("inverse_std", inverse_std, inputs.norm.kind != Norm::kNone),
            view("inverse_norm", inverse_norm, inputs.output_eps > 0)};
  }

  ProjectionInputs inputs;

 private:
  py::tuple arrays_;
};

void project_forward(const ProjectionArrays& arrays, const py::array& out, const Floats& mean,
                     const Floats& inverse_std, const Floats& inverse_norm, int threads) {
  const ProjectionInputs& inputs = arrays.inputs;
  const MutableAnyMatrix outs = any_output_like(inputs.x, "output", out, inputs.x.rows, inputs.weight.rows);
  const ProjectionStatistics statistics = arrays.statistics(mean, inverse_std, inverse_norm, true);
  checked_threads(threads);
  py::gil_scoped_release released;
  kernels().project_forward(inputs, outs, statistics, threads);
}

void project_backward(const ProjectionArrays& arrays, const py::array& out, const Floats& mean,
                      const Floats& inverse_std, const Floats& inverse_norm, const py::array& grad_output,
                      const std::optional<py::array>& grad_x, const std::optional<Floats>& grad_weight,
                      const std::optional<Floats>& grad_bias, const std::optional<Floats>& grad_norm_weight,
                      const std::optional<Floats>& grad_norm_bias, int threads) {
  const ProjectionInputs& inputs = arrays.inputs;
  const Index rows = inputs.x.rows, columns = inputs.x.columns, width = inputs.weight.rows;
  const AnyMatrix outs = any_matrix_like(inputs.x, "output", out, rows, width),
                  grads = any_matrix_like(inputs.x, "grad_output", grad_output, rows, width);
  const ProjectionStatistics statistics = arrays.statistics(mean, inverse_std, inverse_norm, false);
  ProjectionGradients gradients;
  if (grad_x) gradients.x = any_output_like(inputs.x, "grad_x", *grad_x, rows, columns);
  if (grad_weight) gradients.weight = output("grad_weight", *grad_weight, width, columns);
  gradients.bias = optional_vector("grad_bias", grad_bias, width, true);
  gradients.norm_weight = optional_vector("grad_norm_weight", grad_norm_weight, columns, true);
  gradients.norm_bias = optional_vector("grad_norm_bias", grad_norm_bias, columns, true);
  checked_threads(threads);
  py::gil_scoped_release released;
  kernels().project_backward(inputs, outs, statistics, grads, gradients, threads);
}

}  // namespace

void bind_projection(py::module_& module) {
  using namespace py::literals;
  module.def("l2_normalize_forward", &l2_normalize_forward, "x"_a.noconvert(), "eps"_a, "y"_a.noconvert(),
             "inverse_norm"_a.noconvert(), "threads"_a);
  module.def("l2_normalize_backward", &l2_normalize_backward, "y"_a.noconvert(), "inverse_norm"_a.noconvert(),
             "grad_y"_a.noconvert(), "eps"_a, "grad_x"_a.noconvert(), "threads"_a);
  py::class_<ProjectionArrays>(module, "ProjectionInputs")
      .def(py::init<const py::array&, const std::string&, const std::optional<Floats>&, const std::optional<Floats>&,
                    float, const py::array&, const std::optional<Floats>&, float, bool>(),
           "x"_a.noconvert(), "norm"_a, "norm_weight"_a.noconvert(), "norm_bias"_a.noconvert(), "norm_eps"_a,
           "weight"_a.noconvert(), "bias"_a.noconvert(), "output_eps"_a, "multiplies_bfloat16"_a);
  module.def("project_forward", &project_forward, "inputs"_a, "output"_a.noconvert(), "mean"_a.noconvert(),
             "inverse_std"_a.noconvert(), "inverse_norm"_a.noconvert(), "threads"_a);
  module.def("project_backward", &project_backward, "inputs"_a, "output"_a.noconvert(), "mean"_a.noconvert(),
             "inverse_std"_a.noconvert(), "inverse_norm"_a.noconvert(), "grad_output"_a.noconvert(),
             "grad_x"_a.noconvert(), "grad_weight"_a.noconvert(), "grad_bias"_a.noconvert(),
             "grad_norm_weight"_a.noconvert(), "grad_norm_bias"_a.noconvert(), "threads"_a);
}

}  // namespace mmcore

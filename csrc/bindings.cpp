// The module mmcore._C: NumPy arrays in and out of the kernels. The only file that knows Python.
//
// Every function checks the shapes it relies on, so that no call from Python can read or write out of bounds; outputs
// are arrays of the caller's. torch tensors come in through Tensor.numpy(), which shares their memory.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>

#include "kernels.h"

namespace py = pybind11;

namespace mmcore {
namespace {

// `forcecast` is absent on purpose: an array of another dtype is refused, never copied.
using Floats = py::array_t<float, 0>;
using Doubles = py::array_t<double, 0>;
using Indices = py::array_t<Index, 0>;

[[noreturn]] void refuse(const std::string& message) { throw py::value_error(message); }

MutableMatrix matrix(const char* name, const Floats& array, Index rows, Index columns, bool is_written = false) {
  if (array.ndim() != 2) refuse(std::string(name) + " must have 2 dimensions, got " + std::to_string(array.ndim()));
  if ((rows >= 0 && array.shape(0) != rows) || (columns >= 0 && array.shape(1) != columns))
    refuse(std::string(name) + " must have shape (" + std::to_string(rows) + ", " + std::to_string(columns) +
           "), got (" + std::to_string(array.shape(0)) + ", " + std::to_string(array.shape(1)) + ")");
  const Index item = sizeof(float);
  if (array.size() == 0) return {nullptr, array.shape(0), array.shape(1), array.shape(1)};
  if (array.shape(1) > 1 && array.strides(1) != item) refuse(std::string(name) + " must have unit column stride");
  if (array.strides(0) % item != 0) refuse(std::string(name) + " must have a row stride of whole numbers");
  if (is_written && !array.writeable()) refuse(std::string(name) + " must be writeable");
  return {const_cast<float*>(array.data()), array.shape(0), array.shape(1), array.strides(0) / item};
}

MutableMatrix output(const char* name, const Floats& array, Index rows, Index columns) {
  return matrix(name, array, rows, columns, true);
}

template <class T>
T* vector(const char* name, const py::array_t<T, 0>& array, Index size, bool is_written = false) {
  if (array.ndim() != 1 || array.shape(0) != size)
    refuse(std::string(name) + " must have shape (" + std::to_string(size) + ",)");
  if (size > 1 && array.strides(0) != static_cast<Index>(sizeof(T))) refuse(std::string(name) + " must be contiguous");
  if (is_written && !array.writeable()) refuse(std::string(name) + " must be writeable");
  return const_cast<T*>(array.data());
}

template <class T>
T* output(const char* name, const py::array_t<T, 0>& array, Index size) {
  return vector(name, array, size, true);
}

float* optional_vector(const char* name, const std::optional<Floats>& array, Index size, bool is_written = false) {
  return array ? vector(name, *array, size, is_written) : nullptr;
}

int checked_threads(int threads) {
  if (threads < 1) refuse("threads must be at least 1, got " + std::to_string(threads));
  return threads;
}

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

SimilarityInputs similarity_inputs(const Floats& x, const Floats& y, double scale, double bias, const Indices& target) {
  MutableMatrix xs = matrix("x", x, -1, -1), ys = matrix("y", y, -1, xs.columns);
  const Index* targets = vector("target", target, xs.rows);
  if (xs.rows == 0 || ys.rows == 0) refuse("x and y must have at least one row");
  for (Index i = 0; i < xs.rows; ++i)
    if (targets[i] < -1 || targets[i] >= ys.rows)
      refuse("target must be in [-1, " + std::to_string(ys.rows) + "), got " + std::to_string(targets[i]) + " at row " +
             std::to_string(i));
  return {xs, ys, scale, bias, targets};
}

void softmax_similarity_forward(const Floats& x, const Floats& y, double scale, double bias, const Indices& target,
                                const Doubles& row_lse, const Doubles& col_lse, const Doubles& row_pos,
                                const Doubles& col_pos, int threads) {
  SimilarityInputs inputs = similarity_inputs(x, y, scale, bias, target);
  const Index rows = inputs.x.rows, columns = inputs.y.rows;
  SoftmaxStatistics statistics{output("row_lse", row_lse, rows), output("col_lse", col_lse, columns),
                               output("row_pos", row_pos, rows), output("col_pos", col_pos, columns)};
  checked_threads(threads);
  py::gil_scoped_release released;
  kernels().softmax_similarity_forward(inputs, statistics, threads);
}

std::pair<double, double> softmax_similarity_backward(const Floats& x, const Floats& y, double scale, double bias,
                                                      const Indices& target, const Doubles& row_lse,
                                                      const Doubles& col_lse, const Doubles& grad_row_lse,
                                                      const Doubles& grad_col_lse, const Doubles& grad_row_pos,
                                                      const Doubles& grad_col_pos, const Floats& grad_x,
                                                      const Floats& grad_y, int threads) {
  SimilarityInputs inputs = similarity_inputs(x, y, scale, bias, target);
  const Index rows = inputs.x.rows, columns = inputs.y.rows, depth = inputs.x.columns;
  SoftmaxStatistics statistics{vector("row_lse", row_lse, rows), vector("col_lse", col_lse, columns)};
  SoftmaxStatistics upstream{vector("grad_row_lse", grad_row_lse, rows), vector("grad_col_lse", grad_col_lse, columns),
                             vector("grad_row_pos", grad_row_pos, rows), vector("grad_col_pos", grad_col_pos, columns)};
  MutableMatrix out_x = output("grad_x", grad_x, rows, depth), out_y = output("grad_y", grad_y, columns, depth);
  checked_threads(threads);
  py::gil_scoped_release released;
  ScalarGradients scalars = kernels().softmax_similarity_backward(inputs, statistics, upstream, out_x, out_y, threads);
  return {scalars.scale, scalars.bias};
}

double measure_fma_peak(int threads) {
  checked_threads(threads);
  py::gil_scoped_release released;
  return kernels().measure_fma_peak(threads);
}

}  // namespace
}  // namespace mmcore

PYBIND11_MODULE(_C, module) {
  using namespace py::literals;
  module.doc() = "Compiled kernels of mmcore over NumPy arrays; shapes and units in csrc/kernels.h.";
  module.def("instruction_set", [] { return mmcore::kernels().instruction_set; });
  module.def("instruction_sets", &mmcore::instruction_sets);
  module.def("select_instruction_set", &mmcore::select_instruction_set, "name"_a);
  module.def("measure_fma_peak", &mmcore::measure_fma_peak, "threads"_a);
  module.def("l2_normalize_forward", &mmcore::l2_normalize_forward, "x"_a, "eps"_a, "y"_a, "inverse_norm"_a,
             "threads"_a);
  module.def("l2_normalize_backward", &mmcore::l2_normalize_backward, "y"_a, "inverse_norm"_a, "grad_y"_a, "eps"_a,
             "grad_x"_a, "threads"_a);
  module.def("project_forward", &mmcore::project_forward, "x"_a, "norm"_a, "norm_weight"_a, "norm_bias"_a, "norm_eps"_a,
             "weight"_a, "bias"_a, "output_eps"_a, "output"_a, "mean"_a, "inverse_std"_a, "inverse_norm"_a,
             "threads"_a);
  module.def("project_backward", &mmcore::project_backward, "x"_a, "norm"_a, "norm_weight"_a, "norm_bias"_a,
             "norm_eps"_a, "weight"_a, "output_eps"_a, "output"_a, "mean"_a, "inverse_std"_a, "inverse_norm"_a,
             "grad_output"_a, "grad_x"_a, "grad_weight"_a, "grad_bias"_a, "grad_norm_weight"_a, "grad_norm_bias"_a,
             "threads"_a);
  module.def("softmax_similarity_forward", &mmcore::softmax_similarity_forward, "x"_a, "y"_a, "scale"_a, "bias"_a,
             "target"_a, "row_lse"_a, "col_lse"_a, "row_pos"_a, "col_pos"_a, "threads"_a);
  module.def("softmax_similarity_backward", &mmcore::softmax_similarity_backward, "x"_a, "y"_a, "scale"_a, "bias"_a,
             "target"_a, "row_lse"_a, "col_lse"_a, "grad_row_lse"_a, "grad_col_lse"_a, "grad_row_pos"_a,
             "grad_col_pos"_a, "grad_x"_a, "grad_y"_a, "threads"_a);
}

// The similarity matrix over arrays.
#include <limits>

#include "arrays.h"

namespace mmcore {
namespace {

AnyMatrix features(const char* name, const Array& array, Index columns) {
  const AnyMatrix result = any_matrix(name, array, -1, columns);
  if (result.rows == 0 || result.columns == 0) refuse(std::string(name) + " must have a row and a column");
  if (result.rows > std::numeric_limits<std::int32_t>::max())
    refuse(std::string(name) + " must have fewer than 2^31 rows");
  return result;
}

Denominator denominator_of(const std::string& name) {
  if (name == "all") return Denominator::kAll;
  if (name == "negatives") return Denominator::kNegatives;
  if (name == "positives") return Denominator::kPositives;
  refuse("denominator must be one of 'all', 'negatives', 'positives', got '" + name + "'");
}

Positives positives_of(const std::string& name) {
  if (name == "sum") return Positives::kSum;
  if (name == "log_sum_exp") return Positives::kLogSumExp;
  refuse("positives must be 'sum' or 'log_sum_exp', got '" + name + "'");
}

void check_pairs(const SimilarityInputs& inputs) {
  const Pairs& pairs = inputs.pairs;
  if (pairs.target != nullptr && pairs.row_label != nullptr) refuse("target and labels must not be given together");
  if (pairs.row_label == nullptr && inputs.positives == Positives::kLogSumExp)
    refuse("positives must be 'sum' where there are no labels");
  if (!inputs.is_symmetric && (pairs.row_label == nullptr) != (pairs.col_label == nullptr))
    refuse("row_label and col_label must be given together");
  if (!inputs.is_symmetric && (pairs.row_group == nullptr) != (pairs.col_group == nullptr))
    refuse("row_group and col_group must be given together");
  for (Index i = 0; pairs.target != nullptr && i < inputs.x.rows; ++i)
    if (pairs.target[i] < -1 || pairs.target[i] >= inputs.y.rows)
      refuse("target must be in [-1, " + std::to_string(inputs.y.rows) + "), got " + std::to_string(pairs.target[i]) +
             " at row " + std::to_string(i));
}

Held<SimilarityInputs> similarity_inputs(const Array& x, const Array& y, double scale, double bias,
                                         const Array& row_bias, const Array& col_bias, const Array& target,
                                         const Array& row_label, const Array& col_label, const Array& row_group,
                                         const Array& col_group, const std::string& denominator, bool has_columns,
                                         const std::string& precision, const std::string& positives) {
  SimilarityInputs inputs;
  inputs.x = features("x", x, -1);
  inputs.is_symmetric = y.is_none();
  inputs.y = inputs.is_symmetric ? inputs.x : features("y", y, inputs.x.columns);
  if (inputs.y.dtype != inputs.x.dtype) throw py::type_error("y must have the dtype of x");
  inputs.scale = scale;
  inputs.bias = bias;
  const Index rows = inputs.x.rows, columns = inputs.y.rows;
  inputs.row_bias = optional_vector<double>("row_bias", row_bias, rows);
  if (inputs.is_symmetric && !col_bias.is_none()) refuse("col_bias must be None where y is x");
  inputs.col_bias = inputs.is_symmetric ? inputs.row_bias : optional_vector<double>("col_bias", col_bias, columns);
  inputs.pairs = {optional_vector<Index>("target", target, rows),
                  optional_vector<std::int32_t>("row_label", row_label, rows),
                  optional_vector<std::int32_t>("col_label", col_label, columns),
                  optional_vector<std::int32_t>("row_group", row_group, rows),
                  optional_vector<std::int32_t>("col_group", col_group, columns)};
  inputs.denominator = denominator_of(denominator);
  inputs.has_columns = has_columns;
  inputs.precision = precision_of(precision);
  inputs.positives = positives_of(positives);
  check_pairs(inputs);
  return {inputs, {x, y, row_bias, col_bias, target, row_label, col_label, row_group, col_group}};
}

SoftmaxStatistics statistics_view(const SimilarityInputs& inputs, const Array& row_lse, const Array& col_lse,
                                  const Array& row_pos, const Array& col_pos, bool is_written) {
  const Index rows = inputs.x.rows, columns = inputs.has_columns ? inputs.y.rows : 0;
  SoftmaxStatistics result{
      vector<double>("row_lse", row_lse, rows, is_written), vector<double>("col_lse", col_lse, columns, is_written),
      vector<double>("row_pos", row_pos, rows, is_written), vector<double>("col_pos", col_pos, columns, is_written)};
  if (!inputs.has_columns) result.col_lse = result.col_pos = nullptr;
  return result;
}

void softmax_similarity_forward(const Held<SimilarityInputs>& held, const Array& row_lse, const Array& col_lse,
                                const Array& row_pos, const Array& col_pos, const Array& kept, int threads) {
  const SimilarityInputs& inputs = held.inputs();
  const SoftmaxStatistics statistics = statistics_view(inputs, row_lse, col_lse, row_pos, col_pos, true);
  const Kept tiles = kept_view(kept, true);
  checked_threads(threads);
  py::gil_scoped_release released;
  kernels().softmax_similarity_forward(inputs, statistics, tiles, threads);
}

SimilarityGradients gradients_view(const SimilarityInputs& inputs, const Array& grad_x, const Array& grad_y) {
  if (inputs.is_symmetric && !grad_y.is_none()) refuse("grad_y must be None where y is x");
  SimilarityGradients gradients;
  gradients.x = optional_output("grad_x", grad_x, inputs.x.rows, inputs.x.columns);
  gradients.y = optional_output("grad_y", grad_y, inputs.y.rows, inputs.y.columns);
  return gradients;
}

double softmax_similarity_backward(const Held<SimilarityInputs>& held, const Array& row_lse, const Array& col_lse,
                                   const Array& row_pos, const Array& col_pos, const Array& grad_row_lse,
                                   const Array& grad_col_lse, const Array& grad_row_pos, const Array& grad_col_pos,
                                   const Array& kept, const Array& grad_x, const Array& grad_y,
                                   const Array& grad_row_bias, const Array& grad_col_bias, int threads) {
  const SimilarityInputs& inputs = held.inputs();
  // Gradients depend on these where they are logits of targets, or log-sum-exps: callers need not keep other sums.
  const bool are_joined = inputs.positives == Positives::kLogSumExp, has_targets = inputs.pairs.target != nullptr;
  const SoftmaxStatistics statistics =
                              statistics_view(inputs, row_lse, col_lse, are_joined || has_targets ? row_pos : row_lse,
                                              are_joined ? col_pos : col_lse, false),
                          upstream =
                              statistics_view(inputs, grad_row_lse, grad_col_lse, grad_row_pos, grad_col_pos, false);
  const Kept tiles = kept_view(kept, false);
  SimilarityGradients gradients = gradients_view(inputs, grad_x, grad_y);
  if (inputs.is_symmetric && !grad_col_bias.is_none()) refuse("grad_col_bias must be None where y is x");
  gradients.row_bias = optional_vector<double>("grad_row_bias", grad_row_bias, inputs.x.rows, true);
  gradients.col_bias = optional_vector<double>("grad_col_bias", grad_col_bias, inputs.y.rows, true);
  checked_threads(threads);
  py::gil_scoped_release released;
  kernels().softmax_similarity_backward(inputs, statistics, upstream, tiles, gradients, threads);
  return gradients.scale;
}

std::pair<double, double> sigmoid_similarity_forward(const Held<SimilarityInputs>& held, int threads) {
  const SimilarityInputs& inputs = held.inputs();
  checked_threads(threads);
  py::gil_scoped_release released;
  const SigmoidSums sums = kernels().sigmoid_similarity_forward(inputs, threads);
  return {sums.total, sums.positive};
}

std::tuple<double, double, double, double> sigmoid_similarity_gradients(const Held<SimilarityInputs>& held,
                                                                        double grad_total, double grad_positive,
                                                                        const Array& grad_x, const Array& grad_y,
                                                                        bool needs_bias, int threads) {
  const SimilarityInputs& inputs = held.inputs();
  SimilarityGradients gradients = gradients_view(inputs, grad_x, grad_y);
  gradients.needs_bias = needs_bias;
  checked_threads(threads);
  py::gil_scoped_release released;
  const SigmoidSums sums =
      kernels().sigmoid_similarity_gradients(inputs, {grad_total, grad_positive}, gradients, threads);
  return {sums.total, sums.positive, gradients.scale, gradients.bias};
}

PrefixInputs prefixes_of(const Held<SimilarityInputs>& held, const std::vector<Index>& ends, double eps) {
  const SimilarityInputs& matrix = held.inputs();
  if (matrix.pairs.target == nullptr || matrix.is_symmetric) refuse("inputs must have targets, and a y of their own");
  Index before = 0;
  for (Index end : ends) {
    if (end <= before || end > matrix.x.columns) refuse("ends must ascend from 1 to the columns of x");
    before = end;
  }
  if (ends.empty() || !(eps > 0)) refuse("ends must not be empty, and eps above 0");
  return {matrix, ends, eps};
}

PrefixStatistics statistics_view(const PrefixInputs& inputs, const Array& row_lse, const Array& col_lse,
                                 const Array& row_pos, bool is_written) {
  const Index prefixes = static_cast<Index>(inputs.ends.size()), rows = prefixes * inputs.matrix.x.rows;
  return {vector<double>("row_lse", row_lse, rows, is_written),
          vector<double>("col_lse", col_lse, prefixes * inputs.matrix.y.rows, is_written),
          vector<double>("row_pos", row_pos, rows, is_written)};
}

std::vector<Index> prefix_similarity_forward(const Held<SimilarityInputs>& held, const std::vector<Index>& ends,
                                             double eps, const Array& row_lse, const Array& col_lse,
                                             const Array& row_pos, const Array& kept, int threads) {
  const PrefixInputs inputs = prefixes_of(held, ends, eps);
  const PrefixStatistics statistics = statistics_view(inputs, row_lse, col_lse, row_pos, true);
  const Kept products = kept_view(kept, true);
  checked_threads(threads);
  py::gil_scoped_release released;
  return kernels().prefix_similarity_forward(inputs, statistics, products, threads);
}

double prefix_similarity_backward(const Held<SimilarityInputs>& held, const std::vector<Index>& ends, double eps,
                                  const Array& row_lse, const Array& col_lse, const Array& row_pos,
                                  const Array& grad_row_lse, const Array& grad_col_lse, const Array& grad_row_pos,
                                  const Array& kept, const Array& grad_x, const Array& grad_y, int threads) {
  const PrefixInputs inputs = prefixes_of(held, ends, eps);
  const PrefixStatistics statistics = statistics_view(inputs, row_lse, col_lse, row_pos, false),
                         upstream = statistics_view(inputs, grad_row_lse, grad_col_lse, grad_row_pos, false);
  const Kept products = kept_view(kept, false);
  SimilarityGradients gradients = gradients_view(inputs.matrix, grad_x, grad_y);
  checked_threads(threads);
  py::gil_scoped_release released;
  kernels().prefix_similarity_backward(inputs, statistics, upstream, products, gradients, threads);
  return gradients.scale;
}

DistillationInputs distillation_of(const Held<SimilarityInputs>& student, const Held<SimilarityInputs>& teacher) {
  const Index rows = student.inputs().x.rows;
  for (const SimilarityInputs* inputs : {&student.inputs(), &teacher.inputs()}) {
    if (inputs->is_symmetric || inputs->x.rows != rows || inputs->y.rows != rows)
      refuse("student and teacher must have as many rows on both sides");
    for (Index i = 0; i < rows; ++i)
      if (inputs->pairs.target == nullptr || inputs->pairs.target[i] != i)
        refuse("student and teacher must have the diagonal as targets");
  }
  return {student.inputs(), teacher.inputs()};
}

// In the order of DistillationStatistics; upstream has none of the teacher's.
DistillationStatistics statistics_view(const DistillationInputs& inputs, const std::vector<Array>& vectors,
                                       std::size_t count, bool is_written) {
  if (vectors.size() != count) refuse("statistics must be " + std::to_string(count));
  DistillationStatistics result;
  double** parts[] = {&result.row_lse,   &result.col_lse,         &result.positive,       &result.row_cross,
                      &result.col_cross, &result.teacher_row_lse, &result.teacher_col_lse};
  for (std::size_t k = 0; k < count; ++k)
    *parts[k] = vector<double>("statistics", vectors[k], inputs.student.x.rows, is_written);
  return result;
}

bool distillation_forward(const Held<SimilarityInputs>& student, const Held<SimilarityInputs>& teacher,
                          const std::vector<Array>& statistics, int threads) {
  const DistillationInputs inputs = distillation_of(student, teacher);
  const DistillationStatistics written = statistics_view(inputs, statistics, 7, true);
  checked_threads(threads);
  py::gil_scoped_release released;
  return kernels().distillation_forward(inputs, written, threads);
}

double distillation_backward(const Held<SimilarityInputs>& student, const Held<SimilarityInputs>& teacher,
                             const std::vector<Array>& statistics, const std::vector<Array>& upstream,
                             const Array& grad_x, const Array& grad_y, int threads) {
  const DistillationInputs inputs = distillation_of(student, teacher);
  const DistillationStatistics read = statistics_view(inputs, statistics, 7, false),
                               grad = statistics_view(inputs, upstream, 5, false);
  SimilarityGradients gradients = gradients_view(inputs.student, grad_x, grad_y);
  checked_threads(threads);
  py::gil_scoped_release released;
  kernels().distillation_backward(inputs, read, grad, gradients, threads);
  return gradients.scale;
}

void hardest_negatives(const Held<SimilarityInputs>& held, const Array& row_index, const Array& col_index,
                       int threads) {
  const SimilarityInputs& inputs = held.inputs();
  if (inputs.pairs.target == nullptr || inputs.is_symmetric) refuse("inputs must have targets, and a y of their own");
  Index* indices_of_rows = vector<Index>("row_index", row_index, inputs.x.rows, true);
  Index* indices_of_columns = vector<Index>("col_index", col_index, inputs.y.rows, true);
  checked_threads(threads);
  py::gil_scoped_release released;
  kernels().hardest_negatives(inputs, indices_of_rows, indices_of_columns, threads);
}

}  // namespace

void bind_similarity(py::module_& module) {
  using namespace py::literals;
  py::class_<Held<SimilarityInputs>>(module, "SimilarityInputs")
      .def(py::init(&similarity_inputs), "x"_a, "y"_a, "scale"_a, "bias"_a, "row_bias"_a, "col_bias"_a, "target"_a,
           "row_label"_a, "col_label"_a, "row_group"_a, "col_group"_a, "denominator"_a, "has_columns"_a, "precision"_a,
           "positives"_a);
  module.def("softmax_similarity_forward", &softmax_similarity_forward, "inputs"_a, "row_lse"_a, "col_lse"_a,
             "row_pos"_a, "col_pos"_a, "kept"_a, "threads"_a);
  module.def("softmax_similarity_backward", &softmax_similarity_backward, "inputs"_a, "row_lse"_a, "col_lse"_a,
             "row_pos"_a, "col_pos"_a, "grad_row_lse"_a, "grad_col_lse"_a, "grad_row_pos"_a, "grad_col_pos"_a, "kept"_a,
             "grad_x"_a, "grad_y"_a, "grad_row_bias"_a, "grad_col_bias"_a, "threads"_a);
  module.def("sigmoid_similarity_forward", &sigmoid_similarity_forward, "inputs"_a, "threads"_a);
  module.def("sigmoid_similarity_gradients", &sigmoid_similarity_gradients, "inputs"_a, "grad_total"_a,
             "grad_positive"_a, "grad_x"_a, "grad_y"_a, "needs_bias"_a, "threads"_a);
  module.def("prefix_similarity_forward", &prefix_similarity_forward, "inputs"_a, "ends"_a, "eps"_a, "row_lse"_a,
             "col_lse"_a, "row_pos"_a, "kept"_a, "threads"_a);
  module.def("prefix_similarity_backward", &prefix_similarity_backward, "inputs"_a, "ends"_a, "eps"_a, "row_lse"_a,
             "col_lse"_a, "row_pos"_a, "grad_row_lse"_a, "grad_col_lse"_a, "grad_row_pos"_a, "kept"_a, "grad_x"_a,
             "grad_y"_a, "threads"_a);
  module.def("hardest_negatives", &hardest_negatives, "inputs"_a, "row_index"_a, "col_index"_a, "threads"_a);
  module.def("distillation_forward", &distillation_forward, "student"_a, "teacher"_a, "statistics"_a, "threads"_a);
  module.def("distillation_backward", &distillation_backward, "student"_a, "teacher"_a, "statistics"_a, "upstream"_a,
             "grad_x"_a, "grad_y"_a, "threads"_a);
}

}  // namespace mmcore

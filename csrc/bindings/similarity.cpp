// The similarity matrix over NumPy arrays.
#include "arrays.h"

namespace mmcore {
namespace {

AnyMatrix features(const char* name, const py::array& array, Index columns) {
  const AnyMatrix result = any_matrix(name, array, -1, columns);
  if (array.size() == 0) refuse(std::string(name) + " must have a row and a column");
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

// Views of the arrays that describe one matrix, which it keeps alive.
class SimilarityArrays {
 public:
  SimilarityArrays(const py::array& x, const std::optional<py::array>& y, bool multiplies_bfloat16, double scale,
                   double bias, const std::optional<Doubles>& row_bias, const std::optional<Doubles>& col_bias,
                   const std::optional<Indices>& target, const std::optional<Ids>& row_label,
                   const std::optional<Ids>& col_label, const std::optional<Ids>& row_group,
                   const std::optional<Ids>& col_group, const std::string& denominator, bool has_columns,
                   const std::string& positives)
      : arrays_(py::make_tuple(x, y, row_bias, col_bias, target, row_label, col_label, row_group, col_group)) {
    inputs.x = features("x", x, -1);
    inputs.is_symmetric = !y;
    inputs.y = y ? features("y", *y, inputs.x.columns) : inputs.x;
    if (inputs.y.dtype != inputs.x.dtype) throw py::type_error("y must have the dtype of x");
    inputs.multiplies_bfloat16 = multiplies_bfloat16 && kernels().has_bfloat16_products;
    inputs.scale = scale;
    inputs.bias = bias;
    const Index rows = inputs.x.rows, columns = inputs.y.rows;
    inputs.row_bias = optional_vector("row_bias", row_bias, rows);
    if (inputs.is_symmetric && col_bias) refuse("col_bias must be None where y is x");
    inputs.col_bias = inputs.is_symmetric ? inputs.row_bias : optional_vector("col_bias", col_bias, columns);
    inputs.pairs = {optional_vector("target", target, rows), optional_vector("row_label", row_label, rows),
                    optional_vector("col_label", col_label, columns), optional_vector("row_group", row_group, rows),
                    optional_vector("col_group", col_group, columns)};
    inputs.denominator = denominator_of(denominator);
    inputs.has_columns = has_columns;
    inputs.positives = positives_of(positives);
    check_pairs();
  }

  SimilarityInputs inputs;

 private:
  void check_pairs() const {
    const Pairs& pairs = inputs.pairs;
    if (inputs.x.rows > std::numeric_limits<std::int32_t>::max() ||
        inputs.y.rows > std::numeric_limits<std::int32_t>::max())
      refuse("x and y must have fewer than 2^31 rows");
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

  py::tuple arrays_;
};

Kept kept_view(const Floats& kept, bool is_written) {
  return {vector("kept", kept, kept.ndim() == 1 ? kept.shape(0) : -1, is_written), kept.shape(0)};
}

SoftmaxStatistics statistics_view(const SimilarityInputs& inputs, const Doubles& row_lse, const Doubles& col_lse,
                                  const Doubles& row_pos, const Doubles& col_pos, bool is_written) {
  const Index rows = inputs.x.rows, columns = inputs.has_columns ? inputs.y.rows : 0;
  SoftmaxStatistics result{
      vector("row_lse", row_lse, rows, is_written), vector("col_lse", col_lse, columns, is_written),
      vector("row_pos", row_pos, rows, is_written), vector("col_pos", col_pos, columns, is_written)};
  if (!inputs.has_columns) result.col_lse = result.col_pos = nullptr;
  return result;
}

void softmax_similarity_forward(const SimilarityArrays& arrays, const Doubles& row_lse, const Doubles& col_lse,
                                const Doubles& row_pos, const Doubles& col_pos, const Floats& kept, int threads) {
  const SoftmaxStatistics statistics = statistics_view(arrays.inputs, row_lse, col_lse, row_pos, col_pos, true);
  const Kept tiles = kept_view(kept, true);
  checked_threads(threads);
  py::gil_scoped_release released;
  kernels().softmax_similarity_forward(arrays.inputs, statistics, tiles, threads);
}

SimilarityGradients gradients_view(const SimilarityInputs& inputs, const std::optional<Floats>& grad_x,
                                   const std::optional<Floats>& grad_y, bool needs_bias) {
  SimilarityGradients gradients;
  if (grad_x) gradients.x = output("grad_x", *grad_x, inputs.x.rows, inputs.x.columns);
  if (grad_y) gradients.y = output("grad_y", *grad_y, inputs.y.rows, inputs.y.columns);
  if (grad_y && inputs.is_symmetric) refuse("grad_y must be None where y is x");
  gradients.needs_bias = needs_bias;
  return gradients;
}

std::pair<double, double> softmax_similarity_backward(
    const SimilarityArrays& arrays, const Doubles& row_lse, const Doubles& col_lse, const Doubles& row_pos,
    const Doubles& col_pos, const Doubles& grad_row_lse, const Doubles& grad_col_lse, const Doubles& grad_row_pos,
    const Doubles& grad_col_pos, const Floats& kept, const std::optional<Floats>& grad_x,
    const std::optional<Floats>& grad_y, bool needs_bias, const std::optional<Doubles>& grad_row_bias,
    const std::optional<Doubles>& grad_col_bias, int threads) {
  const SimilarityInputs& inputs = arrays.inputs;
  // Sums of positives have no say in the gradients, so that callers need not have kept them.
  const bool needs_positives = inputs.positives == Positives::kLogSumExp;
  const Doubles &of_rows = needs_positives ? row_pos : row_lse, &of_columns = needs_positives ? col_pos : col_lse;
  const SoftmaxStatistics statistics = statistics_view(inputs, row_lse, col_lse, of_rows, of_columns, false),
                          upstream =
                              statistics_view(inputs, grad_row_lse, grad_col_lse, grad_row_pos, grad_col_pos, false);
  const Kept tiles = kept_view(kept, false);
  SimilarityGradients gradients = gradients_view(inputs, grad_x, grad_y, needs_bias);
  if (grad_col_bias && inputs.is_symmetric) refuse("grad_col_bias must be None where y is x");
  gradients.row_bias = optional_vector("grad_row_bias", grad_row_bias, inputs.x.rows, true);
  gradients.col_bias = optional_vector("grad_col_bias", grad_col_bias, inputs.y.rows, true);
  checked_threads(threads);
  py::gil_scoped_release released;
  kernels().softmax_similarity_backward(inputs, statistics, upstream, tiles, gradients, threads);
  return {gradients.scale, gradients.bias};
}

std::pair<double, double> sigmoid_similarity_forward(const SimilarityArrays& arrays, int threads) {
  checked_threads(threads);
  py::gil_scoped_release released;
  const SigmoidSums sums = kernels().sigmoid_similarity_forward(arrays.inputs, threads);
  return {sums.total, sums.positive};
}

std::tuple<double, double, double, double> sigmoid_similarity_gradients(const SimilarityArrays& arrays,
                                                                        double grad_total, double grad_positive,
                                                                        const std::optional<Floats>& grad_x,
                                                                        const std::optional<Floats>& grad_y,
                                                                        bool needs_bias, int threads) {
  SimilarityGradients gradients = gradients_view(arrays.inputs, grad_x, grad_y, needs_bias);
  checked_threads(threads);
  py::gil_scoped_release released;
  const SigmoidSums sums =
      kernels().sigmoid_similarity_gradients(arrays.inputs, {grad_total, grad_positive}, gradients, threads);
  return {sums.total, sums.positive, gradients.scale, gradients.bias};
}

PrefixInputs prefixes_of(const SimilarityArrays& arrays, const std::vector<Index>& ends, double eps) {
  if (arrays.inputs.pairs.target == nullptr || arrays.inputs.is_symmetric)
    refuse("inputs must have targets, and a y of their own");
  Index before = 0;
  for (Index end : ends) {
    if (end <= before || end > arrays.inputs.x.columns) refuse("ends must ascend from 1 to the columns of x");
    before = end;
  }
  if (ends.empty() || !(eps > 0)) refuse("ends must not be empty, and eps above 0");
  return {arrays.inputs, ends, eps};
}

PrefixStatistics statistics_view(const PrefixInputs& inputs, const Doubles& row_lse, const Doubles& col_lse,
                                 const Doubles& row_pos, bool is_written) {
  const Index prefixes = static_cast<Index>(inputs.ends.size()), rows = prefixes * inputs.matrix.x.rows;
  return {vector("row_lse", row_lse, rows, is_written),
          vector("col_lse", col_lse, prefixes * inputs.matrix.y.rows, is_written),
          vector("row_pos", row_pos, rows, is_written)};
}

std::vector<Index> prefix_similarity_forward(const SimilarityArrays& arrays, const std::vector<Index>& ends, double eps,
                                             const Doubles& row_lse, const Doubles& col_lse, const Doubles& row_pos,
                                             const Floats& kept, int threads) {
  const PrefixInputs inputs = prefixes_of(arrays, ends, eps);
  const PrefixStatistics statistics = statistics_view(inputs, row_lse, col_lse, row_pos, true);
  const Kept products = kept_view(kept, true);
  checked_threads(threads);
  py::gil_scoped_release released;
  return kernels().prefix_similarity_forward(inputs, statistics, products, threads);
}

double prefix_similarity_backward(const SimilarityArrays& arrays, const std::vector<Index>& ends, double eps,
                                  const Doubles& row_lse, const Doubles& col_lse, const Doubles& row_pos,
                                  const Doubles& grad_row_lse, const Doubles& grad_col_lse, const Doubles& grad_row_pos,
                                  const Floats& kept, const std::optional<Floats>& grad_x,
                                  const std::optional<Floats>& grad_y, int threads) {
  const PrefixInputs inputs = prefixes_of(arrays, ends, eps);
  const PrefixStatistics statistics = statistics_view(inputs, row_lse, col_lse, row_pos, false),
                         upstream = statistics_view(inputs, grad_row_lse, grad_col_lse, grad_row_pos, false);
  const Kept products = kept_view(kept, false);
  SimilarityGradients gradients = gradients_view(inputs.matrix, grad_x, grad_y, false);
  checked_threads(threads);
  py::gil_scoped_release released;
  kernels().prefix_similarity_backward(inputs, statistics, upstream, products, gradients, threads);
  return gradients.scale;
}

DistillationInputs distillation_of(const SimilarityArrays& student, const SimilarityArrays& teacher) {
  const Index rows = student.inputs.x.rows;
  for (const SimilarityInputs* inputs : {&student.inputs, &teacher.inputs}) {
    if (inputs->is_symmetric || inputs->x.rows != rows || inputs->y.rows != rows)
      refuse("student and teacher must have as many rows on both sides");
    for (Index i = 0; i < rows; ++i)
      if (inputs->pairs.target == nullptr || inputs->pairs.target[i] != i)
        refuse("student and teacher must have the diagonal as targets");
  }
  return {student.inputs, teacher.inputs};
}

// In the order of DistillationStatistics; upstream has none of the teacher's.
DistillationStatistics statistics_view(const DistillationInputs& inputs, const std::vector<Doubles>& vectors,
                                       std::size_t count, bool is_written) {
  if (vectors.size() != count) refuse("statistics must be " + std::to_string(count));
  DistillationStatistics result;
  double** parts[] = {&result.row_lse,   &result.col_lse,         &result.positive,       &result.row_cross,
                      &result.col_cross, &result.teacher_row_lse, &result.teacher_col_lse};
  for (std::size_t k = 0; k < count; ++k)
    *parts[k] = vector("statistics", vectors[k], inputs.student.x.rows, is_written);
  return result;
}

bool distillation_forward(const SimilarityArrays& student, const SimilarityArrays& teacher,
                          const std::vector<Doubles>& statistics, int threads) {
  const DistillationInputs inputs = distillation_of(student, teacher);
  const DistillationStatistics written = statistics_view(inputs, statistics, 7, true);
  checked_threads(threads);
  py::gil_scoped_release released;
  return kernels().distillation_forward(inputs, written, threads);
}

double distillation_backward(const SimilarityArrays& student, const SimilarityArrays& teacher,
                             const std::vector<Doubles>& statistics, const std::vector<Doubles>& upstream,
                             const std::optional<Floats>& grad_x, const std::optional<Floats>& grad_y, int threads) {
  const DistillationInputs inputs = distillation_of(student, teacher);
  const DistillationStatistics read = statistics_view(inputs, statistics, 7, false),
                               grad = statistics_view(inputs, upstream, 5, false);
  SimilarityGradients gradients = gradients_view(inputs.student, grad_x, grad_y, false);
  checked_threads(threads);
  py::gil_scoped_release released;
  kernels().distillation_backward(inputs, read, grad, gradients, threads);
  return gradients.scale;
}

void hardest_negatives(const SimilarityArrays& arrays, const Indices& row_index, const Indices& col_index,
                       int threads) {
  const SimilarityInputs& inputs = arrays.inputs;
  if (inputs.pairs.target == nullptr || inputs.is_symmetric) refuse("inputs must have targets, and a y of their own");
  Index* of_rows = output("row_index", row_index, inputs.x.rows);
  Index* of_columns = output("col_index", col_index, inputs.y.rows);
  checked_threads(threads);
  py::gil_scoped_release released;
  kernels().hardest_negatives(inputs, of_rows, of_columns, threads);
}

}  // namespace

void bind_similarity(py::module_& module) {
  using namespace py::literals;
  py::class_<SimilarityArrays>(module, "SimilarityInputs")
      .def(py::init<const py::array&, const std::optional<py::array>&, bool, double, double,
                    const std::optional<Doubles>&, const std::optional<Doubles>&, const std::optional<Indices>&,
                    const std::optional<Ids>&, const std::optional<Ids>&, const std::optional<Ids>&,
                    const std::optional<Ids>&, const std::string&, bool, const std::string&>(),
           "x"_a.noconvert(), "y"_a.noconvert(), "multiplies_bfloat16"_a, "scale"_a, "bias"_a, "row_bias"_a.noconvert(),
           "col_bias"_a.noconvert(), "target"_a.noconvert(), "row_label"_a.noconvert(), "col_label"_a.noconvert(),
           "row_group"_a.noconvert(), "col_group"_a.noconvert(), "denominator"_a, "has_columns"_a, "positives"_a);
  module.def("softmax_similarity_forward", &softmax_similarity_forward, "inputs"_a, "row_lse"_a.noconvert(),
             "col_lse"_a.noconvert(), "row_pos"_a.noconvert(), "col_pos"_a.noconvert(), "kept"_a.noconvert(),
             "threads"_a);
  module.def("softmax_similarity_backward", &softmax_similarity_backward, "inputs"_a, "row_lse"_a.noconvert(),
             "col_lse"_a.noconvert(), "row_pos"_a.noconvert(), "col_pos"_a.noconvert(), "grad_row_lse"_a.noconvert(),
             "grad_col_lse"_a.noconvert(), "grad_row_pos"_a.noconvert(), "grad_col_pos"_a.noconvert(),
             "kept"_a.noconvert(), "grad_x"_a.noconvert(), "grad_y"_a.noconvert(), "needs_bias"_a,
             "grad_row_bias"_a.noconvert(), "grad_col_bias"_a.noconvert(), "threads"_a);
  module.def("sigmoid_similarity_forward", &sigmoid_similarity_forward, "inputs"_a, "threads"_a);
  module.def("sigmoid_similarity_gradients", &sigmoid_similarity_gradients, "inputs"_a, "grad_total"_a,
             "grad_positive"_a, "grad_x"_a.noconvert(), "grad_y"_a.noconvert(), "needs_bias"_a, "threads"_a);
  module.def("prefix_similarity_forward", &prefix_similarity_forward, "inputs"_a, "ends"_a, "eps"_a,
             "row_lse"_a.noconvert(), "col_lse"_a.noconvert(), "row_pos"_a.noconvert(), "kept"_a.noconvert(),
             "threads"_a);
  module.def("prefix_similarity_backward", &prefix_similarity_backward, "inputs"_a, "ends"_a, "eps"_a,
             "row_lse"_a.noconvert(), "col_lse"_a.noconvert(), "row_pos"_a.noconvert(), "grad_row_lse"_a.noconvert(),
             "grad_col_lse"_a.noconvert(), "grad_row_pos"_a.noconvert(), "kept"_a.noconvert(), "grad_x"_a.noconvert(),
             "grad_y"_a.noconvert(), "threads"_a);
  module.def("hardest_negatives", &hardest_negatives, "inputs"_a, "row_index"_a.noconvert(), "col_index"_a.noconvert(),
             "threads"_a);
  module.def("distillation_forward", &distillation_forward, "student"_a, "teacher"_a, "statistics"_a, "threads"_a);
  module.def("distillation_backward", &distillation_backward, "student"_a, "teacher"_a, "statistics"_a, "upstream"_a,
             "grad_x"_a.noconvert(), "grad_y"_a.noconvert(), "threads"_a);
}

}  // namespace mmcore

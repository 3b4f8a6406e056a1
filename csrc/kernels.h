// Table of contents of the native core: every kernel, with shapes and units.
//
// One `Kernels` table is filled per instruction set (cpu/kernels.cpp) and one of them is chosen at run time
// (cpu/dispatch.cpp). Nothing here knows Python or torch, nothing allocates its outputs, and every kernel
// computes the same bits for the same inputs and number of threads.
//
// N rows of x, M rows of y, D embedding width, K input width of a projection.
// Features, and what a projection reads and writes by rows, come in any Dtype, everything else is float32; statistics
// of the similarity matrix are float64, because their differences are what matters.
#pragma once

#include <string>
#include <vector>

#include "matrix.h"

namespace mmcore {

// What a kernel may do to the operands of a product: nothing (kHighest), split float32 numbers in two bfloat16 each and
// sum three products (kHigh), or round them to bfloat16 (kMedium). Sums are float32. Where an instruction set has no
// such product, the operands stay as they are.
enum class Precision { kHighest, kHigh, kMedium };

enum class Norm { kNone, kLayer, kRms };

// The normalisation before a projection. weight and bias are (K,) and may be nullptr.
struct InputNorm {
  Norm kind = Norm::kNone;
  const float* weight = nullptr;
  const float* bias = nullptr;
  float eps = 0;
};

// What project_forward stores for project_backward. Each is (N,); those that do not apply are nullptr.
struct ProjectionStatistics {
  float* mean = nullptr;          // of a row of x, layer norm only
  float* inverse_std = nullptr;   // 1 / sqrt(variance + eps), layer and RMS norm
  float* inverse_norm = nullptr;  // 1 / max(‖output row‖, eps), where the output is L2-normalised
};

// output (N, D) = norm(x) · weightᵀ + bias, L2-normalised where `normalize` says so
struct ProjectionInputs {
  AnyMatrix x;                  // (N, K)
  AnyMatrix weight;             // (D, K), in the dtype of x
  const float* bias = nullptr;  // (D,); nullptr: none
  InputNorm norm;
  bool normalize = false;
  float eps = 0;                              // of the L2 normalisation: shorter rows are divided by it
  Precision precision = Precision::kHighest;  // of the products with the weight and of those of its gradients
};

// nullptr: that gradient is not wanted.
struct ProjectionGradients {
  MutableAnyMatrix x;            // (N, K), in the dtype of x
  MutableMatrix weight;          // (D, K), float32 sums before any rounding; must be zero on entry
  float* bias = nullptr;         // (D,)
  float* norm_weight = nullptr;  // (K,)
  float* norm_bias = nullptr;    // (K,)
};

// The pairs that the log-sum-exp of a row or column sums.
enum class Denominator { kAll, kNegatives, kPositives };

// The statistic of the positives of a row or column: Σ s or, for labels only, log Σ exp s.
enum class Positives { kSum, kLogSumExp };

// Which pairs are positives, and which are excluded from denominators. Equal ids match; negative ones match nothing. A
// target's pair is a positive and never excluded; a pair of equal labels is a positive unless its groups exclude it.
// Where y is x the columns' ids are the rows' and may be nullptr.
struct Pairs {
  const Index* target = nullptr;            // (N,) in [-1, M); nullptr: labels
  const std::int32_t* row_label = nullptr;  // (N,); nullptr: none
  const std::int32_t* col_label = nullptr;  // (M,)
  const std::int32_t* row_group = nullptr;  // (N,); nullptr: none
  const std::int32_t* col_group = nullptr;  // (M,)
};

// The logit of a pair is scale·⟨x_i, y_j⟩ + bias + row_bias_i + col_bias_j.
struct SimilarityInputs {
  AnyMatrix x;  // (N, D)
  AnyMatrix y;  // (M, D); x where y is x
  double scale = 1;
  double bias = 0;
  const double* row_bias = nullptr;  // (N,)
  const double* col_bias = nullptr;  // (M,); row_bias where y is x
  Pairs pairs;
  Denominator denominator = Denominator::kAll;
  bool has_columns = true;                    // whether the columns' statistics exist
  Precision precision = Precision::kHighest;  // of the products of features and of those of their gradients
  Positives positives = Positives::kSum;
  bool is_symmetric = false;  // y is x: (j, i) has the logit of (i, j), and half of the products are computed
};

struct SoftmaxStatistics {
  double* row_lse = nullptr;  // (N,) nats; -inf where nothing is counted
  double* col_lse = nullptr;  // (M,) nats
  double* row_pos = nullptr;  // (N,) of the logits of the row's positives
  double* col_pos = nullptr;  // (M,)
};

// Tiles kept from a forward for its backward; size 0: none.
struct Kept {
  float* data = nullptr;
  Index size = 0;
};

// float32 sums before any rounding. nullptr: that gradient is not wanted. x and y must be zero on entry.
struct SimilarityGradients {
  MutableMatrix x;             // (N, D)
  MutableMatrix y;             // (M, D); where y is x, x holds the gradient of both
  double* row_bias = nullptr;  // (N,)
  double* col_bias = nullptr;  // (M,)
  double scale = 0;
  bool needs_bias = false;  // `bias` is set by the sigmoid kernels only
  double bias = 0;
  double power = 1;  // of two, by which the caller has multiplied the upstream gradients: x, y, scale are divided by it
};

struct SigmoidSums {
  double total = 0, positive = 0;
};

// Prefixes of the width, each normalised anew: the logit of a pair is scale·⟨x_i[:d], y_j[:d]⟩ over both norms.
struct PrefixInputs {
  SimilarityInputs matrix;  // with targets; labels, biases, the denominator and is_symmetric are not read
  std::vector<Index> ends;  // d of each of the K prefixes, ascending, the last at most D
  double eps = 0;           // norms below it count as it
};

struct PrefixStatistics {
  double* row_lse = nullptr;  // (K, N) nats
  double* col_lse = nullptr;  // (K, M) nats
  double* row_pos = nullptr;  // (K, N) the logit of the row's target; 0 without one
};

// Row i of x belongs to row i of y, of student and teacher alike: both have the diagonal as targets.
struct DistillationInputs {
  SimilarityInputs student, teacher;
};

// Each (N,).
struct DistillationStatistics {
  double *row_lse = nullptr, *col_lse = nullptr;                  // of the student, nats
  double* positive = nullptr;                                     // the student's logits on the diagonal
  double *row_cross = nullptr, *col_cross = nullptr;              // means of its logits under the teacher's softmaxes
  double *teacher_row_lse = nullptr, *teacher_col_lse = nullptr;  // nats
};

// How well an item fits a query, and what selects candidates for it (mmcore/backends/retrieval.py).
enum class Metric { kInnerProduct, kCosine, kL2 };
enum class FirstPass { kAuto, kFull, kInt8 };

// The rows of a gallery as bytes, with what bounds their scores (cpu/topk_terms.h).
struct ByteGallery {
  std::int8_t* bytes = nullptr;  // (M, stride), zeros from D on; nullptr: none
  Index stride = 0;
  float *factor = nullptr, *norm = nullptr, *residual = nullptr, *square = nullptr;  // (M,)
  std::int32_t* sum = nullptr;                                                       // (M,) of the bytes of a row
};

// All queries, and one chunk of the gallery. nullptr: none.
struct TopkInputs {
  AnyMatrix queries;  // (N, D)
  AnyMatrix gallery;  // (M, D), in the dtype of the queries; M < 2³¹
  Index k = 1;
  Metric metric = Metric::kInnerProduct;
  Index offset = 0;                      // the number of the chunk's first row in the whole gallery
  const double* bias = nullptr;          // (M,)
  const Index* query_group = nullptr;    // (N,); −1 equals nothing
  const Index* gallery_group = nullptr;  // (M,)
  const Index* excluded = nullptr;       // (N,) numbers in the whole gallery
  FirstPass first_pass = FirstPass::kAuto;
  ByteGallery prepared;
};

// (N, k) each, in the order (−score, index); short rows end in (−∞, −1).
struct FoundItems {
  double* scores = nullptr;
  Index* indices = nullptr;
};

struct Kernels {
  const char* instruction_set;
  bool has_bfloat16_products;  // whether operands of precision kMedium are multiplied as bfloat16
  bool has_matrix_unit;        // whether tiles are multiplied

  // y = x / max(‖x‖, eps), inverse_norm = 1 / max(‖x‖, eps)
  // All in the dtype of x.
  void (*l2_normalize_forward)(const AnyMatrix& x, float eps, const MutableAnyMatrix& y, float* inverse_norm,
                               int threads);
  void (*l2_normalize_backward)(const AnyMatrix& y, const float* inverse_norm, const AnyMatrix& grad_y, float eps,
                                const MutableAnyMatrix& grad_x, int threads);

  // output and grad_output have the dtype of x.
  void (*project_forward)(const ProjectionInputs& inputs, const MutableAnyMatrix& output,
                          const ProjectionStatistics& statistics, int threads);
  void (*project_backward)(const ProjectionInputs& inputs, const AnyMatrix& output,
                           const ProjectionStatistics& statistics, const AnyMatrix& grad_output,
                           const ProjectionGradients& gradients, int threads);

  void (*softmax_similarity_forward)(const SimilarityInputs& inputs, const SoftmaxStatistics& statistics, Kept kept,
                                     int threads);
  // upstream holds dL/d(each statistic). Of the statistics, row_pos is read where it is the logits of targets, and both
  // row_pos and col_pos where they are log-sum-exps. Needs gradients.x or gradients.y for gradients.scale.
  void (*softmax_similarity_backward)(const SimilarityInputs& inputs, const SoftmaxStatistics& statistics,
                                      const SoftmaxStatistics& upstream, Kept kept, SimilarityGradients& gradients,
                                      int threads);

  SigmoidSums (*sigmoid_similarity_forward)(const SimilarityInputs& inputs, int threads);
  // The sums, and in the same pass the gradients for dL/d(total) = upstream.total, dL/d(positive) = upstream.positive.
  SigmoidSums (*sigmoid_similarity_gradients)(const SimilarityInputs& inputs, SigmoidSums upstream,
                                              SimilarityGradients& gradients, int threads);

  // The statistics of all prefixes. Returns the numbers of those that this kernel cannot compute: their rows or columns
  // lie too far below |scale|.
  std::vector<Index> (*prefix_similarity_forward)(const PrefixInputs& inputs, const PrefixStatistics& statistics,
                                                  Kept kept, int threads);
  // upstream holds dL/d(each statistic). Sets gradients.x, .y and .scale.
  void (*prefix_similarity_backward)(const PrefixInputs& inputs, const PrefixStatistics& statistics,
                                     const PrefixStatistics& upstream, Kept kept, SimilarityGradients& gradients,
                                     int threads);

  // False where this kernel cannot compute the statistics: norms or scales are too large, or a row too far below them.
  bool (*distillation_forward)(const DistillationInputs& inputs, const DistillationStatistics& statistics, int threads);
  // upstream holds dL/d(each statistic but the teacher's). Sets gradients.x, .y and .scale, of the student.
  void (*distillation_backward)(const DistillationInputs& inputs, const DistillationStatistics& statistics,
                                const DistillationStatistics& upstream, SimilarityGradients& gradients, int threads);

  // The column of the largest product of each row (N,), and the row of that of each column (M,), among pairs that are
  // neither targets nor of equal groups; −1 where there is none. Labels, biases and the denominator are not read; y is
  // not x.
  void (*hardest_negatives)(const SimilarityInputs& inputs, Index* row_index, Index* col_index, int threads);

  // The k best items of each query in the chunk and in `best`, which may have nullptr: what earlier chunks have found.
  void (*topk)(const TopkInputs& inputs, const FoundItems& best, const FoundItems& found, int threads);
  void (*prepare_gallery)(const AnyMatrix& gallery, Metric metric, const ByteGallery& prepared, int threads);

  // GFLOP/s of independent multiply-adds that touch no memory: the peak with which other kernels are compared. In
  // float32, or of bfloat16 pairs that are summed in float32.
  double (*measure_peak)(bool in_bfloat16, int threads);
};

// The chosen table: the widest instruction set that was built and that this processor has, unless lowered.
const Kernels& kernels();
// Names of the instruction sets that were built and that this processor has, in ascending order of preference.
std::vector<std::string> instruction_sets();
// False when `name` is not one of instruction_sets().
bool select_instruction_set(const std::string& name);
// Why the instruction set "amx" is not one of them; empty where it is.
std::string obstacle_to_matrix_unit();

}  // namespace mmcore

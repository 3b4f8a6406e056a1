// Table of contents of the native core: every kernel, with shapes and units.
//
// One `Kernels` table is filled per instruction set (cpu/kernels.cpp) and one of them is chosen at run time
// (cpu/dispatch.cpp). Nothing here knows Python or torch, nothing allocates its outputs, and every kernel
// computes the same bits for the same inputs and number of threads.
//
// N rows of x, M rows of y, D embedding width, K input width of a projection.
// float32 data; statistics of the similarity matrix are float64, because their differences are what matters.
#pragma once

#include <string>
#include <vector>

#include "matrix.h"

namespace mmcore {

enum class Norm { kNone, kLayer, kRms };

// Which normalisation precedes a projection. weight and bias are (K,) and may be nullptr.
struct InputNorm {
  Norm kind = Norm::kNone;
  const float* weight = nullptr;
  const float* bias = nullptr;
  float eps = 0;
};

// What project_forward leaves for project_backward. Each is (N,); those that do not apply are nullptr.
struct ProjectionStatistics {
  float* mean = nullptr;          // of a row of x, layer norm only
  float* inverse_std = nullptr;   // 1 / sqrt(variance + eps), layer and RMS norm
  float* inverse_norm = nullptr;  // 1 / max(‖output row‖, eps), where the output is L2-normalised
};

struct ProjectionGradients {
  MutableMatrix x;               // (N, K)
  MutableMatrix weight;          // (D, K)
  float* bias = nullptr;         // (D,)
  float* norm_weight = nullptr;  // (K,)
  float* norm_bias = nullptr;    // (K,)
};

// The logit of a pair is scale·⟨x_i, y_j⟩ + bias, and target[i] in [-1, M) is the column of row i's positive (-1:
// none).
struct SimilarityInputs {
  ConstMatrix x;  // (N, D)
  ConstMatrix y;  // (M, D)
  double scale = 1;
  double bias = 0;
  const Index* target = nullptr;  // (N,)
};

struct SoftmaxStatistics {
  double* row_lse = nullptr;  // (N,) nats
  double* col_lse = nullptr;  // (M,) nats
  double* row_pos = nullptr;  // (N,) logit of the positive, 0 where there is none
  double* col_pos = nullptr;  // (M,) sum over the rows whose positive is this column
};

struct ScalarGradients {
  double scale, bias;
};

struct Kernels {
  const char* instruction_set;
  int lanes;  // float32 numbers per vector register

  // y = x / max(‖x‖, eps), inverse_norm = 1 / max(‖x‖, eps)
  void (*l2_normalize_forward)(ConstMatrix x, float eps, MutableMatrix y, float* inverse_norm, int threads);
  void (*l2_normalize_backward)(ConstMatrix y, const float* inverse_norm, ConstMatrix grad_y, float eps,
                                MutableMatrix grad_x, int threads);

  // output (N, D) = l2_normalize(norm(x) · weightᵀ + bias); bias may be nullptr; output_eps <= 0: not normalised.
  void (*project_forward)(ConstMatrix x, InputNorm norm, ConstMatrix weight, const float* bias, float output_eps,
                          MutableMatrix output, ProjectionStatistics statistics, int threads);
  void (*project_backward)(ConstMatrix x, InputNorm norm, ConstMatrix weight, float output_eps, ConstMatrix output,
                           ProjectionStatistics statistics, ConstMatrix grad_output, ProjectionGradients gradients,
                           int threads);

  void (*softmax_similarity_forward)(SimilarityInputs inputs, SoftmaxStatistics statistics, int threads);
  // upstream holds dL/d(each statistic); grad_x and grad_y must be zero on entry.
  ScalarGradients (*softmax_similarity_backward)(SimilarityInputs inputs, SoftmaxStatistics statistics,
                                                 SoftmaxStatistics upstream, MutableMatrix grad_x, MutableMatrix grad_y,
                                                 int threads);

  // GFLOP/s of independent multiply-adds that touch no memory: the roof the other kernels are held against.
  double (*measure_fma_peak)(int threads);
};

// The chosen table: the widest instruction set that was built and that this processor has, unless lowered.
const Kernels& kernels();
// Names of the instruction sets that were built and that this processor has, in ascending order of preference.
std::vector<std::string> instruction_sets();
// False when `name` is not one of instruction_sets().
bool select_instruction_set(const std::string& name);

}  // namespace mmcore

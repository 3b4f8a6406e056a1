// LayerNorm and RMSNorm of single rows, the first step of a projection.
//
//   n = (x − mean) · inverse_std,   x̂ = n · weight + bias        RMS: mean = 0; no norm: x̂ = x
//   grad_x = inverse_std · (g − mean(g) − n · mean(g · n)),  g = grad_x̂ · weight        RMS: without mean(g)
//   grad_weight = Σ grad_x̂ · n,   grad_bias = Σ grad_x̂        over the rows
//
// Never stored: n. x̂ goes to a few scratch rows of the caller.
// Loop order: one row at a time, read from L1 after the first pass. Forward: the mean, a correction of it, the
// variance, then x̂. Backward: mean(g) and mean(g · n), then grad_x, which overwrites grad_x̂.
// Precision: float32. The correction adds what the mean lost to rounding. The variance is the mean square of the
// deviations, because E[x²] − E[x]² cancels. Gradients of weight and bias are summed in float64.
#pragma once

#include <cmath>

#include "../kernels.h"
#include "normalize.h"

namespace mmcore {
namespace {

struct RowStatistics {
  float mean = 0, inverse_std = 1;
};

template <class T>
inline RowStatistics row_statistics(const T* x, Index columns, const InputNorm& norm) {
  RowStatistics result;
  if (norm.kind == Norm::kNone) return result;
  if (norm.kind == Norm::kLayer) {
    Vec total{};
    for_each_vector(columns, [&](Index k, Index count) { total += load_first(x + k, count); });
    result.mean = sum(total) / static_cast<float>(columns);
    // A rounding error of the mean would be part of every deviation. In a row of nearly equal numbers deviations are
    // small, and the error would be a large part of them.
    Vec rest{};
    for_each_vector(columns, [&](Index k, Index count) {
      rest += first_lanes(load_first(x + k, count) - result.mean, count, Vec{});
    });
    result.mean += sum(rest) / static_cast<float>(columns);
  }
  Vec squares{};
  for_each_vector(columns, [&](Index k, Index count) {
    Vec deviation = first_lanes(load_first(x + k, count) - result.mean, count, Vec{});
    squares += deviation * deviation;
  });
  result.inverse_std = 1.0f / std::sqrt(sum(squares) / static_cast<float>(columns) + norm.eps);
  return result;
}

// x̂ of the columns [first, first + count) of one row.
template <class T>
inline void apply_norm(const T* x, const InputNorm& norm, RowStatistics row, Index first, Index count, float* out) {
  for_each_vector(count, [&](Index k, Index lanes) {
    Vec value = (load_first(x + first + k, lanes) - row.mean) * row.inverse_std;
    if (norm.weight != nullptr) value *= load_first(norm.weight + first + k, lanes);
    if (norm.bias != nullptr) value += load_first(norm.bias + first + k, lanes);
    store_first(out + k, value, lanes);
  });
}

inline void add_to(double* totals, Vec v, Index count) {
  for (Index lane = 0; lane < count; ++lane) totals[lane] += v[lane];
}

// Turns grad of x̂ into grad of x in place; adds to grad_weight and grad_bias, each (K,), where they are not nullptr.
template <class T>
inline void norm_row_backward(const T* x, const InputNorm& norm, RowStatistics row, Index columns, float* grad,
                              double* grad_weight, double* grad_bias) {
  if (norm.kind == Norm::kNone) return;
  Vec total{}, total_along{};
  for_each_vector(columns, [&](Index k, Index count) {
    Vec g = load_first(grad + k, count);
    Vec n = first_lanes((load_first(x + k, count) - row.mean) * row.inverse_std, count, Vec{});
    if (grad_weight != nullptr) add_to(grad_weight + k, g * n, count);
    if (grad_bias != nullptr) add_to(grad_bias + k, g, count);
    if (norm.weight != nullptr) g *= load_first(norm.weight + k, count);
    total += g;
    total_along += g * n;
    // Stored, so that the mean is subtracted from the same rounded numbers that it is the mean of.
    store_first(grad + k, g, count);
  });
  const float mean = norm.kind == Norm::kLayer ? sum(total) / static_cast<float>(columns) : 0.0f;
  const float along = sum(total_along) / static_cast<float>(columns);
  for_each_vector(columns, [&](Index k, Index count) {
    Vec n = (load_first(x + k, count) - row.mean) * row.inverse_std;
    store_first(grad + k, (load_first(grad + k, count) - mean - n * along) * row.inverse_std, count);
  });
}

}  // namespace
}  // namespace mmcore

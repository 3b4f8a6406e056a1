// Row-wise normalisation.
//
//   y = x / norm,  norm = max(‖x‖, eps),  inverse_norm = 1 / norm
//   grad_x = (grad_y − y ⟨y, grad_y⟩) · inverse_norm        where ‖x‖ > eps, else grad_y / eps
//
// Each row is read twice, the second time from L1. Sums in float32, kLanes partial sums.
#pragma once

#include <cmath>

#include "parallel.h"
#include "vec.h"

namespace mmcore {
namespace {

// Calls visit(offset, count) for each vector of a row of `columns` numbers; only the last count is below kLanes.
template <class Visit>
inline void for_each_vector(Index columns, Visit visit) {
  for (Index k = 0; k < columns; k += kLanes) visit(k, minimum(kLanes, columns - k));
}

inline float dot(const float* a, const float* b, Index columns) {
  Vec total{};
  for_each_vector(columns, [&](Index k, Index count) { total += load_first(a + k, count) * load_first(b + k, count); });
  return sum(total);
}

inline float l2_norm(const float* row, Index columns, float eps) {
  float norm = std::sqrt(dot(row, row, columns));
  return norm < eps ? eps : norm;  // written so that a NaN stays NaN
}

// Divided, not multiplied by the reciprocal: one rounding, and a row of one number becomes exactly ±1.
inline void divide_row(const float* source, Index columns, float divisor, float* target) {
  for_each_vector(
      columns, [&](Index k, Index count) { store_first(target + k, load_first(source + k, count) / divisor, count); });
}

inline void scale_row(float* row, Index columns, float factor) {
  for_each_vector(columns,
                  [&](Index k, Index count) { store_first(row + k, load_first(row + k, count) * factor, count); });
}

// grad_x of one row; grad_x may be grad_y.
inline void l2_normalize_row_backward(const float* y, const float* grad_y, Index columns, float inverse_norm, float eps,
                                      float* grad_x) {
  // A clamped norm does not depend on x, so the projection term vanishes.
  bool is_clamped = inverse_norm >= 1.0f / eps;
  float along = is_clamped ? 0.0f : dot(y, grad_y, columns);
  for_each_vector(columns, [&](Index k, Index count) {
    Vec tangent = load_first(grad_y + k, count) - load_first(y + k, count) * along;
    store_first(grad_x + k, tangent * inverse_norm, count);
  });
}

void l2_normalize_forward(ConstMatrix x, float eps, MutableMatrix y, float* inverse_norm, int threads) {
  for_each_stripe(threads, x.rows, 1, [&](Range rows, int) {
    for (Index i = rows.begin; i < rows.end; ++i) {
      float norm = l2_norm(x.row(i), x.columns, eps);
      inverse_norm[i] = 1.0f / norm;
      divide_row(x.row(i), x.columns, norm, y.row(i));
    }
  });
}

void l2_normalize_backward(ConstMatrix y, const float* inverse_norm, ConstMatrix grad_y, float eps,
                           MutableMatrix grad_x, int threads) {
  for_each_stripe(threads, y.rows, 1, [&](Range rows, int) {
    for (Index i = rows.begin; i < rows.end; ++i)
      l2_normalize_row_backward(y.row(i), grad_y.row(i), y.columns, inverse_norm[i], eps, grad_x.row(i));
  });
}

}  // namespace
}  // namespace mmcore

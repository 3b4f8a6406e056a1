// L2 normalisation of rows, forward and backward.
//
//   y = x / norm,  norm = max(‖x‖, eps),  inverse_norm = 1 / norm
//   grad_x = (grad_y − y ⟨y, grad_y⟩) · inverse_norm        where ‖x‖ > eps, else grad_y / eps
//
// Never stored: anything of the size of x besides the result.
// Loop order: each thread takes a stripe of rows and reads each row twice, the second time from L1.
// Precision: any dtype in and out. Sums are float32, of several partial sums; each result is rounded once.
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

template <class S, class T>
inline float dot(const S* a, const T* b, Index columns) {
  constexpr Index kParts = 4;  // shorter chains of additions round less, and can run at the same time
  Vec part[kParts] = {};
  Index k = 0;
  for (; k + kParts * kLanes <= columns; k += kParts * kLanes)
    for (Index p = 0; p < kParts; ++p)
      part[p] += load_first(a + k + p * kLanes, kLanes) * load_first(b + k + p * kLanes, kLanes);
  for (; k < columns; k += kLanes) part[0] += load_first(a + k, columns - k) * load_first(b + k, columns - k);
  return sum((part[0] + part[1]) + (part[2] + part[3]));
}

template <class T>
inline float l2_norm(const T* row, Index columns, float eps) {
  float norm = std::sqrt(dot(row, row, columns));
  return norm < eps ? eps : norm;  // written so that a NaN stays NaN
}

// Divided, not multiplied by the reciprocal: one rounding, and a row of one number becomes exactly ±1.
template <class S, class T>
inline void divide_row(const S* source, Index columns, float divisor, T* target) {
  for_each_vector(
      columns, [&](Index k, Index count) { store_first(target + k, load_first(source + k, count) / divisor, count); });
}

inline void scale_row(float* row, Index columns, float factor) {
  for_each_vector(columns,
                  [&](Index k, Index count) { store_first(row + k, load_first(row + k, count) * factor, count); });
}

// grad_x of one row; grad_x may be grad_y.
template <class S, class T>
inline void l2_normalize_row_backward(const S* y, const S* grad_y, Index columns, float inverse_norm, float eps,
                                      T* grad_x) {
  // A clamped norm does not depend on x, so the projection term vanishes.
  bool is_clamped = inverse_norm >= 1.0f / eps;
  float along = is_clamped ? 0.0f : dot(y, grad_y, columns);
  for_each_vector(columns, [&](Index k, Index count) {
    Vec tangent = load_first(grad_y + k, count) - load_first(y + k, count) * along;
    store_first(grad_x + k, tangent * inverse_norm, count);
  });
}

void l2_normalize_forward(const AnyMatrix& x, float eps, const MutableAnyMatrix& y, float* inverse_norm, int threads) {
  visit_dtype(x, [&](auto rows_of_x) {
    const auto rows_of_y = y.as<NumberOf<decltype(rows_of_x)>>();
    for_each_stripe(threads, x.rows, 1, [&](Range rows, int) {
      for (Index i = rows.begin; i < rows.end; ++i) {
        float norm = l2_norm(rows_of_x.row(i), x.columns, eps);
        inverse_norm[i] = 1.0f / norm;
        divide_row(rows_of_x.row(i), x.columns, norm, rows_of_y.row(i));
      }
    });
  });
}

void l2_normalize_backward(const AnyMatrix& y, const float* inverse_norm, const AnyMatrix& grad_y, float eps,
                           const MutableAnyMatrix& grad_x, int threads) {
  visit_dtype(y, [&](auto rows_of_y) {
    using Number = NumberOf<decltype(rows_of_y)>;
    const auto rows_of_grad_y = grad_y.as<Number>();
    const auto rows_of_grad_x = grad_x.as<Number>();
    for_each_stripe(threads, y.rows, 1, [&](Range rows, int) {
      for (Index i = rows.begin; i < rows.end; ++i)
        l2_normalize_row_backward(rows_of_y.row(i), rows_of_grad_y.row(i), y.columns, inverse_norm[i], eps,
                                  rows_of_grad_x.row(i));
    });
  });
}

}  // namespace
}  // namespace mmcore

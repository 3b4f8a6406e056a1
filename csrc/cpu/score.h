// The scores of retrieval in float64 (mmcore/backends/retrieval.py): the same bits on every instruction set.
//
//   sum8(v) = ((s₀ + s₁) + (s₂ + s₃)) + ((s₄ + s₅) + (s₆ + s₇)),   s_l = Σ_{k mod 8 = l} v_k, in ascending k
//
// Products are rounded before they are added. A product of two float32 numbers is exact in float64, so that an FMA
// would make no difference; a square of a difference is not, nor is a product with inverse norms.
//
// Denormal float32 numbers count: call nothing of this while tiles are multiplied (FlushedDenormals in amx.h).
#pragma once

#include <cmath>

#include "../kernels.h"
#include "double_vec.h"

namespace mmcore {
namespace {

// The eight sums of sum8.
class EightSums {
 public:
  // Adds the terms of eight numbers of x and of y.
  void add_products(const float* x, const float* y) {
    for (int v = 0; v < kVectors; ++v)
      sums_[v] += as_rounded(load_doubles(x + v * kDoubles) * load_doubles(y + v * kDoubles));
  }
  void add_squared_differences(const float* x, const float* y) {
    for (int v = 0; v < kVectors; ++v) {
      const DoubleVec difference = load_doubles(x + v * kDoubles) - load_doubles(y + v * kDoubles);
      sums_[v] += as_rounded(difference * difference);
    }
  }

  double total() const {
    double s[8];
    std::memcpy(s, sums_, sizeof(s));
    return ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]));
  }

 private:
  static constexpr int kVectors = 8 / kDoubles;
  DoubleVec sums_[kVectors]{};
};

// Eight numbers as float32; zeros behind the last of `count`. A term of zeros changes no sum, because no sum is −0.
template <class T>
inline const float* eight_numbers(const T* from, Index count, float (&stage)[8]) {
  if constexpr (std::is_same_v<T, float>)
    if (count >= 8) return from;
  for (int l = 0; l < 8; ++l) stage[l] = l < count ? widen(from[l]) : 0.0f;
  return stage;
}

// add(sums, x, y) for each eight numbers of two rows.
template <class X, class Y, class Add>
__attribute__((always_inline)) inline double sum8(const X* x, const Y* y, Index depth, Add add) {
  EightSums sums;
  float x_stage[8], y_stage[8];
  for (Index k = 0; k < depth; k += 8)
    add(sums, eight_numbers(x + k, depth - k, x_stage), eight_numbers(y + k, depth - k, y_stage));
  return sums.total();
}

// sum8(x·y)
template <class X, class Y>
double exact_product(const X* x, const Y* y, Index depth) {
  return sum8(x, y, depth, [](EightSums& sums, const float* a, const float* b) { sums.add_products(a, b); });
}

// sum8((x − y)·(x − y))
template <class X, class Y>
double exact_squared_distance(const X* x, const Y* y, Index depth) {
  return sum8(x, y, depth, [](EightSums& sums, const float* a, const float* b) { sums.add_squared_differences(a, b); });
}

// a(v) = 1 / √sum8(v·v), or 0 for a row of zeros.
template <class T>
double inverse_norm(const T* v, Index depth) {
  const double square = exact_product(v, v, depth);
  return square == 0 ? 0 : 1 / std::sqrt(square);
}

}  // namespace
}  // namespace mmcore

// The scores of retrieval in float64 (mmcore/backends/retrieval.py): the same bits on every instruction set.
//
//   sum8(v) = ((s₀ + s₁) + (s₂ + s₃)) + ((s₄ + s₅) + (s₆ + s₇)),   s_l = Σ_{k mod 8 = l} v_k, in ascending k
//
// A product of two float32 numbers is exact in float64, so that an FMA has the bits of a product and a sum. A square of
// a difference is rounded before it is added.
//
// Denormal float32 numbers count. Where tiles may be multiplied, or the caller may have told the processor to ignore
// denormal numbers, own a KeptDenormals (double_vec.h).
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
  __attribute__((always_inline)) void add_products(const float* x, const float* y) {
    for (int v = 0; v < kVectors; ++v) sums_[v] += load_doubles(x + v * kDoubles) * load_doubles(y + v * kDoubles);
  }
  __attribute__((always_inline)) void add_squared_differences(const float* x, const float* y) {
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
__attribute__((always_inline)) inline const float* eight_numbers(const T* from, Index count, float (&stage)[8]) {
  if constexpr (std::is_same_v<T, float>)
    if (count >= 8) return from;
  for (int l = 0; l < 8; ++l) stage[l] = l < count ? widen(from[l]) : 0.0f;
  return stage;
}

// out[r] = the sum8 of x and row r of y, with add(sums, x, y) for each eight numbers. Several rows at a time, because
// the additions of one have to wait for each other.
template <int kRows, class X, class Y, class Add>
__attribute__((always_inline)) inline void sum8(const X* x, const Y* const (&y)[kRows], Index depth, Add add,
                                                double* out) {
  EightSums sums[kRows];
  float x_stage[8], y_stage[8];
  for (Index k = 0; k < depth; k += 8) {
    const float* a = eight_numbers(x + k, depth - k, x_stage);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) add(sums[r], a, eight_numbers(y[r] + k, depth - k, y_stage));
  }
  for (int r = 0; r < kRows; ++r) out[r] = sums[r].total();
}

// sum8(x·y) of kRows rows of y.
template <int kRows, class X, class Y>
void exact_products(const X* x, const Y* const (&y)[kRows], Index depth, double* out) {
  sum8<kRows>(x, y, depth, [](EightSums& sums, const float* a, const float* b) { sums.add_products(a, b); }, out);
}

// sum8((x − y)·(x − y)) of kRows rows of y.
template <int kRows, class X, class Y>
void exact_squared_distances(const X* x, const Y* const (&y)[kRows], Index depth, double* out) {
  sum8<kRows>(
      x, y, depth, [](EightSums& sums, const float* a, const float* b) { sums.add_squared_differences(a, b); }, out);
}

// sum8(x·y)
template <class X, class Y>
double exact_product(const X* x, const Y* y, Index depth) {
  double result;
  exact_products<1>(x, {y}, depth, &result);
  return result;
}

// a(v) = 1 / √square, or 0 for a row of zeros; `square` is sum8(v·v).
inline double inverse_norm(double square) { return square == 0 ? 0 : 1 / std::sqrt(square); }

}  // namespace
}  // namespace mmcore

// One shift for all exponents of a matrix, so that one exp serves row and column, forward and backward.
//
//   E_ij = 2^(a·⟨x_i, y_j⟩ − shift),  a = scale·log2(e)
//
// No maximum is tracked: the shift follows from the Cauchy-Schwarz bound on |a·⟨x, y⟩|. Biases are left out of E; those
// that differ between rows or columns are factors of it, 2^(bias − the largest bias) ≤ 1, and enter where E is summed.
// Precision: each E to 2⁻²³ relative however large the logit; 0 below 2⁻¹²⁶.
// Used by softmax_similarity, prefix_similarity and distillation.
#pragma once

#include <cmath>
#include <limits>
#include <vector>

#include "../kernels.h"
#include "exponential.h"
#include "float64.h"
#include "matmul.h"

namespace mmcore {
namespace {

// Beyond this bound on |s|·log2(e) most rows of real data lie too far below it for a shared shift.
constexpr double kLargestSharedBound = 200;
// The largest possible E is 2⁸⁰: sums stay far from overflow, and so do the factors of the backward, about the
// reciprocals of the sums, from underflow.
constexpr double kLargestExponent = 80;

// E below 2⁻¹²⁶ is 0. A sum of `count` terms that is at least this large has lost less than 2⁻²⁴ of itself that way.
inline double smallest_trusted_sum(Index count) { return std::exp2(-126 + 24) * count; }

// The shift of exponents whose magnitude is at most `bound`.
struct Shift {
  double bound;
  double shift;  // an integer

  explicit Shift(double largest) : bound(largest), shift(std::ceil(largest) - kLargestExponent) {}

  bool is_usable() const { return bound <= kLargestSharedBound; }
  // kRounder with the shift folded in: what is rounded with it comes out shifted.
  float shifted_rounder() const { return kRounder - static_cast<float>(shift); }
};

// max_i ‖m_i‖; NaN if any number is.
double largest_row_norm(const AnyMatrix& features, int threads) {
  std::vector<double> largest_of_thread(threads, 0.0);
  visit_dtype(features, [&](auto m) {
    for_each_stripe(threads, m.rows, 1, [&](Range rows, int thread) {
      double largest = 0;
      for (Index i = rows.begin; i < rows.end; ++i) {
        const double square = exact_dot(m.row(i), m.row(i), m.columns);
        if (!(square <= largest)) largest = square;
        if (largest != largest) break;
      }
      largest_of_thread[thread] = largest;
    });
  });
  double result = 0;
  for (double largest : largest_of_thread)
    if (result == result && !(largest <= result)) result = largest;
  // Rounding to bfloat16 lengthens a row by at most one part in 256.
  return std::sqrt(result) * 1.004;
}

// The shift of a matrix, by the Cauchy-Schwarz bound on |a·⟨x, y⟩|.
struct SharedShift : Shift {
  Split a;

  SharedShift(const SimilarityInputs& inputs, int threads)
      : Shift(std::abs(inputs.scale) * kLog2E * largest_row_norm(inputs.x, threads) *
              largest_row_norm(inputs.y, threads)),
        a(inputs.scale * kLog2E) {}

  // One FMA rounds a·product − shift to an integer, a second one computes the exact remainder.
  Vec exponential(Vec product, Vec rounder) const {
    const Vec high = broadcast(a.high), rounded = multiply_add(product, high, rounder);
    const Vec rest = multiply_add(product, high, rounder - rounded);
    return exp2_from_parts(rounded, multiply_add(product, broadcast(a.low), rest));
  }
};

// The biases of one side of the matrix and 2^(bias − largest), padded to whole tiles; empty where there are none.
struct BiasFactors {
  double largest = 0;         // log2(e)·bias
  bool are_normal = true;     // false where a finite bias lies so far below the largest that its factor lost digits
  std::vector<double> value;  // nats
  std::vector<float> factor;

  BiasFactors(const double* bias, Index count) {
    if (bias == nullptr) return;
    largest = kMinusInfinity;
    for (Index i = 0; i < count; ++i) largest = bias[i] > largest ? bias[i] : largest;
    largest = largest == kMinusInfinity ? 0 : largest * kLog2E;
    factor.resize(round_up(count, kBlock) + kBlock);
    value.assign(bias, bias + count);
    value.resize(factor.size());
    for (Index i = 0; i < count; ++i) {
      factor[i] = static_cast<float>(std::exp2(bias[i] * kLog2E - largest));
      are_normal = are_normal && (factor[i] >= std::numeric_limits<float>::min() || bias[i] == kMinusInfinity);
    }
  }

  bool empty() const { return factor.empty(); }
  const float* from(Index i) const { return factor.data() + i; }
};

}  // namespace
}  // namespace mmcore

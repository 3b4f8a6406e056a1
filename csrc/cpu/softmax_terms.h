// What a backward reads of each row and column of a matrix of softmaxes, and the softmaxes themselves.
//
//   weight_i·exp(s_ij − lse_i)                                           one exponential for each side (SoftmaxTerms)
//     = E_ij·F_j·R_i,  R_i = weight_i·2^(shift + largest − level_i)      one for both sides (SharedSoftmaxTerms)
//   level_i = log2(e)·(lse_i − the biases that all logits of the row share)
//   F_j = 2^(log2(e)·col_bias_j − largest),  largest = max_j log2(e)·col_bias_j
//
// These are the terms of the rows; those of the columns are alike. The weight is the upstream gradient of lse, E and F
// are those of shared_shift.h. Where R or E has lost digits, the backward takes one exponential for each side.
// Precision: float64; the vectors that loops over the matrix read are float32, exponents in two parts.
// Used by softmax_similarity, prefix_similarity and distillation, backward.
#pragma once

#include <cmath>
#include <limits>
#include <vector>

#include "float64.h"
#include "shared_shift.h"

namespace mmcore {
namespace {

// E below 2⁻¹²⁶ is flushed to 0. With a factor up to this one, the loss is below 2⁻⁴⁰ of the row's sum.
constexpr double kLargestFactorExponent = 86;

// The biases of a side's own logits, which are no part of E, and the largest log2 bias of the other side.
struct SideBiases {
  double matrix = 0;
  const double* own = nullptr;
  double largest_other = 0;
};

// Per row or per column, padded to whole blocks. Where nothing is counted, lse = −∞, the weight is 0.
struct SoftmaxTerms {
  std::vector<float> lse_high, lse_low;  // the level in two parts
  std::vector<float> weight;

  SoftmaxTerms(const double* lse, const double* weights, Index count, const SideBiases& biases = {}) {
    const Index padded = round_up(count, kBlock) + kBlock;
    lse_high.assign(padded, kInfinity);  // exp(−∞) = 0
    lse_low.resize(padded);
    weight.resize(padded);
    for (Index i = 0; i < count; ++i) {
      if (lse[i] == kMinusInfinity) continue;
      const Split split(level(lse, i, biases));
      lse_high[i] = split.high;
      lse_low[i] = split.low;
      weight[i] = static_cast<float>(weights[i]);
    }
  }

  static double level(const double* lse, Index i, const SideBiases& biases) {
    return (lse[i] - biases.matrix - (biases.own == nullptr ? 0 : biases.own[i])) * kLog2E;
  }
};

// The same, and factors of E.
struct SharedSoftmaxTerms : SoftmaxTerms {
  std::vector<float> factor;     // R, or the columns' like it
  std::vector<char> is_trusted;  // whether E and `factor` have all their digits

  SharedSoftmaxTerms(const double* lse, const double* weights, Index count, const Shift& shift,
                     const SideBiases& biases = {})
      : SoftmaxTerms(lse, weights, count, biases), factor(weight.size()), is_trusted(count, 1) {
    for (Index i = 0; i < count; ++i) {
      if (lse[i] == kMinusInfinity || weights[i] == 0) continue;
      const double exponent = shift.shift + biases.largest_other - level(lse, i, biases);
      factor[i] = static_cast<float>(weights[i] * std::exp2(exponent));
      is_trusted[i] = shift.is_usable() && exponent <= kLargestFactorExponent &&
                      std::abs(factor[i]) >= std::numeric_limits<float>::min();
    }
  }

  // Whether E may be used in all of these rows or columns.
  bool trusts(Range range) const {
    for (Index i = range.begin; i < range.end; ++i)
      if (!is_trusted[i]) return false;
    return true;
  }
};

// exp(scale·product − lse), a being log2(e)·scale in two parts.
inline Vec softmax(Vec product, const Split& a, Vec lse_high, Vec lse_low) {
  return exp2(multiply_add(product, broadcast(a.high), -lse_high) + multiply_add(product, broadcast(a.low), -lse_low));
}

}  // namespace
}  // namespace mmcore

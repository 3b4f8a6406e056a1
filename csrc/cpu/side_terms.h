// Per-row and per-column factors by which the backward multiplies E.
//
//   a_i·exp(s_ij − lse_i) = E_ij·F_j·R_i,  R_i = a_i·2^(shift + largest + log2(e)·(bias + row_bias_i − lse_i))
//   F_j = 2^(log2(e)·col_bias_j − largest),  largest = max_j log2(e)·col_bias_j
//
// These are the terms of the rows; those of the columns are alike. a_i is the upstream gradient of lse_i; E and F are
// those of shared_shift.h. Where R or E has lost digits, the backward uses log2(e)·lse in two float32 parts instead.
// Precision: float64; the vectors that loops over the matrix read are float32.
#pragma once

#include <cmath>
#include <vector>

#include "parallel.h"
#include "shared_shift.h"

namespace mmcore {
namespace {

// What G needs of one side of the matrix, per row or per column, padded to whole tiles.
struct SideTerms {
  std::vector<double> lse, weight, positive;        // the upstream gradients of lse and of pos
  std::vector<float> lse_high, lse_low;             // log2(e)·(lse − biases of the row) in two parts
  std::vector<float> weight_float, positive_float;  // as above, in float32
  std::vector<float> factor;                        // R or C
  std::vector<char> is_trusted;                     // whether `factor` may be used

  // `biases` are those that the side's own logits share, `other_bias` the largest log2 bias of the other side, which E
  // lacks. Where nothing is counted the weight becomes 0.
  SideTerms(std::vector<double> lse_of, std::vector<double> weights, std::vector<double> positives, double bias,
            const double* biases, double shift, double other_bias)
      : lse(std::move(lse_of)), weight(std::move(weights)), positive(std::move(positives)), is_trusted(lse.size(), 1) {
    const Index count = static_cast<Index>(lse.size()), padded = round_up(count, kBlock) + kBlock;
    for (auto* terms : {&lse_high, &lse_low, &factor, &weight_float, &positive_float}) terms->resize(padded);
    for (Index i = 0; i < count; ++i) {
      positive_float[i] = static_cast<float>(positive[i]);
      lse_high[i] = kInfinity;  // exp(−∞) = 0
      if (lse[i] == kMinusInfinity) {
        weight[i] = 0;
        continue;
      }
      const double level = (lse[i] - bias - (biases == nullptr ? 0 : biases[i])) * kLog2E;
      const Split split(level);
      lse_high[i] = split.high;
      lse_low[i] = split.low;
      weight_float[i] = static_cast<float>(weight[i]);
      if (weight[i] == 0) continue;
      factor[i] = static_cast<float>(weight[i] * std::exp2(shift + other_bias - level));
      // Entries whose E was flushed to 0 are then below 2⁻⁴⁰ of the row, and the factor has all its digits.
      is_trusted[i] = shift + other_bias - level <= 86 && std::abs(factor[i]) >= std::numeric_limits<float>::min();
    }
  }

  // Whether E may be used in all of these rows or columns.
  bool trusts(Range range) const {
    for (Index i = range.begin; i < range.end; ++i)
      if (!is_trusted[i]) return false;
    return true;
  }
};

}  // namespace
}  // namespace mmcore

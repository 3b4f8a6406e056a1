// G of one block of a matrix of softmaxes: the epilogue of the backward.
//
//   G_ij = E_ij·(R_i + C_j) where every entry counts (softmax_terms.h); otherwise each side and the positives by masks
//
// The kernel's mathematics, loop order and precision are in softmax_similarity_backward.h.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "pairs.h"
#include "shared_shift.h"
#include "similarity_blocks.h"
#include "softmax_terms.h"
#include "wide.h"

namespace mmcore {
namespace {

// The terms of softmaxes whose logits may be too large for float32 exponents.
struct WideTerms : SharedSoftmaxTerms {
  std::vector<double> lse;  // padded; ∞ where nothing is counted, so that the softmax is 0

  WideTerms(const std::vector<double>& log_sums, const std::vector<double>& weights, const Shift& shift,
            const SideBiases& biases)
      : SharedSoftmaxTerms(log_sums.data(), weights.data(), static_cast<Index>(log_sums.size()), shift, biases),
        lse(log_sums) {
    std::replace(lse.begin(), lse.end(), kMinusInfinity, -kMinusInfinity);
    lse.resize(weight.size(), -kMinusInfinity);
  }
};

// The terms of one side. The entries of targets, which are computed in float64, need more than loops over tiles read.
struct SideTerms : WideTerms {
  std::vector<double> grad_lse, grad_pos;  // grad_lse is 0 where nothing is counted
  std::vector<float> positive_weight;      // grad_pos in float32

  SideTerms(const std::vector<double>& log_sums, std::vector<double> weights, std::vector<double> positives,
            const Shift& shift, const SideBiases& biases)
      : WideTerms(log_sums, weights, shift, biases),
        grad_lse(std::move(weights)),
        grad_pos(std::move(positives)),
        positive_weight(weight.size()) {
    for (std::size_t i = 0; i < grad_lse.size(); ++i) {
      if (log_sums[i] == kMinusInfinity) grad_lse[i] = 0;
      positive_weight[i] = static_cast<float>(grad_pos[i]);
    }
  }
};

// Epilogue of one block: products or kept exponentials in, G out.
struct StoreGradient {
  const SimilarityInputs& inputs;
  const PairMasks& masks;
  const SharedShift& shift;
  const BiasFactors &row_factors, &col_factors;
  const SideTerms &row_terms, &col_terms;
  const WideTerms *row_positives, *col_positives;  // nullptr where positives are summed
  const std::vector<double>& targets;
  bool is_plain = masks.is_plain() && row_factors.empty() && col_factors.empty();
  Block block{};
  const float* source = nullptr;
  float* out = nullptr;
  bool is_kept = false, is_exact = false;

  void operator()(Index row, Index column) const {
    if (is_plain) {
      is_exact ? store_tile<true, true>(row, column) : store_tile<true, false>(row, column);
    } else {
      is_exact ? store_tile<false, true>(row, column) : store_tile<false, false>(row, column);
    }
  }

  // The whole block from kept exponentials, row by row, so that memory is read in order.
  void store_kept() const {
    const Index columns = block.columns.size();
    for (Index row = 0; !is_plain && row < block.rows.size(); row += kTileRows)
      for (Index column = 0; column < columns; column += kTileColumns) store_tile<false, false>(row, column);
    for (Index row = 0; is_plain && row < block.rows.size(); ++row) {
      const Index i = block.rows.begin + row, first = block.columns.begin;
      for (Index column = 0; column < columns; column += kLanes) {
        const Index at = row * kBlockStride + column;
        store(out + at, gradient<true, false>(load(source + at), i, first + column));
      }
      const Index lane = masks.target_lane(i, first);
      if (lane >= 0 && lane < columns) out[row * kBlockStride + lane] = target_gradient(i, first + lane);
    }
  }

 private:
  template <bool kIsPlain, bool kIsExact>
  void store_tile(Index row, Index column) const {
    const Index valid = minimum(kTileRows, block.rows.size() - row), first = block.columns.begin + column;
    const float* from = source + row * kBlockStride + column;
    float* tile = out + row * kBlockStride + column;
    for (Index r = 0; r < valid; ++r, from += kBlockStride, tile += kBlockStride) {
      const Index i = block.rows.begin + row + r;
      for (int v = 0; v < kTileVectors; ++v) {
        const Index j = first + v * kLanes;
        store(tile + v * kLanes, gradient<kIsPlain, kIsExact>(load(from + v * kLanes), i, j));
      }
      masks.visit_targets(i, first, [&](Index lane) { tile[lane] = target_gradient(i, first + lane); });
    }
  }

  template <bool kIsPlain, bool kIsExact>
  Vec gradient(Vec from, Index i, Index j) const {
    if constexpr (!kIsExact) {
      if (!is_kept) from = shift.exponential(from, broadcast(shift.shifted_rounder()));
      if constexpr (kIsPlain) return from * (load(col_terms.factor.data() + j) + row_terms.factor[i]);
    }
    const Softmaxes counted = softmaxes<kIsExact>(from, row_terms, col_terms, i, j);
    if constexpr (kIsPlain) return counted.row + counted.col;
    const Masks mask = masks.at(i, j);
    Vec positive{};
    if (row_positives == nullptr) {
      positive = load(col_terms.positive_weight.data() + j) + row_terms.positive_weight[i];
    } else if (any(mask.positive)) {
      const Softmaxes among = softmaxes<kIsExact>(from, *row_positives, *col_positives, i, j);
      positive = among.row + among.col;
    }
    return (mask.keep ? counted.row : Vec{}) + (mask.keep_col ? counted.col : Vec{}) +
           (mask.positive ? positive : Vec{});
  }

  // The weighted softmaxes of row i, and of the columns from j, as if every entry were counted. They are computed from
  // E, or from products with one exponential each.
  struct Softmaxes {
    Vec row, col;
  };
  template <bool kIsExact>
  Softmaxes softmaxes(Vec from, const WideTerms& rows, const WideTerms& columns, Index i, Index j) const {
    if constexpr (kIsExact) {
      const Wide zero = broadcast_wide(0), row_bias = row_factors.empty() ? zero : broadcast_wide(row_factors.value[i]),
                 col_bias = col_factors.empty() ? zero : load(col_factors.value.data() + j),
                 logits = wide_logits(from, inputs.scale, inputs.bias, row_bias, col_bias);
      const Vec row = exponential(logits - broadcast_wide(rows.lse[i])),
                col = exponential(logits - load(columns.lse.data() + j));
      return {row * rows.weight[i], col * load(columns.weight.data() + j)};
    } else {
      const Vec row = col_factors.empty() ? from : from * load(col_factors.from(j));
      const Vec col = row_factors.empty() ? from : from * *row_factors.from(i);
      return {row * rows.factor[i], col * load(columns.factor.data() + j)};
    }
  }

  // G where j is the target of i, or, in a symmetric matrix, i the target of j.
  float target_gradient(Index i, Index j) const {
    const bool is_row_target = masks.target(i) == j, is_col_target = inputs.is_symmetric && masks.target(j) == i;
    const bool is_excluded = masks.is_excluded(i, j);
    const bool keep = is_counted(is_row_target, is_excluded);
    const bool keep_col = inputs.is_symmetric ? is_counted(is_col_target, is_excluded) : keep;
    const double logit = is_row_target ? targets[i] : targets[j];
    double result = 0;
    if (keep && row_terms.grad_lse[i] != 0) result += row_terms.grad_lse[i] * std::exp(logit - row_terms.lse[i]);
    if (keep_col && col_terms.grad_lse[j] != 0) result += col_terms.grad_lse[j] * std::exp(logit - col_terms.lse[j]);
    if (is_row_target) result += row_terms.grad_pos[i] + col_terms.grad_pos[j];
    if (is_col_target) result += row_terms.grad_pos[j] + col_terms.grad_pos[i];
    return static_cast<float>(result);
  }

  bool is_counted(bool is_positive, bool is_excluded) const {
    if (inputs.denominator == Denominator::kPositives) return is_positive;
    if (inputs.denominator == Denominator::kNegatives) return !is_positive && !is_excluded;
    return is_positive || !is_excluded;
  }
};

}  // namespace
}  // namespace mmcore

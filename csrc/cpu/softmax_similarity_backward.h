// Statistics of the similarity matrix, backward.
//
//   G_ij = [counted]·(a_i·exp(s_ij − row_lse_i) + b_j·exp(s_ij − col_lse_j)) + [positive]·(c_i + d_j)
//   grad_x = scale·G·y     grad_y = scale·Gᵀ·x     grad_scale = Σ_i ⟨x_i, (G·y)_i⟩
//
// a, b, c, d are the upstream gradients of row_lse, col_lse, row_pos, col_pos. If these are log-sum-exps, c_i is
// multiplied by exp(s_ij − row_pos_i) and d_j by exp(s_ij − col_pos_j). The gradient of the bias, Σ_ij G_ij, is left to
// the caller: each softmax sums to 1, so it follows from the upstream gradients.
// Never stored: G and the logits. One block of G is in scratch memory and is multiplied into both gradients.
// Loop order: similarity_blocks.h.
// Precision: as in the forward, which may have kept E. One exponential is enough for both sides: G = E·(R_i + C_j)
// (side_terms.h). Blocks with a row or column too far below the bound take one for each side. Entries of targets are
// computed in float64: once training has converged they are differences of nearly equal numbers.
#pragma once

#include <optional>

#include "exponential_sums.h"
#include "gradient_sums.h"
#include "pairs.h"
#include "shared_shift.h"
#include "side_terms.h"

namespace mmcore {
namespace {

// Epilogue of one block: products or kept exponentials in, G out.
struct StoreGradient {
  const SimilarityInputs& inputs;
  const PairMasks& masks;
  const SharedShift& shift;
  const BiasFactors &row_factors, &col_factors;
  const SideTerms &row_terms, &col_terms;
  const SideTerms *row_positives, *col_positives;  // nullptr where positives are summed
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

  // The whole block from kept exponentials, along rows, as memory streams.
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
    if constexpr (kIsPlain) return counted.of_row + counted.of_col;
    const Masks mask = masks.at(i, j);
    Vec of_positive{};
    if (row_positives == nullptr) {
      of_positive = load(col_terms.positive_float.data() + j) + row_terms.positive_float[i];
    } else if (any(mask.positive)) {
      const Softmaxes among = softmaxes<kIsExact>(from, *row_positives, *col_positives, i, j);
      of_positive = among.of_row + among.of_col;
    }
    return (mask.keep ? counted.of_row : Vec{}) + (mask.keep_col ? counted.of_col : Vec{}) +
           (mask.positive ? of_positive : Vec{});
  }

  // Of row i and of the columns from j, weighted, where nothing is left out; from E, or exact from products.
  struct Softmaxes {
    Vec of_row, of_col;
  };
  template <bool kIsExact>
  Softmaxes softmaxes(Vec from, const SideTerms& rows, const SideTerms& columns, Index i, Index j) const {
    if constexpr (kIsExact) {
      const Vec of_row = softmax(from, broadcast(rows.lse_high[i]), broadcast(rows.lse_low[i]), col_factors, j, -1);
      const Vec of_col =
          softmax(from, load(columns.lse_high.data() + j), load(columns.lse_low.data() + j), row_factors, -1, i);
      return {of_row * rows.weight_float[i], of_col * load(columns.weight_float.data() + j)};
    } else {
      const Vec of_row = col_factors.empty() ? from : from * load(col_factors.from(j));
      const Vec of_col = row_factors.empty() ? from : from * *row_factors.from(i);
      return {of_row * rows.factor[i], of_col * load(columns.factor.data() + j)};
    }
  }

  // exp(s − lse) with the biases of the other side, of columns from j or of row i.
  Vec softmax(Vec product, Vec high, Vec low, const BiasFactors& other, Index j, Index i) const {
    Vec exponent =
        multiply_add(product, broadcast(shift.a.high), -high) + multiply_add(product, broadcast(shift.a.low), -low);
    if (!other.empty())
      exponent += (j >= 0 ? load(other.value.data() + j) : broadcast(other.value[i])) * static_cast<float>(kLog2E);
    return exp2(exponent);
  }

  // G where j is the target of i, or i that of j in a symmetric matrix.
  float target_gradient(Index i, Index j) const {
    const bool is_of_row = masks.target(i) == j, is_of_col = inputs.is_symmetric && masks.target(j) == i;
    const bool is_excluded = masks.is_excluded(i, j);
    const bool keep = is_counted(is_of_row, is_excluded);
    const bool keep_col = inputs.is_symmetric ? is_counted(is_of_col, is_excluded) : keep;
    const double logit = is_of_row ? targets[i] : targets[j];
    double result = 0;
    if (keep && row_terms.weight[i] != 0) result += row_terms.weight[i] * std::exp(logit - row_terms.lse[i]);
    if (keep_col && col_terms.weight[j] != 0) result += col_terms.weight[j] * std::exp(logit - col_terms.lse[j]);
    if (is_of_row) result += row_terms.positive[i] + col_terms.positive[j];
    if (is_of_col) result += row_terms.positive[j] + col_terms.positive[i];
    return static_cast<float>(result);
  }

  bool is_counted(bool is_positive, bool is_excluded) const {
    if (inputs.denominator == Denominator::kPositives) return is_positive;
    if (inputs.denominator == Denominator::kNegatives) return !is_positive && !is_excluded;
    return is_positive || !is_excluded;
  }
};

template <class A>
class SoftmaxBackward {
 public:
  SoftmaxBackward(const SimilarityInputs& inputs, const SoftmaxStatistics& statistics,
                  const SoftmaxStatistics& upstream, Kept kept, int threads)
      : inputs_(inputs),
        kept_(kept),
        threads_(threads),
        shift_(inputs, threads),
        masks_(inputs),
        row_factors_(inputs.row_bias, inputs.x.rows),
        col_factors_(inputs.col_bias, inputs.y.rows),
        targets_(target_logits(inputs, threads)),
        row_terms_(terms(true, statistics, upstream)),
        col_terms_(terms(false, statistics, upstream)) {
    if (inputs.positives == Positives::kSum) return;
    row_positives_.emplace(terms_of_positives(true, statistics, upstream));
    col_positives_.emplace(terms_of_positives(false, statistics, upstream));
  }

  void run(SimilarityGradients& gradients) {
    GradientSums sums(inputs_.x.rows, inputs_.y.rows, gradients.row_bias != nullptr,
                      (inputs_.is_symmetric ? gradients.row_bias : gradients.col_bias) != nullptr);
    const BlockGrid grid(inputs_, threads_);
    const KeptBlocks<A> kept(kept_, grid, threads_);
    const bool has_kept = is_shared() && kept.are_there();
    Scratch scratch(BlockScratch<A>::floats(grid, inputs_.x.columns, true), threads_);
    grid.for_each_pair([&](int row_stripe, int column_stripe, int thread) {
      BlockScratch<A> blocks(scratch.of_thread(thread), inputs_, grid, true);
      StoreGradient epilogue{inputs_,
                             masks_,
                             shift_,
                             row_factors_,
                             col_factors_,
                             row_terms_,
                             col_terms_,
                             row_positives_ ? &*row_positives_ : nullptr,
                             col_positives_ ? &*col_positives_ : nullptr,
                             targets_};
      blocks.walk(grid, row_stripe, column_stripe, [&](const Block& block) {
        if (is_left_out(masks_, block)) return;
        form_gradient(block, has_kept ? kept.of(block) : nullptr, blocks, epilogue);
        sums.add(block, blocks.numbers);
        blocks.add_gradients(block, blocks.numbers, gradients);
      });
    });
    finish_gradients(inputs_, gradients, threads_);
    if (inputs_.is_symmetric) sums.add_columns_to_rows();
    if (gradients.row_bias != nullptr) std::copy(sums.rows.begin(), sums.rows.end(), gradients.row_bias);
    if (gradients.col_bias != nullptr) std::copy(sums.columns.begin(), sums.columns.end(), gradients.col_bias);
  }

 private:
  using Values = std::vector<double>;

  // Where the matrix is symmetric an entry off the diagonal carries the gradients of (i, j) and of (j, i), so both
  // sides weigh a row's softmax with both its upstream gradients.
  SideTerms terms(bool is_rows, const SoftmaxStatistics& statistics, const SoftmaxStatistics& upstream) const {
    Values positive = of_side(is_rows ? upstream.row_pos : upstream.col_pos, is_rows);
    if (inputs_.is_symmetric && !masks_.has_targets()) add(positive, is_rows ? upstream.col_pos : upstream.row_pos);
    return side_terms(is_rows, {statistics.row_lse, statistics.col_lse}, {upstream.row_lse, upstream.col_lse},
                      std::move(positive));
  }
  // Those of the softmaxes among positives.
  SideTerms terms_of_positives(bool is_rows, const SoftmaxStatistics& statistics,
                               const SoftmaxStatistics& upstream) const {
    return side_terms(is_rows, {statistics.row_pos, statistics.col_pos}, {upstream.row_pos, upstream.col_pos},
                      of_side(nullptr, is_rows));
  }

  struct OfBothSides {
    const double *rows, *columns;
  };
  SideTerms side_terms(bool is_rows, OfBothSides lse, OfBothSides weights, Values positive) const {
    const bool is_symmetric = inputs_.is_symmetric, of_rows = is_rows || is_symmetric;
    Values lse_of_side = of_rows || inputs_.has_columns ? of_side(of_rows ? lse.rows : lse.columns, is_rows)
                                                        : Values(inputs_.y.rows, kMinusInfinity);
    Values weight = of_side(of_rows ? weights.rows : weights.columns, is_rows);
    if (is_symmetric) add(weight, weights.columns);
    return SideTerms(std::move(lse_of_side), std::move(weight), std::move(positive), inputs_.bias,
                     is_rows ? inputs_.row_bias : inputs_.col_bias, shift_.shift,
                     is_rows ? col_factors_.largest : row_factors_.largest);
  }

  // A copy, or zeros where there are none.
  Values of_side(const double* values, bool is_rows) const {
    const Index count = is_rows ? inputs_.x.rows : inputs_.y.rows;
    return values == nullptr ? Values(count) : Values(values, values + count);
  }
  static void add(Values& values, const double* others) {
    for (std::size_t i = 0; others != nullptr && i < values.size(); ++i) values[i] += others[i];
  }

  // As the forward decided.
  bool is_shared() const { return shift_.is_usable() && row_factors_.are_normal && col_factors_.are_normal; }

  void form_gradient(const Block& block, const float* kept, BlockScratch<A>& blocks, StoreGradient& epilogue) const {
    epilogue.block = block;
    epilogue.out = blocks.numbers;
    epilogue.is_exact =
        !(is_shared() && row_terms_.trusts(block.rows) && col_terms_.trusts(block.columns) && trusts_positives(block));
    epilogue.is_kept = kept != nullptr && !epilogue.is_exact;
    epilogue.source = epilogue.is_kept ? kept : blocks.numbers;
    if (epilogue.is_kept) {
      epilogue.store_kept();
    } else {
      blocks.multiply(block, blocks.numbers, epilogue);
    }
  }

  bool trusts_positives(const Block& block) const {
    if (!row_positives_ || (row_positives_->trusts(block.rows) && col_positives_->trusts(block.columns))) return true;
    return !masks_.has_positives(block.rows.begin, block.rows.size(), block.columns.begin, block.columns.size());
  }

  const SimilarityInputs& inputs_;
  Kept kept_;
  int threads_;
  SharedShift shift_;
  PairMasks masks_;
  BiasFactors row_factors_, col_factors_;
  std::vector<double> targets_;
  SideTerms row_terms_, col_terms_;
  std::optional<SideTerms> row_positives_, col_positives_;  // where their statistics are log-sum-exps
};

void softmax_similarity_backward(const SimilarityInputs& inputs, const SoftmaxStatistics& statistics,
                                 const SoftmaxStatistics& upstream, Kept kept, SimilarityGradients& gradients,
                                 int threads) {
  if (inputs.multiplies_bfloat16) {
    SoftmaxBackward<Bfloat16Pairs>(inputs, statistics, upstream, kept, threads).run(gradients);
  } else {
    SoftmaxBackward<Float32>(inputs, statistics, upstream, kept, threads).run(gradients);
  }
}

}  // namespace
}  // namespace mmcore

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
// (softmax_terms.h). Blocks with a row or column too far below the bound take one for each side. Entries of targets are
// computed in float64, from the forward's logits: once training has converged they are differences of nearly equal
// numbers.
#pragma once

#include <optional>

#include "exponential_sums.h"
#include "gradient_sums.h"
#include "softmax_gradient.h"
#include "softmax_similarity.h"

namespace mmcore {
namespace {

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
        targets_(found_targets(statistics)),
        row_terms_(terms(true, statistics, upstream)),
        col_terms_(terms(false, statistics, upstream)) {
    if (inputs.positives == Positives::kSum) return;
    row_positives_.emplace(positive_terms(true, statistics, upstream));
    col_positives_.emplace(positive_terms(false, statistics, upstream));
  }

  void run(SimilarityGradients& gradients) {
    GradientSums sums(inputs_.x.rows, inputs_.y.rows, gradients.row_bias != nullptr,
                      (inputs_.is_symmetric ? gradients.row_bias : gradients.col_bias) != nullptr);
    const BlockGrid grid(inputs_, threads_);
    const KeptBlocks<A> kept(kept_, grid, threads_);
    const bool has_kept = is_shared() && kept.are_there();
    Scratch scratch(BlockScratch<A>::floats(grid, inputs_.x.columns, true), threads_);
    grid.for_each_pair([&](int row_stripe, int column_stripe, int thread) {
      const Multiplying<A> multiplying;
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

  // In a symmetric matrix an entry off the diagonal carries the gradients of (i, j) and of (j, i), so both sides weigh
  // a row's softmax with both its upstream gradients.
  SideTerms terms(bool is_rows, const SoftmaxStatistics& statistics, const SoftmaxStatistics& upstream) const {
    Values positive = copy_or_zeros(is_rows ? upstream.row_pos : upstream.col_pos, is_rows);
    if (inputs_.is_symmetric && !masks_.has_targets()) add(positive, is_rows ? upstream.col_pos : upstream.row_pos);
    return SideTerms(log_sums(is_rows, {statistics.row_lse, statistics.col_lse}),
                     weights(is_rows, {upstream.row_lse, upstream.col_lse}), std::move(positive), shift_,
                     biases(is_rows));
  }
  // The terms of the softmaxes among positives.
  WideTerms positive_terms(bool is_rows, const SoftmaxStatistics& statistics, const SoftmaxStatistics& upstream) const {
    return WideTerms(log_sums(is_rows, {statistics.row_pos, statistics.col_pos}),
                     weights(is_rows, {upstream.row_pos, upstream.col_pos}), shift_, biases(is_rows));
  }

  // As the forward found them.
  Values found_targets(const SoftmaxStatistics& statistics) const {
    return masks_.has_targets() ? copy_or_zeros(statistics.row_pos, true) : Values();
  }

  struct BothSides {
    const double *rows, *columns;
  };
  Values log_sums(bool is_rows, BothSides lse) const {
    if (is_rows || inputs_.is_symmetric) return copy_or_zeros(lse.rows, is_rows);
    return inputs_.has_columns ? copy_or_zeros(lse.columns, is_rows) : Values(inputs_.y.rows, kMinusInfinity);
  }
  Values weights(bool is_rows, BothSides upstream) const {
    Values result = copy_or_zeros(is_rows || inputs_.is_symmetric ? upstream.rows : upstream.columns, is_rows);
    if (inputs_.is_symmetric) add(result, upstream.columns);
    return result;
  }
  SideBiases biases(bool is_rows) const {
    return {inputs_.bias, is_rows ? inputs_.row_bias : inputs_.col_bias,
            is_rows ? col_factors_.largest : row_factors_.largest};
  }

  Values copy_or_zeros(const double* values, bool is_rows) const {
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
  std::optional<WideTerms> row_positives_, col_positives_;  // where their statistics are log-sum-exps
};

// The upstream gradients times a power of two.
struct RaisedUpstream {
  double power;
  std::vector<double> row_lse, col_lse, row_pos, col_pos;

  RaisedUpstream(const SoftmaxStatistics& upstream, Index rows, Index columns)
      : power(raising_power({{upstream.row_lse, rows},
                             {upstream.col_lse, columns},
                             {upstream.row_pos, rows},
                             {upstream.col_pos, columns}})),
        row_lse(raised(upstream.row_lse, rows)),
        col_lse(raised(upstream.col_lse, columns)),
        row_pos(raised(upstream.row_pos, rows)),
        col_pos(raised(upstream.col_pos, columns)) {}

  SoftmaxStatistics view() {
    const auto data = [](std::vector<double>& values) { return values.empty() ? nullptr : values.data(); };
    return {data(row_lse), data(col_lse), data(row_pos), data(col_pos)};
  }

 private:
  std::vector<double> raised(const double* values, Index count) const {
    std::vector<double> result(values == nullptr ? 0 : count);
    for (std::size_t i = 0; i < result.size(); ++i) result[i] = values[i] * power;
    return result;
  }
};

// The gradients of products of parts: they are computed from larger numbers.
template <class A>
void raised_softmax_gradients(const SimilarityInputs& inputs, const SoftmaxStatistics& statistics,
                              const SoftmaxStatistics& upstream, Kept kept, SimilarityGradients& gradients,
                              int threads) {
  const Index rows = inputs.x.rows, columns = inputs.y.rows;
  RaisedUpstream raised(upstream, rows, columns);
  gradients.power = raised.power;
  SoftmaxBackward<A>(inputs, statistics, raised.view(), kept, threads).run(gradients);
  for (Index i = 0; gradients.row_bias != nullptr && i < rows; ++i) gradients.row_bias[i] /= raised.power;
  for (Index j = 0; gradients.col_bias != nullptr && j < columns; ++j) gradients.col_bias[j] /= raised.power;
}

void softmax_similarity_backward(const SimilarityInputs& inputs, const SoftmaxStatistics& statistics,
                                 const SoftmaxStatistics& upstream, Kept kept, SimilarityGradients& gradients,
                                 int threads) {
  const Index rows = inputs.x.rows, columns = inputs.y.rows;
  const auto run = [&](auto arithmetic) {
    using A = decltype(arithmetic);
    if constexpr (A::kParts > 1) {
      raised_softmax_gradients<A>(inputs, statistics, upstream, kept, gradients, threads);
    } else {
      SoftmaxBackward<A>(inputs, statistics, upstream, kept, threads).run(gradients);
    }
  };
  if (needs_mirrored_bits(inputs, threads)) return run(Float32{});
  with_arithmetic(
      inputs,
      {{upstream.row_lse, rows}, {upstream.col_lse, columns}, {upstream.row_pos, rows}, {upstream.col_pos, columns}},
      threads, run);
}

}  // namespace
}  // namespace mmcore

// Statistics of the similarity matrix, forward.
//
//   s_ij = scale·⟨x_i, y_j⟩ + bias + row_bias_i + col_bias_j
//   row_lse_i = log Σ_{j counted} exp s_ij      row_pos_i = Σ_{j positive} s_ij, or log Σ_{j positive} exp s_ij
//   and likewise by columns
//
// The whole matrix has one shift (shared_shift.h), so one exponential is enough for the row sum and the column sum.
// Rows and columns that lie so far below the bound that their sums lost bits are computed again with running maxima
// (running_log_sum_exp.h). If the bound is too large for a shared shift, everything is computed that way.
//
// Never stored: the N×M logits. As many blocks of E as fit into the workspace are kept for the backward.
// Loop order: similarity_blocks.h. Each tile of products is exponentiated and summed while it is in L1.
// Precision: float32 products and exponentials; sums are float32 inside a block, float64 across blocks. Logits of
// targets are added at the end, in float64, from the same products as all others: where several columns are equal to a
// row's target, the rounding of their products cancels in the loss.
#pragma once

#include "exponential_sums.h"
#include "running_log_sum_exp.h"

namespace mmcore {
namespace {

// Computes the log-sum-exps of one side of the matrix: of the rows, or of the columns as rows of the transposed matrix.
template <class A>
struct LogSumExpSide {
  AnyMatrix x, y;
  double scale;
  const double *own_bias, *other_bias;
  PairMasks masks;
  double bias;  // the matrix's
  double* lse;

  // The same side where only positives are counted; it writes to `out`.
  LogSumExpSide among_positives(double* out) const {
    return {x, y, scale, own_bias, other_bias, masks.among_positives(), bias, out};
  }

  RunningCall<A> running(LabelSums* labels, float* targets) const {
    return {x, y, scale, bias, own_bias, other_bias, masks, lse, labels, targets};
  }

  // Sets lse from the sums over tiles. The targets are added later.
  void from_sums(const std::vector<double>& sums, const std::vector<double>& target_sums, const LabelSums& labels,
                 const SharedShift& shift, double largest_bias, int threads) const {
    const double smallest_trusted = smallest_trusted_sum(y.rows);
    std::vector<Index> untrusted;
    for (Index i = 0; i < x.rows; ++i) {
      lse[i] = std::log(sums[i]) + (shift.shift + largest_bias) * kLn2 + bias + own(i);
      const bool has_label = !labels.count.empty() && labels.count[i] > 0;
      if (masks.counts_only_positives() && !has_label) continue;  // −inf
      if (!(sums[i] + target_sums[i] >= smallest_trusted)) untrusted.push_back(i);
    }
    if (!untrusted.empty()) redo(untrusted, threads);
  }

 private:
  double own(Index i) const { return own_bias == nullptr ? 0 : own_bias[i]; }

  void redo(const std::vector<Index>& untrusted, int threads) const {
    const GatheredRows gathered(x, untrusted);
    const PairMasks row_masks = masks.select_rows(untrusted);
    std::vector<double> biases(untrusted.size()), redone(untrusted.size());
    for (std::size_t i = 0; i < untrusted.size(); ++i) biases[i] = own(untrusted[i]);
    RunningCall<A>{gathered.features, y,         scale,         bias,    biases.data(),
                   other_bias,        row_masks, redone.data(), nullptr, nullptr}
        .run(threads);
    for (std::size_t i = 0; i < untrusted.size(); ++i) lse[untrusted[i]] = redone[i];
  }
};

template <class A>
class SoftmaxForward {
 public:
  SoftmaxForward(const SimilarityInputs& inputs, const SoftmaxStatistics& statistics, Kept kept, int threads)
      : inputs_(inputs),
        statistics_(statistics),
        kept_(kept),
        threads_(threads),
        shift_(inputs, threads),
        masks_(inputs),
        sums_(inputs, masks_.has_labels()),
        target_products_(masks_.has_targets() ? inputs.x.rows : 0),
        targets_(target_products_.size()),
        has_columns_(inputs.has_columns && !inputs.is_symmetric) {}

  void run() {
    if (kept_.size > 0) kept_.data[0] = 0;  // nothing is kept yet: clears the fingerprint of an earlier call
    const BiasFactors row_factors(inputs_.row_bias, inputs_.x.rows), col_factors(inputs_.col_bias, inputs_.y.rows);
    if (shift_.is_usable() && row_factors.are_normal && col_factors.are_normal) {
      with_shared_shift(row_factors, col_factors);
    } else {
      with_running_maxima();
    }
    if (masks_.has_targets()) add_targets();
    if (!joins_positives()) set_label_positives();
    if (!inputs_.is_symmetric || !inputs_.has_columns) return;
    std::copy_n(statistics_.row_lse, inputs_.x.rows, statistics_.col_lse);
    if (!masks_.has_targets()) std::copy_n(statistics_.row_pos, inputs_.x.rows, statistics_.col_pos);
  }

 private:
  LogSumExpSide<A> rows() const {
    return {inputs_.x,        inputs_.y, inputs_.scale, inputs_.row_bias,
            inputs_.col_bias, masks_,    inputs_.bias,  statistics_.row_lse};
  }
  // Products of the transposed matrix have the same bits.
  LogSumExpSide<typename A::Transposed> columns() const {
    return {inputs_.y,        inputs_.x,           inputs_.scale, inputs_.col_bias,
            inputs_.row_bias, masks_.transposed(), inputs_.bias,  statistics_.col_lse};
  }
  bool joins_positives() const { return inputs_.positives == Positives::kLogSumExp; }
  LogSumExpSide<A> positives_of_rows() const { return rows().among_positives(statistics_.row_pos); }
  LogSumExpSide<typename A::Transposed> positives_of_columns() const {
    return columns().among_positives(statistics_.col_pos);
  }

  void with_shared_shift(const BiasFactors& row_factors, const BiasFactors& col_factors) {
    sum_blocks(row_factors, col_factors);
    set_targets();
    // E of the targets, times the bias of the other side as in the sums.
    std::vector<double> row_targets(inputs_.x.rows), col_targets(has_columns_ ? inputs_.y.rows : 0);
    const bool are_counted = masks_.has_targets() && inputs_.denominator != Denominator::kNegatives;
    for (Index i = 0; are_counted && i < inputs_.x.rows; ++i) {
      const Index j = inputs_.pairs.target[i];
      if (j < 0) continue;
      const double exponent = (targets_[i] - inputs_.bias) * kLog2E - shift_.shift;
      row_targets[i] = std::exp2(exponent - row_bias(inputs_, i) * kLog2E - col_factors.largest);
      if (has_columns_) col_targets[j] += std::exp2(exponent - col_bias(inputs_, j) * kLog2E - row_factors.largest);
    }
    const auto finish = [&](const auto& side, const std::vector<double>& sums, bool is_rows) {
      side.from_sums(sums, is_rows ? row_targets : col_targets, is_rows ? sums_.row_labels : sums_.col_labels, shift_,
                     is_rows ? col_factors.largest : row_factors.largest, threads_);
    };
    finish(rows(), sums_.row, true);
    if (joins_positives()) finish(positives_of_rows(), sums_.row_labels.total, true);
    if (!has_columns_) return;
    finish(columns(), sums_.col, false);
    if (joins_positives()) finish(positives_of_columns(), sums_.col_labels.total, false);
  }

  void sum_blocks(const BiasFactors& row_factors, const BiasFactors& col_factors) {
    const BlockGrid grid(inputs_, threads_);
    const KeptBlocks<A> kept(kept_, grid, threads_);
    kept.prepare();
    Scratch scratch(BlockScratch<A>::floats(grid, inputs_.x.columns, false), threads_);
    grid.for_each_pair([&](int row_stripe, int column_stripe, int thread) {
      const Multiplying<A> multiplying;
      BlockScratch<A> blocks(scratch.of_thread(thread), inputs_, grid, false);
      SumExponentials epilogue{inputs_, shift_, masks_, row_factors, col_factors, target_products_.data()};
      blocks.walk(grid, row_stripe, column_stripe, [&](const Block& block) {
        if (is_left_out(masks_, block)) return;
        float* place = kept.of(block);
        epilogue.enter(block, place == nullptr ? blocks.numbers : place);
        blocks.multiply(block, epilogue.numbers, epilogue);
        epilogue.leave(sums_);
      });
    });
  }

  void with_running_maxima() {
    const bool sums_labels = masks_.has_labels() && !joins_positives();
    float* targets = masks_.has_targets() ? target_products_.data() : nullptr;
    rows().running(sums_labels ? &sums_.row_labels : nullptr, targets).run(threads_);
    set_targets();
    if (joins_positives()) positives_of_rows().running(nullptr, nullptr).run(threads_);
    if (!has_columns_) return;
    columns().running(sums_labels ? &sums_.col_labels : nullptr, nullptr).run(threads_);
    if (joins_positives()) positives_of_columns().running(nullptr, nullptr).run(threads_);
  }

  // The logits of targets from their products; 0 for rows without one.
  void set_targets() {
    for (std::size_t i = 0; i < targets_.size(); ++i) {
      const Index j = inputs_.pairs.target[i];
      if (j < 0) continue;
      targets_[i] =
          wide_logit(target_products_[i], inputs_.scale, inputs_.bias, row_bias(inputs_, i), col_bias(inputs_, j));
    }
  }

  // Adds the targets to the log-sum-exps of the other entries, and sets row_pos and col_pos.
  void add_targets() {
    const bool is_counted = inputs_.denominator != Denominator::kNegatives;
    for (Index j = 0; inputs_.has_columns && j < inputs_.y.rows; ++j) statistics_.col_pos[j] = 0;
    for (Index i = 0; i < inputs_.x.rows; ++i) {
      const Index j = inputs_.pairs.target[i];
      statistics_.row_pos[i] = targets_[i];
      if (j < 0) continue;
      if (inputs_.has_columns) statistics_.col_pos[j] += targets_[i];
      if (!is_counted) continue;
      statistics_.row_lse[i] = log_add_exp(statistics_.row_lse[i], targets_[i]);
      if (has_columns_) statistics_.col_lse[j] = log_add_exp(statistics_.col_lse[j], targets_[i]);
    }
  }

  void set_label_positives() {
    if (masks_.has_targets()) return;
    const auto set = [&](double* positive, const LabelSums& sums, const double* own_bias, Index count) {
      for (Index i = 0; i < count; ++i) {
        const bool has_any = masks_.has_labels() && sums.count[i] > 0;
        const double own = inputs_.bias + (own_bias == nullptr ? 0 : own_bias[i]);
        positive[i] = has_any ? sums.total[i] + sums.count[i] * own : 0;
      }
    };
    set(statistics_.row_pos, sums_.row_labels, inputs_.row_bias, inputs_.x.rows);
    if (has_columns_) set(statistics_.col_pos, sums_.col_labels, inputs_.col_bias, inputs_.y.rows);
  }

  const SimilarityInputs& inputs_;
  const SoftmaxStatistics& statistics_;
  Kept kept_;
  int threads_;
  SharedShift shift_;
  PairMasks masks_;
  ExponentialSums sums_;
  std::vector<float> target_products_;
  std::vector<double> targets_;
  bool has_columns_;  // whether the columns have sums of their own
};

// Whether products must have the same bits where lhs and rhs change places, which those of parts have not. Where y is x
// the backward takes both softmaxes of a pair from one product, and without a shared shift it needs the forward's bits.
inline bool needs_mirrored_bits(const SimilarityInputs& inputs, int threads) {
  return kHasMatrixUnit && inputs.is_symmetric &&
         !(SharedShift(inputs, threads).is_usable() && BiasFactors(inputs.row_bias, inputs.x.rows).are_normal);
}

void softmax_similarity_forward(const SimilarityInputs& inputs, const SoftmaxStatistics& statistics, Kept kept,
                                int threads) {
  const auto run = [&](auto arithmetic) {
    SoftmaxForward<decltype(arithmetic)>(inputs, statistics, kept, threads).run();
  };
  needs_mirrored_bits(inputs, threads) ? run(Float32{}) : with_arithmetic(inputs, threads, run);
}

}  // namespace
}  // namespace mmcore

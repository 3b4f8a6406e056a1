// Sums of E by rows and by columns: the epilogue of the forward.
//
//   row_i = Σ_{j counted} E_ij·2^(col_bias_j)      col_j = Σ_{i counted} E_ij·2^(row_bias_i)
//
// E is that of shared_shift.h. The biases here are those of the call times log2(e), minus the largest of their side.
//
// Never stored: the logits. E overwrites the products of a block, in scratch memory or in memory kept for the backward.
// Loop order: similarity_blocks.h. A tile of products is exponentiated and summed by rows and by columns while it is in
// L1.
// Precision: sums are float32 inside a block, float64 across blocks.
// Used by softmax_similarity, prefix_similarity and distillation, forward.
#pragma once

#include "choose_arithmetic.h"
#include "pairs.h"
#include "positives.h"
#include "shared_shift.h"
#include "similarity_blocks.h"
#include "wide.h"

namespace mmcore {
namespace {

// Sums over the positives by label, per row or per column.
struct LabelSums {
  std::vector<double> total;  // Σ scale·⟨x_i, y_j⟩ + col_bias_j, or Σ E
  std::vector<double> count;  // how many
  explicit LabelSums(Index size) : total(size), count(size) {}
};

// True for a block without positives if only positives are counted. Where labels are sorted, most blocks are such.
inline bool is_left_out(const PairMasks& masks, const Block& block) {
  return masks.has_labels() && masks.counts_only_positives() &&
         !masks.has_positives(block.rows.begin, block.rows.size(), block.columns.begin, block.columns.size());
}

// Sums over E. In a symmetric matrix those of the columns are added to those of the rows.
struct ExponentialSums {
  std::vector<double> row, col;
  LabelSums row_labels, col_labels;
  bool is_symmetric;

  explicit ExponentialSums(const SimilarityInputs& inputs, bool has_labels)
      : row(inputs.x.rows),
        col(inputs.is_symmetric ? 0 : inputs.y.rows),
        row_labels(has_labels ? inputs.x.rows : 0),
        col_labels(has_labels && !inputs.is_symmetric ? inputs.y.rows : 0),
        is_symmetric(inputs.is_symmetric) {}

  std::vector<double>& columns() { return is_symmetric ? row : col; }
  LabelSums& labels_of_columns() { return is_symmetric ? row_labels : col_labels; }
};

// Partial sums of one block by rows (kLanes each) and by columns.
struct BlockSums {
  float row[kBlock * kLanes];
  float col[kBlock];

  static void add(float* partial, Vec v) { store(partial, load(partial) + v); }
  void clear() { std::memset(this, 0, sizeof(*this)); }
  void flush(const Block& block, std::vector<double>& rows, std::vector<double>* columns) const {
    for (Index r = 0; r < block.rows.size(); ++r) rows[block.rows.begin + r] += sum(load(row + r * kLanes));
    for (Index c = 0; columns != nullptr && c < block.columns.size(); ++c)
      (*columns)[block.columns.begin + c] += col[c];
  }
  // The same times `factor`. The lanes are added in float64: with few positives, a float32 addition of the lanes would
  // be the only rounding.
  void flush_wide(const Block& block, double factor, std::vector<double>& rows, std::vector<double>* columns) const {
    for (Index r = 0; r < block.rows.size(); ++r)
      rows[block.rows.begin + r] += factor * sum(widen(load(row + r * kLanes)));
    for (Index c = 0; columns != nullptr && c < block.columns.size(); ++c)
      (*columns)[block.columns.begin + c] += factor * col[c];
  }
};

// Epilogue of one block: exponentiates tiles and adds up rows and columns.
struct SumExponentials {
  const SimilarityInputs& inputs;
  const SharedShift& shift;
  const PairMasks& masks;
  const BiasFactors &row_factors, &col_factors;
  float* targets;  // (N,): the products that targets name
  bool is_plain = masks.is_plain() && row_factors.empty() && col_factors.empty();
  Block block{};
  float* numbers = nullptr;    // products in, exponentials out
  float rounder[kBlock] = {};  // per column, and −inf in the padding, so that E = 0 there
  BlockSums exponentials{}, label_totals{}, label_counts{};

  void enter(const Block& next, float* target) {
    block = next;
    numbers = target;
    for (Index c = 0; c < kBlock; ++c) rounder[c] = c < block.columns.size() ? shift.shifted_rounder() : -kInfinity;
    exponentials.clear();
    if (!masks.has_labels()) return;
    label_totals.clear();
    label_counts.clear();
  }

  void leave(ExponentialSums& sums) const {
    const bool has_mirror = !block.is_diagonal;
    exponentials.flush(block, sums.row, has_mirror ? &sums.columns() : nullptr);
    if (!masks.has_labels()) return;
    LabelSums& col_labels = sums.labels_of_columns();
    label_totals.flush_wide(block, sums_products() ? inputs.scale : 1, sums.row_labels.total,
                            has_mirror ? &col_labels.total : nullptr);
    label_counts.flush(block, sums.row_labels.count, has_mirror ? &col_labels.count : nullptr);
  }

  void operator()(Index row, Index column) {
    const Index valid = minimum(kTileRows, block.rows.size() - row);
    float* tile = numbers + row * kBlockStride + column;
    if (is_plain) {
      add_plain_tile(row, column, valid, tile);
    } else {
      const bool sums_logits = masks.has_labels() && inputs.positives == Positives::kSum;
      if (sums_logits) add_positives(row, column, valid, tile, true);
      add_masked_tile(row, column, valid, tile);
      if (masks.has_labels() && !sums_logits) add_positives(row, column, valid, tile, false);
    }
  }

 private:
  // Whether the totals of labels are those of products, which are multiplied by the scale at the end of a block.
  bool sums_products() const {
    return inputs.positives == Positives::kSum && row_factors.empty() && col_factors.empty();
  }

  void add_plain_tile(Index row, Index column, Index valid, float* tile) {
    Vec col_total[kTileVectors];
    for (int v = 0; v < kTileVectors; ++v) col_total[v] = load(exponentials.col + column + v * kLanes);
    for (Index r = 0; r < valid; ++r, tile += kBlockStride) {
      Vec e[kTileVectors];
      for (int v = 0; v < kTileVectors; ++v)
        e[v] = shift.exponential(load(tile + v * kLanes), load(rounder + column + v * kLanes));
      const Index i = block.rows.begin + row + r, lane = masks.target_lane(i, block.columns.begin + column);
      if (lane >= 0 && lane < minimum(kTileColumns, block.columns.size() - column)) {
        targets[i] = tile[lane];
        e[lane / kLanes][lane % kLanes] = 0;
      }
      Vec row_total{};
      for (int v = 0; v < kTileVectors; ++v) {
        store(tile + v * kLanes, e[v]);
        row_total += e[v];
        col_total[v] += e[v];
      }
      BlockSums::add(exponentials.row + (row + r) * kLanes, row_total);
    }
    for (int v = 0; v < kTileVectors; ++v) store(exponentials.col + column + v * kLanes, col_total[v]);
  }

  void add_masked_tile(Index row, Index column, Index valid, float* tile) {
    Vec col_total[kTileVectors] = {};
    for (Index r = 0; r < valid; ++r, tile += kBlockStride) {
      const Index i = block.rows.begin + row + r;
      const float row_factor = row_factors.empty() ? 1.0f : *row_factors.from(i);
      keep_targets(i, column, tile);
      Vec row_total{};
      for (int v = 0; v < kTileVectors; ++v) {
        const Index c = column + v * kLanes, j = block.columns.begin + c;
        const Vec e = shift.exponential(load(tile + v * kLanes), load(rounder + c));
        store(tile + v * kLanes, e);
        const Masks mask = masks.at(i, j);
        const Vec col_factor = col_factors.empty() ? broadcast(1) : load(col_factors.from(j));
        row_total += mask.keep ? e * col_factor : Vec{};
        col_total[v] += mask.keep_col ? e * row_factor : Vec{};
      }
      BlockSums::add(exponentials.row + (row + r) * kLanes, row_total);
    }
    for (int v = 0; v < kTileVectors; ++v) BlockSums::add(exponentials.col + column + v * kLanes, col_total[v]);
  }

  // Before E overwrites the products of row i in the tile that begins at `column` of the block.
  void keep_targets(Index i, Index column, const float* tile) {
    const Index first = block.columns.begin + column;
    masks.visit_targets(i, first, [&](Index lane) {
      if (column + lane >= block.columns.size()) return;  // the padding of the tile
      if (masks.target(i) == first + lane) targets[i] = tile[lane];
      if (masks.is_mirrored() && masks.target(first + lane) == i) targets[first + lane] = tile[lane];
    });
  }

  // Adds the positives by label of a tile: logits if it holds products, otherwise E. Biases that are the same along the
  // row or column are left out.
  void add_positives(Index row, Index column, Index valid, const float* tile, bool are_products) {
    const float scale = sums_products() ? 1.0f : static_cast<float>(inputs.scale);
    for (Index r = 0; r < valid; ++r, tile += kBlockStride) {
      const Index i = block.rows.begin + row + r;
      for (int v = 0; v < kTileVectors; ++v) {
        const Index c = column + v * kLanes;
        // Lanes beyond the block belong to another block.
        const IntVec positive = masks.at(i, block.columns.begin + c).positive & (load(rounder + c) > -kInfinity);
        if (!any(positive)) continue;
        const Vec number = load(tile + v * kLanes), one = positive ? broadcast(1) : Vec{};
        Vec in_row = are_products ? number * scale : number, in_col = in_row;
        if (!col_factors.empty()) {
          const Index j = block.columns.begin + c;
          in_row =
              are_products ? in_row + narrow(load(col_factors.value.data() + j)) : in_row * load(col_factors.from(j));
        }
        if (!row_factors.empty())
          in_col = are_products ? in_col + static_cast<float>(row_factors.value[i]) : in_col * *row_factors.from(i);
        BlockSums::add(label_totals.row + (row + r) * kLanes, positive ? in_row : Vec{});
        BlockSums::add(label_totals.col + c, positive ? in_col : Vec{});
        BlockSums::add(label_counts.row + (row + r) * kLanes, one);
        BlockSums::add(label_counts.col + c, one);
      }
    }
  }
};

}  // namespace
}  // namespace mmcore

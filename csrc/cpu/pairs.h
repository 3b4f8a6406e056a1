// Which pairs are positives and which are counted, for a row and kLanes columns at a time.
//
// Ids are compared as vectors. With targets, the id of a row is its target, and the id of a column is its number. The
// entry that a target names is left out of every sum of a tile, because it is added apart, in float64. In a symmetric
// matrix an entry stands for (i, j) and for (j, i), and one of them may be counted without the other.
#pragma once

#include <algorithm>
#include <vector>

#include "../kernels.h"
#include "matmul.h"

namespace mmcore {
namespace {

// All lanes set where true.
struct Masks {
  IntVec positive;  // by label; unset everywhere where there are targets
  IntVec keep;      // whether the row's sum takes the entry
  IntVec keep_col;  // whether the column's sum takes it: as `keep`, except for targets of a symmetric matrix
};

class PairMasks {
 public:
  explicit PairMasks(const SimilarityInputs& inputs)
      : denominator_(inputs.denominator),
        has_targets_(inputs.pairs.target != nullptr),
        has_labels_(inputs.pairs.row_label != nullptr),
        has_groups_(inputs.pairs.row_group != nullptr),
        is_mirrored_(inputs.is_symmetric && has_targets_) {
    const Pairs& pairs = inputs.pairs;
    const Index rows = inputs.x.rows, columns = inputs.y.rows;
    if (has_targets_) {
      row_id_ = ids(pairs.target, rows, -1);
      col_id_.assign(padded(columns), -2);
      for (Index j = 0; j < columns; ++j) col_id_[j] = static_cast<std::int32_t>(j);
      if (is_mirrored_) col_target_ = ids(pairs.target, columns, -2);
    }
    if (has_labels_) {
      row_id_ = ids(pairs.row_label, rows, -1);
      col_id_ = ids(inputs.is_symmetric ? pairs.row_label : pairs.col_label, columns, -2);
    }
    if (has_groups_) {
      row_group_ = ids(pairs.row_group, rows, -1);
      col_group_ = ids(inputs.is_symmetric ? pairs.row_group : pairs.col_group, columns, -2);
    }
  }

  // The masks of the transposed matrix.
  PairMasks transposed() const {
    PairMasks result = *this;
    std::swap(result.row_id_, result.col_id_);
    std::swap(result.row_group_, result.col_group_);
    for (auto* ids : {&result.row_id_, &result.row_group_}) std::replace(ids->begin(), ids->end(), -2, -1);
    for (auto* ids : {&result.col_id_, &result.col_group_}) std::replace(ids->begin(), ids->end(), -1, -2);
    return result;
  }

  // The masks of the listed rows.
  PairMasks select_rows(const std::vector<Index>& rows) const {
    PairMasks result = *this;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      if (!row_id_.empty()) result.row_id_[i] = row_id_[rows[i]];
      if (has_groups_) result.row_group_[i] = row_group_[rows[i]];
    }
    return result;
  }

  // The masks of the same matrix where only positives are counted.
  PairMasks among_positives() const {
    PairMasks result = *this;
    result.denominator_ = Denominator::kPositives;
    return result;
  }

  bool has_targets() const { return has_targets_; }
  bool has_labels() const { return has_labels_; }
  bool is_mirrored() const { return is_mirrored_; }
  // True if only targets are left out, and every entry stands for one pair.
  bool is_plain() const { return !has_labels_ && !has_groups_ && !is_mirrored_ && !counts_only_positives(); }
  bool counts_only_positives() const { return denominator_ == Denominator::kPositives; }

  // The lane of row i's target, counted from `column`: negative if the target lies before it, or if there is none.
  Index target_lane(Index i, Index column) const { return has_targets_ && row_id_[i] >= 0 ? row_id_[i] - column : -1; }
  std::int32_t target(Index i) const { return row_id_[i]; }
  // visit(lane) for the entries of row i that a target names, in the tile that begins at column `first`: the target of
  // i and, in a symmetric matrix, the columns whose target is i.
  template <class Visit>
  void visit_targets(Index i, Index first, Visit visit) const {
    const Index lane = target_lane(i, first);
    if (lane >= 0 && lane < kTileColumns) visit(lane);
    for (int v = 0; is_mirrored_ && v < kTileVectors; ++v) {
      const IntVec mirrored = mirrored_target(i, first + v * kLanes);
      for (int l = 0; any(mirrored) && l < kLanes; ++l)
        if (mirrored[l] != 0) visit(v * kLanes + l);
    }
  }
  bool is_excluded(Index i, Index j) const { return has_groups_ && row_group_[i] == col_group_[j]; }
  // The lanes, among the columns from j, whose own target is row i.
  IntVec mirrored_target(Index i, Index j) const {
    return load(col_target_.data() + j) == static_cast<std::int32_t>(i);
  }

  // Whether a label makes any pair of these rows and columns a positive.
  bool has_positives(Index first_row, Index rows, Index first_column, Index columns) const {
    for (Index i = first_row; i < first_row + rows; ++i)
      for (Index j = 0; j < columns; j += kLanes)
        if (any(at(i, first_column + j).positive)) return true;
    return false;
  }

  Masks at(Index i, Index j) const {
    const IntVec none{}, all = ~none;
    const IntVec excluded = has_groups_ ? load(col_group_.data() + j) == row_group_[i] : none;
    const IntVec matches = has_targets_ || has_labels_ ? load(col_id_.data() + j) == row_id_[i] : none;
    Masks masks{none, none, none};
    if (has_labels_) {
      masks.positive = matches & ~excluded;
      masks.keep = denominator_ == Denominator::kAll         ? ~excluded
                   : denominator_ == Denominator::kNegatives ? ~(excluded | matches)
                                                             : masks.positive;
    } else if (denominator_ != Denominator::kPositives) {
      masks.keep = all & ~(excluded | matches);
    }
    masks.keep_col = masks.keep;
    if (is_mirrored_ && denominator_ != Denominator::kPositives)
      masks.keep_col = all & ~(excluded | mirrored_target(i, j));
    return masks;
  }

 private:
  // With room for whole tiles beyond the last column.
  static Index padded(Index count) { return round_up(count, kBlock) + kBlock; }

  template <class T>
  static std::vector<std::int32_t> ids(const T* source, Index count, std::int32_t nothing) {
    std::vector<std::int32_t> result(padded(count), nothing);
    for (Index i = 0; i < count; ++i)
      if (source[i] >= 0) result[i] = static_cast<std::int32_t>(source[i]);
    return result;
  }

  Denominator denominator_;
  bool has_targets_, has_labels_, has_groups_, is_mirrored_;
  std::vector<std::int32_t> row_id_, col_id_, col_target_, row_group_, col_group_;
};

}  // namespace
}  // namespace mmcore

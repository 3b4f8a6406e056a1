// Two loop bodies for the entries of a tile: one with masks, and one without for tiles in which every entry counts.
//
// With one positive per row, nearly every tile contains no positive and takes the second.
#pragma once

#include "pairs.h"
#include "similarity_blocks.h"

namespace mmcore {
namespace {

// Whether every entry of a whole tile of columns is counted.
inline bool counts_all(const PairMasks& masks, const Block& block, Index row, Index column) {
  if (!masks.is_plain() || column + kTileColumns > block.columns.size()) return false;
  for (Index i = row; i < minimum(row + kTileRows, block.rows.size()); ++i) {
    const Index lane = masks.target_lane(block.rows.begin + i, block.columns.begin + column);
    if (lane >= 0 && lane < kTileColumns) return false;
  }
  return true;
}

// Of a row where all are.
struct AllEntries {
  AllEntries(const PairMasks&, Index, Index) {}
  Vec operator()(Vec e, Index) const { return e; }
};

// Of row i, before column `end`. What a loop asks of the masks is copied here, because the compiler would have to load
// it again after every store.
class CountedEntries {
 public:
  CountedEntries(const PairMasks& masks, Index i, Index end)
      : masks_(masks), i_(i), end_(end), target_(masks.target_lane(i, 0)), is_plain_(masks.is_plain()) {}

  // Of the columns from j.
  Vec operator()(Vec e, Index j) const {
    if (is_plain_) {
      const Index lane = target_ - j;
      if (lane >= 0 && lane < kLanes) e[lane] = 0;
    } else {
      e = masks_.at(i_, j).keep ? e : Vec{};
    }
    const Index count = end_ - j;
    return count < kLanes ? first_lanes(e, maximum(0, count), Vec{}) : e;
  }

 private:
  const PairMasks& masks_;
  Index i_, end_, target_;
  bool is_plain_;
};

}  // namespace
}  // namespace mmcore

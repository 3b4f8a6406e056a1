// Two loop bodies for the entries of a tile: one with masks, and one without for tiles in which every entry counts.
//
// With one positive per row, nearly every tile contains no positive and takes the second.
#pragma once

#include "pairs.h"
#include "similarity_blocks.h"

namespace mmcore {
namespace {

// Whether every entry of the tile at this row and column of the block is counted, and no column lies beyond the block.
inline bool counts_all(const PairMasks& masks, const Block& block, Index row, Index column) {
  if (!masks.is_plain() || column + kTileColumns > block.columns.size()) return false;
  for (Index i = row; i < minimum(row + kTileRows, block.rows.size()); ++i) {
    const Index lane = masks.target_lane(block.rows.begin + i, block.columns.begin + column);
    if (lane >= 0 && lane < kTileColumns) return false;
  }
  return true;
}

// Without masks.
struct AllEntries {
  AllEntries(const PairMasks&, Index, Index) {}
  Vec operator()(Vec e, Index) const { return e; }
};

// With the masks of row i: entries that are not counted become 0, and so do those from column `end` on. The members
// are copies, because the compiler would have to load the originals again after every store.
class CountedEntries {
 public:
  CountedEntries(const PairMasks& masks, Index i, Index end)
      : masks_(masks), i_(i), end_(end), target_(masks.target_lane(i, 0)), is_plain_(masks.is_plain()) {}

  // The entries of the columns from j on.
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

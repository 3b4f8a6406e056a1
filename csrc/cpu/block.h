// The blocks in which products are computed, and the parts of tiles that lie inside a matrix.
#pragma once

#include "arithmetic.h"

namespace mmcore {
namespace {

// Blocks of the similarity matrix are kBlock × kBlock: a multiple of every tile, and 150 or 270 KiB of L2.
constexpr Index kBlock = kHasMatrixUnit ? 256 : 192;
// A row of a block in scratch memory; the odd number of cache lines spreads a column over all sets of L1.
constexpr Index kBlockStride = kBlock + 16;
constexpr Index kBlockFloats = kBlock * kBlockStride;
// Rows are cut for threads at multiples of this, so that only the last tiles of a matrix are partly empty.
constexpr Index kStripeRows = kHasMatrixUnit ? 32 : kTileRows;

static_assert(kBlock % kTileRows == 0 && kBlock % kTileColumns == 0 && kBlock % kStripeRows == 0);

// Adds the part of a tile of `tile_rows` × kTileColumns that lies inside `target`.
inline void add_part_of_tile(const float* tile, Index tile_rows, MutableMatrix target, Index row, Index column) {
  const Index rows = minimum(tile_rows, target.rows - row), columns = minimum(kTileColumns, target.columns - column);
  for (Index r = 0; r < rows; ++r)
    for (Index c = 0; c < columns; ++c) target.row(row + r)[column + c] += tile[r * kTileColumns + c];
}

}  // namespace
}  // namespace mmcore

// Register-tiled block product: the multiply-add core under every kernel.
//
//   tile(r, c) = Σ_k lhs(r, k) · rhs(k, c)        then epilogue(tile, row, column)
//
// Never stored: the product. A tile of kTileRows × kTileColumns sums lives in registers from the first k to the last
// and the epilogue consumes it there. Loop order: a panel of rhs (kTileColumns columns, at most kDepth deep) stays in
// L1 while the lhs tiles stream past it from L2. Sums run over k in order, in float32 FMAs. The tile balances the front
// end against the FMA pipes: 4×24 issues 19 instructions per 12 FMAs on AVX2 (6×16: 20, and slower when a neighbour
// shares the core's issue slots); 12×32 needs 14 loads per 24 FMAs on AVX-512.
#pragma once

#include "parallel.h"
#include "vec.h"

namespace mmcore {
namespace {

constexpr int kTileRows = kLanes == 16 ? 12 : 4;
constexpr int kTileVectors = kLanes == 16 ? 2 : 3;
constexpr int kTileColumns = kTileVectors * kLanes;
// One panel of rhs, kDepth × kTileColumns floats, is 24 KiB on AVX2 and 32 KiB on AVX-512.
constexpr Index kDepth = 256;
// Blocks of the similarity matrix are kBlock × kBlock: a multiple of every tile, and 150 KiB of L2.
constexpr Index kBlock = 192;
// A row of a block in scratch memory; the odd number of cache lines spreads a column over all sets of L1.
constexpr Index kBlockStride = kBlock + 16;
constexpr Index kBlockFloats = kBlock * kBlockStride;

static_assert(kBlock % kTileRows == 0 && kBlock % kTileColumns == 0);

struct Tile {
  Vec sum[kTileRows][kTileVectors];
};

// lhs(r, k) of tile t = data[t · tile_stride + r · kRowStep + k · kDepthStep]
template <Index kRowStep, Index kDepthStep>
struct Lhs {
  const float* data;
  Index tile_stride;

  const float* tile(Index row) const { return data + row / kTileRows * tile_stride; }
  Lhs from_depth(Index k) const { return {data + k * kDepthStep, tile_stride}; }
};

using PackedLhs = Lhs<1, kTileRows>;
using BlockLhs = Lhs<kBlockStride, 1>;            // a block in scratch memory, as stored
using TransposedBlockLhs = Lhs<1, kBlockStride>;  // its transpose

inline BlockLhs block_lhs(const float* block) { return {block, kTileRows * kBlockStride}; }
inline TransposedBlockLhs transposed_block_lhs(const float* block) { return {block, kTileRows}; }

// Panels of kTileColumns columns: rhs(k, c) of panel p = data[p · panel_stride + k · kTileColumns + c]
struct PackedRhs {
  const float* data;
  Index panel_stride;

  const float* panel(Index column) const { return data + column / kTileColumns * panel_stride; }
  PackedRhs from_depth(Index k) const { return {data + k * kTileColumns, panel_stride}; }
};

template <Index kRowStep, Index kDepthStep>
__attribute__((always_inline)) inline void multiply_add(Tile& tile, const float* lhs, const float* rhs, Index depth) {
  auto step = [&](const float* l, const float* r) __attribute__((always_inline)) {
    Vec column[kTileVectors];
    for (int v = 0; v < kTileVectors; ++v) column[v] = load(r + v * kLanes);
    for (int row = 0; row < kTileRows; ++row)
      for (int v = 0; v < kTileVectors; ++v) tile.sum[row][v] += l[row * kRowStep] * column[v];
  };
  Index k = 0;
  for (; k + 4 <= depth; k += 4) {
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) step(lhs + (k + u) * kDepthStep, rhs + (k + u) * kTileColumns);
  }
  for (; k < depth; ++k) step(lhs + k * kDepthStep, rhs + k * kTileColumns);
}

// epilogue(tile, row, column) for every tile of a (rows × columns) product. Best with depth <= kDepth.
template <Index kRowStep, Index kDepthStep, class Epilogue>
inline void multiply_shallow(Lhs<kRowStep, kDepthStep> lhs, PackedRhs rhs, Index rows, Index columns, Index depth,
                             Epilogue&& epilogue) {
  for (Index column = 0; column < columns; column += kTileColumns) {
    const float* panel = rhs.panel(column);
    for (Index row = 0; row < rows; row += kTileRows) {
      Tile tile{};
      multiply_add<kRowStep, kDepthStep>(tile, lhs.tile(row), panel, depth);
      epilogue(tile, row, column);
    }
  }
}

inline void store_tile(const Tile& tile, float* target, Index stride) {
  for (int r = 0; r < kTileRows; ++r)
    for (int v = 0; v < kTileVectors; ++v) store(target + r * stride + v * kLanes, tile.sum[r][v]);
}

inline void add_stored(Tile& tile, const float* source, Index stride) {
  for (int r = 0; r < kTileRows; ++r)
    for (int v = 0; v < kTileVectors; ++v) tile.sum[r][v] += load(source + r * stride + v * kLanes);
}

// As multiply_shallow for any depth, for a block of at most kBlock × kBlock: between slices of kDepth the partial sums
// rest in `block` (kBlockFloats), which the epilogue may then overwrite.
template <class LhsView, class Epilogue>
inline void multiply_block(LhsView lhs, PackedRhs rhs, Index rows, Index columns, Index depth, float* block,
                           Epilogue&& epilogue) {
  Index slices = maximum(1, (depth + kDepth - 1) / kDepth);
  for (Index slice = 0; slice < slices; ++slice) {
    Range k = stripe(depth, 1, slice, slices);
    bool is_first = slice == 0, is_last = slice == slices - 1;
    multiply_shallow(lhs.from_depth(k.begin), rhs.from_depth(k.begin), rows, columns, k.size(),
                     [&](Tile& tile, Index row, Index column) __attribute__((always_inline)) {
                       float* partial = block + row * kBlockStride + column;
                       if (!is_first) add_stored(tile, partial, kBlockStride);
                       if (is_last) {
                         epilogue(tile, row, column);
                       } else {
                         store_tile(tile, partial, kBlockStride);
                       }
                     });
  }
}

// Epilogue that adds the tile to the valid part of a matrix in memory.
struct AddTo {
  MutableMatrix target;

  void operator()(const Tile& tile, Index row, Index column) const {
    Index rows = minimum(kTileRows, target.rows - row), columns = target.columns - column;
    float* out = target.row(row) + column;
    if (rows == kTileRows && columns >= kTileColumns) {
      for (int r = 0; r < kTileRows; ++r)
        for (int v = 0; v < kTileVectors; ++v) {
          float* p = out + r * target.row_stride + v * kLanes;
          store(p, load(p) + tile.sum[r][v]);
        }
      return;
    }
    for (Index r = 0; r < rows; ++r)
      for (int v = 0; v < kTileVectors && v * kLanes < columns; ++v) {
        float* p = out + r * target.row_stride + v * kLanes;
        store_first(p, load_first(p, columns - v * kLanes) + tile.sum[r][v], columns - v * kLanes);
      }
  }
};

}  // namespace
}  // namespace mmcore

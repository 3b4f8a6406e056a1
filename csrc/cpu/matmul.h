// Register-tiled block product: the multiply-add core under every kernel.
//
//   out(r, c) = or += Σ_k lhs(r, k) · rhs(k, c)
//
// Both operands are packed (pack.h), because the strides of a row-major lhs would cost cache lines and TLB entries.
// They consist of 32-bit units of the arithmetic A (arithmetic.h), and depths count units.
//
// Never stored: more of a product than the caller's block or matrix. A tile of kTileRows × kTileColumns sums stays in
// registers over the depth of a panel and is written once; an epilogue may then read it while it is in L1. Its sums,
// one row of rhs and one broadcast fill the registers: 6×16 sums in the 16 registers of AVX2, 12×32 in the 32 of
// AVX-512.
// Loop order: a panel of rhs (kTileColumns columns, at most kDepth deep) stays in L1 while the tiles of lhs stream past
// it from L2.
// Precision: float32 sums, in chains of at most A::kChain steps that are added to each other. In a longer chain, one
// term far larger than the rest, such as that of a positive, would round every later step to its own size.
#pragma once

#include "arithmetic.h"

namespace mmcore {
namespace {

constexpr int kTileRows = kLanes == 16 ? 12 : 6;
constexpr int kTileVectors = 2;
constexpr int kTileColumns = kTileVectors * kLanes;
// Units. One panel of rhs, kDepth × kTileColumns units, is 16 KiB on AVX2 and 32 KiB on AVX-512.
constexpr Index kDepth = 256;
// Blocks of the similarity matrix are kBlock × kBlock: a multiple of every tile, and 150 KiB of L2.
constexpr Index kBlock = 192;
// A row of a block in scratch memory; the odd number of cache lines spreads a column over all sets of L1.
constexpr Index kBlockStride = kBlock + 16;
constexpr Index kBlockFloats = kBlock * kBlockStride;

static_assert(kBlock % kTileRows == 0 && kBlock % kTileColumns == 0);

// Tiles of kTileRows rows: lhs(r, k) of tile t = data[t · tile_stride + k · kTileRows + r]
struct PackedLhs {
  const float* data;
  Index tile_stride;

  const float* tile(Index row) const { return data + row / kTileRows * tile_stride; }
  PackedLhs from_depth(Index k) const { return {data + k * kTileRows, tile_stride}; }
};

// Panels of kTileColumns columns: rhs(k, c) of panel p = data[p · panel_stride + k · kTileColumns + c]
struct PackedRhs {
  const float* data;
  Index panel_stride;

  const float* panel(Index column) const { return data + column / kTileColumns * panel_stride; }
  PackedRhs from_depth(Index k) const { return {data + k * kTileColumns, panel_stride}; }
};

using Sums = Vec[kTileRows][kTileVectors];

// One step of the depth: a row of rhs against kTileRows units of lhs.
template <class A>
__attribute__((always_inline)) inline void add_outer_product(Sums& sums, const float* lhs, const float* rhs) {
  Vec column[kTileVectors];
  for (int v = 0; v < kTileVectors; ++v) column[v] = load(rhs + v * kLanes);
#pragma GCC unroll 16
  for (int row = 0; row < kTileRows; ++row) {
    const Vec factor = broadcast_bits(lhs + row);
    for (int v = 0; v < kTileVectors; ++v) A::add_product(sums[row][v], factor, column[v]);
  }
}

// The depth of one chain. Unrolled by four: the loop's own instructions cost time where a neighbouring thread takes
// issue slots.
template <class A>
__attribute__((always_inline)) inline void add_chain(Sums& sums, const float* lhs, const float* rhs, Index depth) {
  Index k = 0;
  for (; k + 4 <= depth; k += 4) {
#pragma GCC unroll 4
    for (int step = 0; step < 4; ++step)
      add_outer_product<A>(sums, lhs + (k + step) * kTileRows, rhs + (k + step) * kTileColumns);
  }
  for (; k < depth; ++k) add_outer_product<A>(sums, lhs + k * kTileRows, rhs + k * kTileColumns);
}

// target = base + sums; the rows of both are `stride` apart. Without a base, zeros.
__attribute__((always_inline)) inline void store_sums(const Sums& sums, const float* base, float* target,
                                                      Index stride) {
#pragma GCC unroll 16
  for (int row = 0; row < kTileRows; ++row)
    for (int v = 0; v < kTileVectors; ++v) {
      const Index at = row * stride + v * kLanes;
      store(target + at, base == nullptr ? sums[row][v] : load(base + at) + sums[row][v]);
    }
}

// One tile: out = base + its product. Without a base, zeros. Never inlined: among other code its sums would not stay in
// registers.
template <class A>
__attribute__((noinline)) void multiply_tile(const float* lhs, const float* rhs, Index depth, const float* base,
                                             float* out, Index out_stride) {
  // Rows of `out` may be far apart, and then no hardware prefetcher loads them.
  for (int row = 0; row < kTileRows; ++row)
    for (int v = 0; v < kTileVectors; ++v) __builtin_prefetch(out + row * out_stride + v * kLanes, 1);
  alignas(64) float total[kTileRows * kTileColumns];
  Index k = 0;
  for (; depth - k > A::kChain; k += A::kChain) {
    Sums sums{};
    add_chain<A>(sums, lhs + k * kTileRows, rhs + k * kTileColumns, A::kChain);
    store_sums(sums, k > 0 ? total : nullptr, total, kTileColumns);
  }
  Sums sums{};
  add_chain<A>(sums, lhs + k * kTileRows, rhs + k * kTileColumns, depth - k);
  if (k > 0) {
#pragma GCC unroll 16
    for (int row = 0; row < kTileRows; ++row)
      for (int v = 0; v < kTileVectors; ++v) sums[row][v] += load(total + row * kTileColumns + v * kLanes);
  }
  store_sums(sums, base, out, out_stride);
}

// block = base + the product of a block of at most kBlock × kBlock for any depth (rows kBlockStride apart, kBlockFloats
// in all, which leaves room for whole tiles); no base means zeros. epilogue(row, column) follows each finished tile.
template <class A, class Epilogue>
inline void multiply_block(PackedLhs lhs, PackedRhs rhs, Index rows, Index columns, Index depth, float* block,
                           Epilogue&& epilogue, const float* base = nullptr) {
  const Index slices = maximum(1, (depth + kDepth - 1) / kDepth);
  for (Index slice = 0; slice < slices; ++slice) {
    const Range k = stripe(depth, 1, slice, slices);
    const float* before = slice == 0 ? base : block;
    for (Index column = 0; column < columns; column += kTileColumns)
      for (Index row = 0; row < rows; row += kTileRows) {
        const Index at = row * kBlockStride + column;
        multiply_tile<A>(lhs.from_depth(k.begin).tile(row), rhs.from_depth(k.begin).panel(column), k.size(),
                         before == nullptr ? nullptr : before + at, block + at, kBlockStride);
        if (slice == slices - 1) epilogue(row, column);
      }
  }
}

// Adds the part of a tile that lies inside `target`.
inline void add_part_of_tile(const float* tile, MutableMatrix target, Index row, Index column) {
  const Index rows = minimum(kTileRows, target.rows - row), columns = minimum(kTileColumns, target.columns - column);
  for (Index r = 0; r < rows; ++r)
    for (Index c = 0; c < columns; ++c) target.row(row + r)[column + c] += tile[r * kTileColumns + c];
}

// target += the product, for any size and depth.
template <class A>
inline void multiply_into(PackedLhs lhs, PackedRhs rhs, Index depth, MutableMatrix target) {
  for (Index k = 0; k < depth; k += kDepth) {
    const Index slice = minimum(kDepth, depth - k);
    for (Index column = 0; column < target.columns; column += kTileColumns)
      for (Index row = 0; row < target.rows; row += kTileRows) {
        const float *left = lhs.from_depth(k).tile(row), *right = rhs.from_depth(k).panel(column);
        if (row + kTileRows <= target.rows && column + kTileColumns <= target.columns) {
          float* out = target.row(row) + column;
          multiply_tile<A>(left, right, slice, out, out, target.row_stride);
        } else {
          float tile[kTileRows * kTileColumns];
          multiply_tile<A>(left, right, slice, nullptr, tile, kTileColumns);
          add_part_of_tile(tile, target, row, column);
        }
      }
  }
}

}  // namespace
}  // namespace mmcore

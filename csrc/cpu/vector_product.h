// The block product by vectors.
//
//   out(r, c) = or += Σ_k lhs(r, k) · rhs(k, c)
//
// Both operands are packed (pack.h), because the strides of a row-major lhs would cost cache lines and TLB entries.
// They consist of 32-bit units of the arithmetic A (arithmetic.h), and depths count units.
//
// Never stored: more of a product than the caller's block or matrix. A tile of kSumRows × kTileColumns sums stays in
// registers over the depth of a panel and is written once; an epilogue may then read it while it is in L1. Its sums,
// one row of rhs and one broadcast fill the registers.
// Loop order: a panel of rhs (kTileColumns columns, at most kDepth deep) stays in L1 while the tiles of lhs stream past
// it from L2.
// Precision: float32 sums, in chains of at most A::kChain steps that are added to each other. In a longer chain, one
// term far larger than the rest, such as that of a positive, would round every later step to its own size.
#pragma once

#include "block.h"
#include "operand.h"

namespace mmcore {
namespace {

// Units. One panel of rhs, kDepth × kTileColumns units, is 16 KiB on AVX2 and 32 KiB on AVX-512.
constexpr Index kDepth = 256;

using Sums = Vec[kSumRows][kTileVectors];

// One step of the depth: a row of rhs against kSumRows units of lhs.
template <class A>
__attribute__((always_inline)) inline void add_outer_product(Sums& sums, const float* lhs, const float* rhs) {
  Vec column[kTileVectors];
  for (int v = 0; v < kTileVectors; ++v) column[v] = load(rhs + v * kLanes);
#pragma GCC unroll 16
  for (int row = 0; row < kSumRows; ++row) {
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
      add_outer_product<A>(sums, lhs + (k + step) * kSumRows, rhs + (k + step) * kTileColumns);
  }
  for (; k < depth; ++k) add_outer_product<A>(sums, lhs + k * kSumRows, rhs + k * kTileColumns);
}

// target = base + sums; the rows of both are `stride` apart. Without a base, zeros.
template <class A>
__attribute__((always_inline)) inline void store_sums(const Sums& sums, const float* base, float* target,
                                                      Index stride) {
#pragma GCC unroll 16
  for (int row = 0; row < kSumRows; ++row)
    for (int v = 0; v < kTileVectors; ++v) {
      const Index at = row * stride + v * kLanes;
      store(target + at, base == nullptr ? sums[row][v] : A::added(load(base + at), sums[row][v]));
    }
}

// One tile: out = base + its product. Without a base, zeros. Never inlined: among other code its sums would not stay in
// registers.
template <class A>
__attribute__((noinline)) void multiply_tile(const float* lhs, const float* rhs, Index depth, const float* base,
                                             float* out, Index out_stride) {
  // Rows of `out` may be far apart, and then no hardware prefetcher loads them.
  for (int row = 0; row < kSumRows; ++row)
    for (int v = 0; v < kTileVectors; ++v) __builtin_prefetch(out + row * out_stride + v * kLanes, 1);
  alignas(64) float total[kSumRows * kTileColumns];
  Index k = 0;
  for (; depth - k > A::kChain; k += A::kChain) {
    Sums sums{};
    add_chain<A>(sums, lhs + k * kSumRows, rhs + k * kTileColumns, A::kChain);
    store_sums<A>(sums, k > 0 ? total : nullptr, total, kTileColumns);
  }
  Sums sums{};
  add_chain<A>(sums, lhs + k * kSumRows, rhs + k * kTileColumns, depth - k);
  if (k > 0) {
#pragma GCC unroll 16
    for (int row = 0; row < kSumRows; ++row)
      for (int v = 0; v < kTileVectors; ++v)
        sums[row][v] = A::added(sums[row][v], load(total + row * kTileColumns + v * kLanes));
  }
  store_sums<A>(sums, base, out, out_stride);
}

// multiply_block and multiply_into of matmul.h, by vectors.
template <class A, class Epilogue>
inline void multiply_block_by_vectors(Lhs<A> lhs, Rhs<A> rhs, Index rows, Index columns, Index depth, float* block,
                                      Epilogue&& epilogue, const float* base) {
  const Index count = units<A>(depth), slices = maximum(1, (count + kDepth - 1) / kDepth);
  for (Index slice = 0; slice < slices; ++slice) {
    const Range k = stripe(count, 1, slice, slices);
    const float* before = slice == 0 ? base : block;
    for (Index column = 0; column < columns; column += kTileColumns)
      for (Index row = 0; row < rows; row += kSumRows) {
        const Index at = row * kBlockStride + column;
        multiply_tile<A>(lhs.from_unit(k.begin).panel(row), rhs.from_unit(k.begin).panel(column), k.size(),
                         before == nullptr ? nullptr : before + at, block + at, kBlockStride);
        for (Index r = row; slice == slices - 1 && r < minimum(rows, row + kSumRows); r += kTileRows)
          epilogue(r, column);
      }
  }
}

template <class A>
inline void multiply_into_by_vectors(Lhs<A> lhs, Rhs<A> rhs, Index depth, MutableMatrix target) {
  const Index count = units<A>(depth);
  for (Index k = 0; k < count; k += kDepth) {
    const Index slice = minimum(kDepth, count - k);
    for (Index column = 0; column < target.columns; column += kTileColumns)
      for (Index row = 0; row < target.rows; row += kSumRows) {
        const float *left = lhs.from_unit(k).panel(row), *right = rhs.from_unit(k).panel(column);
        if (row + kSumRows <= target.rows && column + kTileColumns <= target.columns) {
          float* out = target.row(row) + column;
          multiply_tile<A>(left, right, slice, out, out, target.row_stride);
        } else {
          float tile[kSumRows * kTileColumns];
          multiply_tile<A>(left, right, slice, nullptr, tile, kTileColumns);
          add_part_of_tile(tile, kSumRows, target, row, column);
        }
      }
  }
}

}  // namespace
}  // namespace mmcore

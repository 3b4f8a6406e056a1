// The block product by the matrix unit (amx.h).
//
//   out(r, c) = or += Σ_k Σ_{p, q multiplied} lhs_p(r, k) · rhs_q(k, c)      p, q: the parts of a number (arithmetic.h)
//
// Never stored: more of a product than the caller's block or matrix. 32×32 sums stay in four tiles over the depth.
// Loop order: a panel of rhs (32 columns) stays in L1 while the panels of lhs stream past it from L2. The epilogue of a
// block of sums is executed in pieces between the steps of the next one: vectors work while the matrix unit does.
// Precision: float32 sums. The small products of the parts are summed over the whole depth before the large one is, so
// that they do not round it.
#pragma once

#include "block.h"
#include "operand.h"

namespace mmcore {
namespace {

constexpr Index kProductLanes = 32;                   // rows and columns of the sums in registers
constexpr Index kPieces = kProductLanes / kTileRows;  // of an epilogue
constexpr Index kPanelStep = 2 * kTileUnits;          // units of one part of one step of a panel

// One step of the product of two parts, into tiles 0 to 3. An operand that the step before has left in the registers is
// not loaded.
template <bool kLoadsLhs, bool kLoadsRhs>
inline void add_step(const float* lhs, const float* rhs) {
  if constexpr (kLoadsLhs) MatrixUnit::load_once<4>(lhs, 16);
  if constexpr (kLoadsRhs) {
    MatrixUnit::load<6>(rhs, 16);
    MatrixUnit::load<7>(rhs + kTileUnits, 16);
  }
  MatrixUnit::multiply<0, 4, 6>();
  if constexpr (kLoadsLhs) MatrixUnit::load_once<5>(lhs + kTileUnits, 16);
  MatrixUnit::multiply<1, 4, 7>();
  MatrixUnit::multiply<2, 5, 6>();
  MatrixUnit::multiply<3, 5, 7>();
}

// One step of all products but that of the first parts. They are ordered so that one operand stays at a time.
template <class A>
inline void add_small_products(const float* lhs, const float* rhs) {
  const auto add = [&]<int kLhs, int kRhs, bool kLoadsLhs, bool kLoadsRhs>() {
    constexpr Index kLhsPlace = place_of_part<A, Side::kLhs>(A::kSwapsParts ? kRhs : kLhs),
                    kRhsPlace = place_of_part<A, Side::kRhs>(A::kSwapsParts ? kLhs : kRhs);
    add_step<A::kSwapsParts ? kLoadsRhs : kLoadsLhs, A::kSwapsParts ? kLoadsLhs : kLoadsRhs>(
        lhs + kLhsPlace * kPanelStep, rhs + kRhsPlace * kPanelStep);
  };
  if constexpr (A::kParts == 2) {
    add.template operator()<0, 1, true, true>();
    if constexpr (A::multiplies(1, 1)) add.template operator()<1, 1, true, false>();
    add.template operator()<1, 0, !A::multiplies(1, 1), true>();
  } else if constexpr (A::kParts == 3) {
    add.template operator()<0, 2, true, true>();
    add.template operator()<0, 1, false, true>();
    add.template operator()<1, 1, true, false>();
    add.template operator()<1, 0, false, true>();
    add.template operator()<2, 0, true, false>();
  }
}

// out = base + a 32×32 product; the rows of both are `stride` apart, and no base means zeros. between(piece) is called
// kPieces times on the way.
template <class A, class Between>
inline void multiply_panels(const float* lhs, const float* rhs, Index steps, const float* base, float* out,
                            Index stride, Between&& between) {
  if (base == nullptr) {
    MatrixUnit::clear<0>(), MatrixUnit::clear<1>(), MatrixUnit::clear<2>(), MatrixUnit::clear<3>();
  } else {
    MatrixUnit::load<0>(base, stride), MatrixUnit::load<1>(base + 16, stride);
    MatrixUnit::load<2>(base + 16 * stride, stride), MatrixUnit::load<3>(base + 16 * stride + 16, stride);
  }
  constexpr Index kStep = A::kParts * kPanelStep;
  for (Index piece = 0; piece < kPieces; ++piece) {
    for (Index k = steps * piece / kPieces; k < steps * (piece + 1) / kPieces; ++k) {
      if constexpr (A::kParts == 1) {
        add_step<true, true>(lhs + k * kStep, rhs + k * kStep);
      } else {
        add_small_products<A>(lhs + k * kStep, rhs + k * kStep);
      }
    }
    between(piece);
  }
  constexpr Index kLhsFirst = place_of_part<A, Side::kLhs>(0) * kPanelStep,
                  kRhsFirst = place_of_part<A, Side::kRhs>(0) * kPanelStep;
  for (Index k = 0; A::kParts > 1 && k < steps; ++k)
    add_step<true, true>(lhs + kLhsFirst + k * kStep, rhs + kRhsFirst + k * kStep);
  MatrixUnit::store_sums<0>(out, stride), MatrixUnit::store_sums<1>(out + 16, stride);
  MatrixUnit::store_sums<2>(out + 16 * stride, stride), MatrixUnit::store_sums<3>(out + 16 * stride + 16, stride);
}

// multiply_block and multiply_into of matmul.h, by the matrix unit.
template <class A, class Epilogue>
inline void multiply_block_by_tiles(Lhs<A> lhs, Rhs<A> rhs, Index rows, Index columns, Index depth, float* block,
                                    Epilogue&& epilogue, const float* base) {
  const Index steps = units<A>(depth) / 16;
  Index last_row = rows, last_column = 0;  // of the sums whose epilogue is still to be executed
  const auto execute_piece = [&](Index piece) {
    const Index row = last_row + piece * kTileRows;
    if (row < rows) epilogue(row, last_column);
  };
  for (Index column = 0; column < columns; column += kProductLanes)
    for (Index row = 0; row < rows; row += kProductLanes) {
      const Index at = row * kBlockStride + column;
      multiply_panels<A>(lhs.panel(row), rhs.panel(column), steps, base == nullptr ? nullptr : base + at, block + at,
                         kBlockStride, execute_piece);
      last_row = row, last_column = column;
    }
  for (Index piece = 0; piece < kPieces; ++piece) execute_piece(piece);
}

template <class A>
inline void multiply_into_by_tiles(Lhs<A> lhs, Rhs<A> rhs, Index depth, MutableMatrix target) {
  const Index steps = units<A>(depth) / 16;
  for (Index column = 0; column < target.columns; column += kProductLanes)
    for (Index row = 0; row < target.rows; row += kProductLanes) {
      const float *left = lhs.panel(row), *right = rhs.panel(column);
      if (row + kProductLanes <= target.rows && column + kProductLanes <= target.columns) {
        // No hardware prefetcher loads rows that are far apart.
        const bool is_last = row + 2 * kProductLanes > target.rows;
        const float* next = is_last ? target.row(0) + column + kProductLanes : target.row(row + kProductLanes) + column;
        const auto prefetch = [&](Index piece) {
          for (Index r = piece * kTileRows; r < (piece + 1) * kTileRows; ++r) {
            __builtin_prefetch(next + r * target.row_stride, 1);
            __builtin_prefetch(next + r * target.row_stride + 16, 1);
          }
        };
        float* out = target.row(row) + column;
        multiply_panels<A>(left, right, steps, out, out, target.row_stride, prefetch);
      } else {
        alignas(64) float tile[kProductLanes * kTileColumns];
        multiply_panels<A>(left, right, steps, nullptr, tile, kTileColumns, [](Index) {});
        add_part_of_tile(tile, kProductLanes, target, row, column);
      }
    }
}

}  // namespace
}  // namespace mmcore

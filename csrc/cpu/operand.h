// The operands of the block product in the order in which it reads them, zero-padded to whole panels.
//
//   by vectors        number k of lane l  →  panel l / W, unit [k][l mod W]
//   by the matrix unit                    →  panel l / W, tile [step][part][l mod W / 16], W = 32
//
// The lanes of lhs are rows of the product, those of rhs its columns; W is the panel's width. Any dtype is read,
// strided; numbers are widened, rounded or split on the way. Packing costs O(lanes · depth) against
// O(lanes · depth · kBlock) multiply-adds, and is done once per block.
#pragma once

#include "pack.h"
#include "pack_tiles.h"

namespace mmcore {
namespace {

template <class A, Side kSide>
class Operand {
 public:
  static constexpr Index kWidth = kSide == Side::kLhs ? A::kLhsLanes : A::kRhsLanes;

  // The memory that a packed operand takes.
  static constexpr Index floats(Index lanes, Index depth) {
    return round_up(lanes, kWidth) * units<A>(depth) * A::kParts;
  }

  // Rows become lanes, columns the depth.
  template <class T>
  static void pack_rows(Matrix<const T> source, float* out) {
    if constexpr (A::kUsesMatrixUnit) {
      pack_rows_as_tiles<A, kSide>(source, out);
    } else {
      mmcore::pack_rows<A, kWidth>(source, out);
    }
  }
  // Columns become lanes, rows the depth.
  template <class T>
  static void pack_columns(Matrix<const T> source, float* out) {
    if constexpr (A::kUsesMatrixUnit) {
      pack_columns_as_tiles<A, kSide>(source, out);
    } else {
      mmcore::pack_columns<A, kWidth>(source, out);
    }
  }
  // The same of `count` rows of the source.
  static void pack_rows(const AnyMatrix& source, Index first, Index count, float* out) {
    visit_dtype(source, [&](auto matrix) { pack_rows(matrix.rows_from(first, count), out); });
  }
  static void pack_columns(const AnyMatrix& source, Index first, Index count, float* out) {
    visit_dtype(source, [&](auto matrix) { pack_columns(matrix.rows_from(first, count), out); });
  }

  Operand(const float* data, Index depth) : data_(data), panel_stride_(floats(kWidth, depth)) {}

  // From a lane on that begins a panel.
  Operand from_lane(Index lane) const { return moved(panel(lane)); }
  // From a unit of the depth on that begins a step.
  Operand from_unit(Index k) const { return moved(data_ + k * A::kParts * kWidth); }

  const float* panel(Index lane) const { return data_ + lane / kWidth * panel_stride_; }

 private:
  Operand moved(const float* data) const {
    Operand result = *this;
    result.data_ = data;
    return result;
  }

  const float* data_;
  Index panel_stride_;
};

template <class A>
using Lhs = Operand<A, Side::kLhs>;
template <class A>
using Rhs = Operand<A, Side::kRhs>;

}  // namespace
}  // namespace mmcore

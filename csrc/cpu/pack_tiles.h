// Copies of operands as the matrix unit reads them: tiles of 16 lanes and 16 units (amx.h).
//
//   out[panel of 32 lanes][step of 16 units][part][half of the panel] is a tile; the tiles of lhs have a row for each
//   lane, those of rhs a row for each unit
//
// Numbers are split into parts as they are read (arithmetic.h). A line, 16 units of a lane or one unit of 16 lanes, is
// a vector; where the tile has rows of the other kind, 16 lines are transposed.
#pragma once

#include "arithmetic.h"

namespace mmcore {
namespace {

enum class Side { kLhs, kRhs };

// Where a part lies among the parts of a step: in the order in which tile_product.h reads them. It begins with the
// large part of one operand and the small part of the other.
template <class A, Side kSide>
constexpr Index place_of_part(Index part) {
  return (kSide == Side::kLhs) == A::kSwapsParts ? A::kParts - 1 - part : part;
}

// 32 numbers of a row from column k on, as 16 units; zeros beyond the row.
template <class A, class T>
inline void line_of_row(const T* row, Index columns, Vec (&parts)[A::kParts]) {
  if constexpr (std::is_same_v<T, Bfloat16> && A::kParts == 1) {
    if (columns >= 2 * kLanes) {
      std::memcpy(&parts[0], row, sizeof(Vec));
      return;
    }
  }
  A::template pairs<false>(load_first(row, maximum(0, columns)), load_first(row + kLanes, maximum(0, columns - kLanes)),
                           parts);
}

// 16 columns of two rows as one unit of each column; `second` may be nullptr, for zeros.
template <class A, class T>
inline void line_of_columns(const T* first, const T* second, Index columns, Vec (&parts)[A::kParts]) {
  if constexpr (std::is_same_v<T, Bfloat16> && A::kParts == 1) {
    const BitsVec low = load_first_bits(first, columns);
    const BitsVec high = second == nullptr ? BitsVec{} : load_first_bits(second, columns);
    parts[0] = reinterpret_cast<Vec>(low | high << 16);
  } else {
    A::template pairs<true>(load_first(first, columns), second == nullptr ? Vec{} : load_first(second, columns), parts);
  }
}

// Writes the parts of one tile; set_line(i, parts) computes line i. The parts of a tile are two tiles apart.
template <class A, Side kSide, bool kTransposed, class SetLine>
inline void store_tile(float* out, SetLine set_line) {
  alignas(64) float stage[kTransposed ? A::kParts * kTileUnits : 1];
  float* to = kTransposed ? stage : out;
  constexpr Index kStride = kTransposed ? kTileUnits : 2 * kTileUnits;
  for (Index i = 0; i < 16; ++i) {
    Vec parts[A::kParts] = {};
    set_line(i, parts);
    for (Index part = 0; part < A::kParts; ++part)
      store(to + place_of_part<A, kSide>(part) * kStride + i * 16, parts[part]);
  }
  for (Index part = 0; kTransposed && part < A::kParts; ++part) {
    Vec lines[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) lines[i] = load(stage + part * kTileUnits + i * 16);
    transpose(lines);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) store(out + part * 2 * kTileUnits + i * 16, lines[i]);
  }
}

// Calls store(lane, number, tile) for the first tile of every panel, step and half.
template <class A, class Store>
inline void for_each_tile(Index lanes, Index depth, float* out, Store store_one) {
  for (Index panel = 0; panel < lanes; panel += 2 * kLanes)
    for (Index number = 0; number < depth; number += 2 * kLanes, out += A::kParts * 2 * kTileUnits)
      for (Index half = 0; half < 2; ++half) store_one(panel + half * kLanes, number, out + half * kTileUnits);
}

template <class A, Side kSide, class T>
inline void pack_rows_as_tiles(Matrix<const T> source, float* out) {
  for_each_tile<A>(source.rows, source.columns, out, [&](Index lane, Index number, float* tile) {
    store_tile<A, kSide, kSide == Side::kRhs>(tile, [&](Index i, Vec(&parts)[A::kParts]) {
      if (lane + i < source.rows) line_of_row<A>(source.row(lane + i) + number, source.columns - number, parts);
    });
  });
}

template <class A, Side kSide, class T>
inline void pack_columns_as_tiles(Matrix<const T> source, float* out) {
  for_each_tile<A>(source.columns, source.rows, out, [&](Index lane, Index number, float* tile) {
    const Index columns = source.columns - lane;
    store_tile<A, kSide, kSide == Side::kLhs>(tile, [&](Index i, Vec(&parts)[A::kParts]) {
      const Index row = number + 2 * i;
      if (row >= source.rows || columns <= 0) return;
      const T* second = row + 1 < source.rows ? source.row(row + 1) + lane : nullptr;
      line_of_columns<A>(source.row(row) + lane, second, columns, parts);
    });
  });
}

}  // namespace
}  // namespace mmcore

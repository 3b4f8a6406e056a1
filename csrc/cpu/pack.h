// Copies of operands in the order in which the product by vectors reads them, zero-padded to whole panels.
//
//   pack_rows<A, W>     row i, unit k of that row      →  out[i / W][k][i mod W]      rows become lanes
//   pack_columns<A, W>  column c, unit k of its rows   →  out[c / W][k][c mod W]      columns become lanes
//
// A unit is what the arithmetic A multiplies at once (arithmetic.h), in 32 bits.
#pragma once

#include <type_traits>

#include "arithmetic.h"

namespace mmcore {
namespace {

// Units of W rows that are staged at a time: they stay in L1 while they are transposed.
constexpr Index kStagedUnits = 64;

// Whether the numbers in memory are units already, so that none has to be staged.
template <class A, class T>
constexpr bool kAreUnits = std::is_base_of_v<Float32, A> && std::is_same_v<T, float>;

// out[k·kWidth + r] = from[r·stride + k] for `count` k, by transposing vectors where whole ones fit. A vector may write
// beyond the width, into the place of the next k. The next k overwrites it, because the last lanes are stored first.
template <int kWidth>
inline void store_transposed(const float* from, Index stride, Index count, float* out) {
  static_assert(round_up(kWidth, kLanes) <= 2 * kWidth, "beyond the next k would lie another tile");
  Index begin = 0;
  for (; begin + kLanes <= count; begin += kLanes, from += kLanes, out += kLanes * kWidth) {
#pragma GCC unroll 4
    for (int first = (kWidth - 1) / kLanes * kLanes; first >= 0; first -= kLanes) {
      Vec lanes[kLanes] = {};
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; ++r)
        if (first + r < kWidth) lanes[r] = load(from + (first + r) * stride);
      transpose(lanes);
#pragma GCC unroll 16
      for (int k = 0; k < kLanes - 1; ++k) store(out + k * kWidth + first, lanes[k]);
      store_first(out + (kLanes - 1) * kWidth + first, lanes[kLanes - 1], kWidth - first);
    }
  }
  for (Index k = 0; k < count - begin; ++k)
    for (int r = 0; r < kWidth; ++r) std::memcpy(out + k * kWidth + r, from + r * stride + k, sizeof(float));
}

template <class A, int kWidth, class T>
inline void pack_rows(Matrix<const T> source, float* out) {
  // An odd number of cache lines between rows spreads a column of the stage over the sets of L1.
  constexpr Index kStride = kStagedUnits + 16;
  constexpr Index kNumbers = kStagedUnits * A::kNumbersPerUnit;
  float stage[kWidth * kStride];
  for (Index i = 0; i < source.rows; i += kWidth) {
    const Index rows = minimum(kWidth, source.rows - i);
    if constexpr (kAreUnits<A, T>) {
      if (rows == kWidth) {
        store_transposed<kWidth>(source.row(i), source.row_stride, source.columns, out);
        out += source.columns * kWidth;
        continue;
      }
    }
    if (rows < kWidth) std::memset(stage, 0, sizeof(stage));
    for (Index begin = 0; begin < source.columns; begin += kNumbers) {
      const Index columns = minimum(kNumbers, source.columns - begin), count = units<A>(columns);
      for (Index r = 0; r < rows; ++r) A::units_of_row(source.row(i + r) + begin, columns, stage + r * kStride);
      store_transposed<kWidth>(stage, kStride, count, out);
      out += count * kWidth;
    }
  }
}

template <class A, int kWidth, class T>
inline void pack_columns(Matrix<const T> source, float* out) {
  constexpr Index kStaged = kWidth * (256 / kWidth);
  const Index depth = units<A>(source.rows);
  float stage[kStaged];
  for (Index begin = 0; begin < source.columns; begin += kStaged, out += kStaged * depth) {
    const Index columns = minimum(kStaged, source.columns - begin), padded = round_up(columns, kWidth);
    for (Index c = columns; c < padded; ++c) stage[c] = 0;
    for (Index k = 0; k < depth; ++k) {
      const Index i = k * A::kNumbersPerUnit;
      const T* second = i + 1 < source.rows ? source.row(i + 1) + begin : nullptr;
      const float* row = stage;
      if constexpr (kAreUnits<A, T>) row = columns == padded ? source.row(i) + begin : stage;
      if (row == stage) A::units_of_rows(source.row(i) + begin, second, columns, stage);
      for (Index c = 0; c < padded; c += kWidth)
        std::memcpy(out + c * depth + k * kWidth, row + c, kWidth * sizeof(float));
    }
  }
}

}  // namespace
}  // namespace mmcore

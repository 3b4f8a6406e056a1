// Copies of operands in the order in which the block product reads them, zero-padded to whole tiles.
//
//   pack_rows<W>     row i, column k  →  out[i / W][k][i mod W]      rows become lanes: x for the left, y for the right
//   pack_columns<W>  row i, column k  →  out[k / W][i][k mod W]      columns become lanes
//
// Packing costs O(rows · columns) against O(rows · columns · kBlock) multiply-adds, and is done once per block.
#pragma once

#include "parallel.h"

namespace mmcore {
namespace {

template <int kWidth>
Index packed_floats(Index lanes, Index depth) {
  return round_up(lanes, kWidth) * depth;
}

template <int kWidth>
inline void pack_rows(ConstMatrix source, float* out) {
  for (Index i = 0; i < source.rows; i += kWidth, out += source.columns * kWidth) {
    Index rows = minimum(kWidth, source.rows - i);
    if (rows == kWidth) {
      const float* first = source.row(i);
      for (Index k = 0; k < source.columns; ++k)
        for (int r = 0; r < kWidth; ++r) out[k * kWidth + r] = first[r * source.row_stride + k];
    } else {
      for (Index k = 0; k < source.columns; ++k)
        for (int r = 0; r < kWidth; ++r) out[k * kWidth + r] = r < rows ? source.row(i + r)[k] : 0.0f;
    }
  }
}

template <int kWidth>
inline void pack_columns(ConstMatrix source, float* out) {
  for (Index k = 0; k < source.columns; k += kWidth, out += source.rows * kWidth) {
    Index columns = minimum(kWidth, source.columns - k);
    for (Index i = 0; i < source.rows; ++i) {
      const float* row = source.row(i) + k;
      for (int c = 0; c < kWidth; ++c) out[i * kWidth + c] = c < columns ? row[c] : 0.0f;
    }
  }
}

}  // namespace
}  // namespace mmcore

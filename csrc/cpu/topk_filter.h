// The epilogue of a first pass: compares the upper bounds of a tile with the thresholds of its rows.
//
//   number·factor_i·factor_j + shift_j + error_i·norm_j (+ norm_i·residual_j)  ≥  threshold_i       (topk_terms.h)
//
// Few pass, and they go into the bags of their rows. Exclusions are looked up for these alone.
#pragma once

#include "topk_bags.h"

namespace mmcore {
namespace {

// kHasIntegers: numbers are int32. kHasResiduals: the second term of the bound counts.
template <bool kHasIntegers, bool kHasResiduals>
class TopkFilter {
 public:
  TopkFilter(const Search& search, const ColumnTerms& columns, Bags& bags, const float* numbers)
      : search_(search), columns_(columns), bags_(bags), numbers_(numbers) {}

  // The block that follows: rows among the queries of the chunk, columns in the gallery.
  void enter(Range rows, Range columns) {
    rows_in_block_ = rows;
    columns_in_block_ = columns;
  }

  void operator()(Index row, Index column) {
    const QueryTerms& queries = search_.terms;
    const Index valid = minimum(kTileRows, rows_in_block_.size() - row);
    Vec factor[kTileVectors], norm[kTileVectors], residual[kTileVectors], shift[kTileVectors];
    for (int v = 0; v < kTileVectors; ++v) {
      const Index c = column + v * kLanes;
      factor[v] = load(columns_.factor + c), norm[v] = load(columns_.norm + c), shift[v] = load(columns_.shift + c);
      if constexpr (kHasResiduals) residual[v] = load(columns_.residual + c);
    }
    for (Index r = 0; r < valid; ++r) {
      const Index i = rows_in_block_.begin + row + r;
      const Vec factor_of_row = broadcast(queries.factor[i]), error = broadcast(queries.error[i]),
                threshold = broadcast(bags_.threshold(i));
      std::uint32_t hits = 0;
      for (int v = 0; v < kTileVectors; ++v) {
        Vec up = numbers(row + r, column + v * kLanes) * factor_of_row * factor[v] + shift[v] + error * norm[v];
        if constexpr (kHasResiduals) up += broadcast(queries.norm[i]) * residual[v];
        hits |= not_below(up, threshold) << (v * kLanes);
      }
      if (__builtin_expect(hits != 0, 0)) accept(row + r, column, hits);
    }
  }

 private:
  Vec numbers(Index row, Index column) const {
    const Vec number = load(numbers_ + row * kBlockStride + column);
    if constexpr (!kHasIntegers) return number;
    return __builtin_convertvector(reinterpret_cast<IntVec>(number) - load(columns_.correction + column), Vec);
  }
  double number(Index row, Index column) const {
    const float* from = numbers_ + row * kBlockStride + column;
    if constexpr (!kHasIntegers) return *from;
    std::int32_t integer;
    std::memcpy(&integer, from, sizeof(integer));
    return static_cast<double>(integer) - columns_.correction[column];
  }

  __attribute__((noinline)) void accept(Index row, Index column, std::uint32_t hits) {
    const QueryTerms& queries = search_.terms;
    const Index i = rows_in_block_.begin + row;
    if (!queries.is_ordinary[i]) return;
    for (; hits != 0; hits &= hits - 1) {
      const Index c = column + __builtin_ctz(hits), j = columns_in_block_.begin + c;
      const double norm = columns_.norm[c];
      if (c >= columns_in_block_.size() || norm != norm || search_.is_excluded(i, j)) continue;
      double up = std::numeric_limits<double>::infinity(), low = -up;
      if (norm < up) {
        const double error = queries.error[i] * norm + static_cast<double>(queries.norm[i]) * columns_.residual[c],
                     slack = queries.slack[i];
        up = number(row, c) * queries.factor[i] * columns_.factor[c] + columns_.shift[c] + error + slack;
        low = up - 2 * (error + columns_.shift_radius[c] + slack);
      }
      bags_.add(i, low, up, j);
    }
  }

  const Search& search_;
  const ColumnTerms& columns_;
  Bags& bags_;
  const float* numbers_;
  Range rows_in_block_{}, columns_in_block_{};
};

}  // namespace
}  // namespace mmcore

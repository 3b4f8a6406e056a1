// Rows as bytes for the first pass: the terms and the numbers of queries and of a block of the gallery.
#pragma once

#include "byte_rows.h"
#include "topk_queries.h"

namespace mmcore {
namespace {

void prepare_gallery(const AnyMatrix& gallery, Metric metric, const ByteGallery& prepared, int threads) {
  visit_dtype(gallery, [&](auto y) {
    for_each_stripe(threads, y.rows, 1, [&](Range mine, int) {
      const KeptDenormals kept;
      for (Index j = mine.begin; j < mine.end; ++j) {
        const ByteRow row = quantised_row(y.row(j), y.columns, prepared.bytes + j * prepared.stride);
        const RowTerms terms = row_terms(row.statistics, row.scale, metric);
        prepared.factor[j] = terms.factor, prepared.norm[j] = terms.norm;
        prepared.residual[j] = terms.residual, prepared.square[j] = terms.square;
        prepared.sum[j] = row.sum;
      }
    });
  });
}

// Bytes of the queries of a chunk; take(i, row of bytes) for each, by the thread that owns it.
template <class Take>
void for_each_query_as_bytes(const Search& search, Range rows, std::int8_t* stage, Take take) {
  const Index depth = search.depth();
  const double epsilon = epsilon_of(search.inputs, 0);
  visit_dtype(search.inputs.queries, [&](auto x) {
    for (Index i = rows.begin; i < rows.end; ++i) {
      const auto* row = x.row(search.queries.begin + i);
      const ByteRow bytes = quantised_row(row, depth, stage);
      search.terms.set(i, row, depth, search.inputs.metric, bytes.statistics, bytes.scale, epsilon);
      take(i, stage);
    }
  });
}

// The rows of one block of the gallery as bytes: made here, or prepared.
class ByteColumns {
 public:
  static Index floats(Index rows, Index depth) { return rows * byte_stride(depth) / 4 + round_up(rows, 16); }

  ByteColumns(const TopkInputs& inputs, Index rows, Carver& carver)
      : inputs_(inputs),
        bytes_(reinterpret_cast<std::int8_t*>(carver.take(rows * byte_stride(inputs.gallery.columns) / 4))),
        square_(carver.take(rows)) {}

  // Sets the terms; `raise` is that of the arithmetic. Returns the rows.
  Matrix<const std::int8_t> take(Range columns, const ColumnTerms& terms, std::int32_t raise) {
    const ByteGallery& prepared = inputs_.prepared;
    const Index depth = inputs_.gallery.columns, count = columns.size(), first = columns.begin;
    const bool is_prepared = prepared.bytes != nullptr;
    const float* square = is_prepared ? prepared.square + first : square_;
    if (is_prepared) {
      std::memcpy(terms.factor, prepared.factor + first, count * sizeof(float));
      std::memcpy(terms.norm, prepared.norm + first, count * sizeof(float));
      std::memcpy(terms.residual, prepared.residual + first, count * sizeof(float));
      for (Index c = 0; c < count; ++c) terms.correction[c] = raise * prepared.sum[first + c];
    } else {
      quantise(columns, terms, raise);
    }
    for (Index c = 0; c < count; ++c)
      set_shift(terms, c, inputs_.metric, depth, square[c],
                inputs_.bias == nullptr ? nullptr : inputs_.bias + first + c);
    if (is_prepared) return {prepared.bytes + first * prepared.stride, count, depth, prepared.stride};
    return {bytes_, count, depth, byte_stride(depth)};
  }

 private:
  void quantise(Range columns, const ColumnTerms& terms, std::int32_t raise) {
    const Index depth = inputs_.gallery.columns;
    visit_dtype(inputs_.gallery, [&](auto y) {
      for (Index c = 0; c < columns.size(); ++c) {
        const ByteRow row = quantised_row(y.row(columns.begin + c), depth, bytes_ + c * byte_stride(depth));
        const RowTerms of_row = row_terms(row.statistics, row.scale, inputs_.metric);
        terms.factor[c] = of_row.factor, terms.norm[c] = of_row.norm, terms.residual[c] = of_row.residual;
        square_[c] = of_row.square;
        terms.correction[c] = raise * row.sum;
      }
    });
  }

  const TopkInputs& inputs_;
  std::int8_t* bytes_;
  float* square_;
};

}  // namespace
}  // namespace mmcore

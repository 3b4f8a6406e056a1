// Rows as bytes for the first pass: the terms and the numbers of queries and of a block of the gallery, and a gallery
// that is prepared as a whole.
//
//   v·times − centre = scale·q + rest,   −127 ≤ q ≤ 127,   ‖rest‖ ≤ residual        (byte_rows.h)
//
// Never stored: the rest; its norm is in the bound.
// Loop order: rows, each read while it is in cache.
// Precision: the terms of the bound are rounded up; products with the centres are sums in float64.
#pragma once

#include "topk_queries.h"

namespace mmcore {
namespace {

// The terms of a row of the gallery; `norm_of_other` belongs to what its product was computed with.
inline RowTerms terms_of_bytes(const ByteRow& row, Metric metric, Index depth, double norm_of_other) {
  if (!row.is_ordinary) return terms_of_unbounded_row(row.times_norm);
  const MetricShift of_metric(metric, row.square, depth);
  // The sum is rounded, and so are the numbers in it.
  const double off = gamma_of(roundings_along(depth)) * row.norm + byte_margin(metric, depth) * row.times_norm;
  return row_terms(row.scale, row.norm + row.residual, row.residual, row.product + of_metric.shift,
                   of_metric.radius + norm_of_other * off + kUnit * std::abs(row.product));
}

inline double norm_of(const float* v, Index depth) { return std::sqrt(exact_product(v, v, depth)) * kInflation; }

// What is subtracted from the rows of either side before they become bytes.
struct Centres {
  Centres(const TopkInputs& inputs, Range queries) : of_queries(inputs.queries.columns), of_gallery(of_queries.size()) {
    const Index depth = inputs.queries.columns;
    if (inputs.prepared.bytes != nullptr) {
      // The products of the rows with the centre of the queries are prepared for this one.
      std::copy_n(inputs.prepared.centre, depth, of_gallery.data());
      of_queries = of_gallery;
    } else {
      visit_dtype(inputs.queries, [&](auto x) {
        set_centre(x.rows_from(queries.begin, queries.size()), inputs.metric, of_queries.data());
      });
      visit_dtype(inputs.gallery, [&](auto y) { set_centre(y, inputs.metric, of_gallery.data()); });
    }
    norm_of_queries = norm_of(of_queries.data(), depth);
  }

  std::vector<float> of_queries, of_gallery;
  double norm_of_queries;
};

// Sets the terms of a query, and its bytes.
inline void quantise_query(const Search& search, const Centres& centres, Index i, std::int8_t* bytes) {
  const Index depth = search.depth();
  const Metric metric = search.inputs.metric;
  visit_dtype(search.inputs.queries, [&](auto x) {
    const auto* row = x.row(search.queries.begin + i);
    const ByteRow found =
        quantised_row(row, depth, metric, centres.of_queries.data(), centres.of_gallery.data(), bytes);
    const double product = exact_product(row, centres.of_gallery.data(), depth),
                 times = metric == Metric::kCosine ? inverse_norm(exact_product(row, row, depth)) : 1;
    search.terms.set(i, row, depth, metric,
                     {found.is_ordinary, found.norm, found.residual, found.scale, product * times},
                     epsilon_of(search.inputs, 0));
  });
}

void prepare_gallery(const AnyMatrix& gallery, Metric metric, const ByteGallery& prepared, int threads) {
  visit_dtype(gallery, [&](auto y) {
    const Index depth = y.columns;
    set_centre(y, metric, prepared.centre);
    const double norm_of_centre = norm_of(prepared.centre, depth);
    for_each_stripe(threads, y.rows, 1, [&](Range mine, int) {
      const KeptDenormals kept;
      for (Index j = mine.begin; j < mine.end; ++j) {
        const ByteRow row = quantised_row(y.row(j), depth, metric, prepared.centre, prepared.centre,
                                          prepared.bytes + j * prepared.stride);
        const RowTerms terms = terms_of_bytes(row, metric, depth, norm_of_centre);
        prepared.factor[j] = terms.factor, prepared.norm[j] = terms.norm, prepared.residual[j] = terms.residual;
        prepared.shift[j] = terms.shift, prepared.shift_radius[j] = terms.shift_radius;
        prepared.sum[j] = row.sum;
      }
    });
  });
}

// The rows of one block of the gallery as bytes: made here, or prepared.
class ByteColumns {
 public:
  static Index floats(Index rows, Index depth) { return rows * byte_stride(depth) / 4; }

  ByteColumns(const TopkInputs& inputs, const Centres& centres, Index rows, Carver& carver)
      : inputs_(inputs),
        centres_(centres),
        bytes_(reinterpret_cast<std::int8_t*>(carver.take(floats(rows, inputs.gallery.columns)))) {}

  // Sets the terms; `raise` is that of the arithmetic. Returns the rows.
  Matrix<const std::int8_t> take(Range columns, const ColumnTerms& terms, std::int32_t raise) {
    const Index depth = inputs_.gallery.columns, count = columns.size(), first = columns.begin;
    const ByteGallery& prepared = inputs_.prepared;
    const bool is_prepared = prepared.bytes != nullptr;
    is_prepared ? read(columns, terms, raise) : quantise(columns, terms, raise);
    for (Index c = 0; inputs_.bias != nullptr && c < count; ++c)
      terms.add_bias(c, inputs_.metric, inputs_.bias[first + c]);
    if (is_prepared) return {prepared.bytes + first * prepared.stride, count, depth, prepared.stride};
    return {bytes_, count, depth, byte_stride(depth)};
  }

 private:
  void read(Range columns, const ColumnTerms& terms, std::int32_t raise) const {
    const ByteGallery& prepared = inputs_.prepared;
    const auto copy = [&](const float* from, float* to) {
      std::memcpy(to, from + columns.begin, columns.size() * sizeof(float));
    };
    copy(prepared.factor, terms.factor), copy(prepared.norm, terms.norm), copy(prepared.residual, terms.residual);
    copy(prepared.shift, terms.shift), copy(prepared.shift_radius, terms.shift_radius);
    for (Index c = 0; c < columns.size(); ++c) terms.correction[c] = raise * prepared.sum[columns.begin + c];
  }

  void quantise(Range columns, const ColumnTerms& terms, std::int32_t raise) const {
    const Index depth = inputs_.gallery.columns;
    visit_dtype(inputs_.gallery, [&](auto y) {
      for (Index c = 0; c < columns.size(); ++c) {
        const ByteRow row = quantised_row(y.row(columns.begin + c), depth, inputs_.metric, centres_.of_gallery.data(),
                                          centres_.of_queries.data(), bytes_ + c * byte_stride(depth));
        terms.set(c, terms_of_bytes(row, inputs_.metric, depth, centres_.norm_of_queries));
        terms.correction[c] = raise * row.sum;
      }
    });
  }

  const TopkInputs& inputs_;
  const Centres& centres_;
  std::int8_t* bytes_;
};

}  // namespace
}  // namespace mmcore

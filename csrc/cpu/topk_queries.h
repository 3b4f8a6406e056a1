// What the first passes of a search share: the queries of a chunk without rows that are scored in float64, and the walk
// over the blocks of one part of the gallery.
#pragma once

#include "matmul.h"
#include "topk_filter.h"

namespace mmcore {
namespace {

// pack(matrix, first, count) for queries in groups of kLanes, whose rows lie in memory or, where a row is not ordinary,
// in `stage`, with zeros in its place: infinities would make every product NaN. stage: kLanes × D numbers.
template <Index kGroup, class Pack>
void for_each_group_of_queries(const Search& search, Range rows, float* stage, Pack pack) {
  visit_dtype(search.inputs.queries, [&](auto x) {
    const Index depth = x.columns;
    for (Index i = rows.begin; i < rows.end; i += kGroup) {
      const Index count = minimum(kGroup, rows.end - i);
      bool is_ordinary = true;
      for (Index r = i; r < i + count; ++r) is_ordinary = is_ordinary && search.terms.is_ordinary[r];
      if (is_ordinary) {
        pack(x.rows_from(search.queries.begin + i, count), i);
        continue;
      }
      for (Index r = 0; r < count; ++r) {
        const auto* row = x.row(search.queries.begin + i + r);
        for (Index k = 0; k < depth; ++k) stage[r * depth + k] = search.terms.is_ordinary[i + r] ? widen(row[k]) : 0.0f;
      }
      pack(ConstMatrix{stage, count, depth, depth}, i);
    }
  });
}

// The relative error of the bounds of a pair, but for what the multiplied numbers differ from the rows.
inline double epsilon_of(const TopkInputs& inputs, double roundings_of_sums) {
  const Index depth = inputs.queries.columns;
  // The factor of a column comes from its norm in float32.
  const double of_factor = inputs.metric == Metric::kCosine ? gamma_of(roundings_along(depth)) : 0;
  return gamma_of(roundings_of_sums) + of_factor + evaluation_slack(depth);
}

// The terms of rows of the gallery whose numbers are multiplied as they are, or as bfloat16.
template <Multiplied kHow>
void set_columns(const TopkInputs& inputs, Range columns, const ColumnTerms& terms) {
  const Index depth = inputs.gallery.columns;
  visit_dtype(inputs.gallery, [&](auto y) {
    for (Index c = 0; c < columns.size(); ++c) {
      const Index j = columns.begin + c;
      const RowTerms row = row_terms(norm_bounds<kHow>(y.row(j), depth), 1, inputs.metric);
      terms.factor[c] = row.factor, terms.norm[c] = row.norm, terms.residual[c] = row.residual;
      set_shift(terms, c, inputs.metric, depth, row.square, inputs.bias == nullptr ? nullptr : inputs.bias + j);
    }
  });
}

// What one thread does: the rows of one part of the queries against one part of the gallery.
template <class Pass>
void walk_gallery(const Search& search, const Pass& pass, Bags& bags, Range columns, float* memory) {
  Carver carver(memory);
  ColumnTerms terms(carver);
  float* numbers = carver.take(kBlockFloats);
  typename Pass::Columns part(pass, carver);
  TopkFilter<Pass::kHasIntegers, Pass::kHasResiduals> filter(search, terms, bags, numbers);
  for (Index j = columns.begin; j < columns.end; j += Pass::kColumns) {
    const Range in_block{j, minimum(j + Pass::kColumns, columns.end)};
    part.take(in_block, terms);
    const typename Pass::Region region;
    for (Index i = bags.rows().begin; i < bags.rows().end; i += kBlock) {
      const Range rows{i, minimum(i + kBlock, bags.rows().end)};
      filter.enter(rows, in_block);
      part.multiply(rows, numbers, filter);
    }
  }
}

template <class Pass>
Index floats_to_walk(const Pass& pass) {
  return ColumnTerms::kFloats + kBlockFloats + Pass::Columns::floats(pass) + 64;
}

}  // namespace
}  // namespace mmcore

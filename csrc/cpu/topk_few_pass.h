// The first pass of at most kFewQueries queries: lanes along the depth, rows of the gallery read as they lie in memory.
//
//   number = x_i · y_j    of float32 numbers, or of bytes
//
// Packing would cost as much as the products of a few queries. A group of queries meets four rows at a time, and their
// kLanes sums are added across lanes together. While a block is multiplied, the next one is fetched.
#pragma once

#include "topk_bytes.h"

namespace mmcore {
namespace {

constexpr Index kFewQueries = 16;
constexpr int kRowsAtOnce = 4, kQueriesAtOnce = kLanes / kRowsAtOnce;

// Lane l of the result: the sum of all lanes of v[l].
template <class A, int kStep = 1>
__attribute__((always_inline)) inline Vec sum_each(Vec (&v)[kLanes]) {
  if constexpr (kStep < kLanes) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; i += 2 * kStep) {
      exchange<kStep>(v[i], v[i + kStep], std::make_integer_sequence<int, kLanes>());
      v[i] = A::added(v[i], v[i + kStep]);
    }
    return sum_each<A, 2 * kStep>(v);
  } else {
    return v[0];
  }
}

// numbers[q][c] for kQueries queries and four rows. Along::load reads a vector of units of a row at number k, and
// advances by Along::kStep numbers. `ahead`: how many numbers of a row lie between a row and what is fetched.
template <class Along, int kQueries>
__attribute__((always_inline)) inline void multiply_rows(const float* x, Index units,
                                                         const typename Along::Number* const* y, Index depth,
                                                         Index ahead, float* numbers) {
  Vec sums[kLanes]{};
  for (Index k = 0, unit = 0; k < depth; k += Along::kStep, unit += kLanes) {
    Vec row[kRowsAtOnce];
#pragma GCC unroll 4
    for (int r = 0; r < kRowsAtOnce; ++r) {
      row[r] = Along::load(y[r] + k, depth - k);
      if (ahead != 0) __builtin_prefetch(y[r] + k + ahead, 0, 2);
    }
#pragma GCC unroll 4
    for (int q = 0; q < kQueries; ++q) {
      const Vec query = load(x + q * units + unit);
#pragma GCC unroll 4
      for (int r = 0; r < kRowsAtOnce; ++r) Along::Arithmetic::add_product(sums[q * kRowsAtOnce + r], query, row[r]);
    }
  }
  alignas(64) float each[kLanes];
  store(each, sum_each<typename Along::Arithmetic>(sums));
  for (int q = 0; q < kQueries; ++q)
    std::memcpy(numbers + q * kBlockStride, each + q * kRowsAtOnce, kRowsAtOnce * sizeof(float));
}

// The same for any number of queries and rows; the last rows of a block may be repeated. Writes whole groups of four.
template <class Along>
void multiply_few(const float* x, Index units, Index queries, Matrix<const typename Along::Number> y, Index ahead,
                  float* numbers) {
  for (Index c = 0; c < y.rows; c += kRowsAtOnce) {
    const typename Along::Number* rows[kRowsAtOnce];
    for (int r = 0; r < kRowsAtOnce; ++r) rows[r] = y.row(minimum(c + r, y.rows - 1));
    for (Index q = 0; q < queries; q += kQueriesAtOnce) {
      const float* from = x + q * units;
      float* to = numbers + q * kBlockStride + c;
      const Index fetched = q == 0 ? ahead : 0, count = minimum(kQueriesAtOnce, queries - q);
      if (count == 1) multiply_rows<Along, 1>(from, units, rows, y.columns, fetched, to);
      if constexpr (kQueriesAtOnce >= 2)
        if (count == 2) multiply_rows<Along, 2>(from, units, rows, y.columns, fetched, to);
      if constexpr (kQueriesAtOnce >= 4) {
        if (count == 3) multiply_rows<Along, 3>(from, units, rows, y.columns, fetched, to);
        if (count == 4) multiply_rows<Along, 4>(from, units, rows, y.columns, fetched, to);
      }
    }
  }
}

// Runs the epilogue over the tiles of a block.
template <class Epilogue>
void filter_few(Index queries, Index columns, Epilogue& epilogue) {
  for (Index column = 0; column < columns; column += kTileColumns)
    for (Index row = 0; row < queries; row += kTileRows) epilogue(row, column);
}

// Rows as they are given, in float32.
template <class T>
struct AlongRows {
  using Number = T;
  using Arithmetic = Float32;
  static constexpr Index kStep = kLanes;
  static Vec load(const T* row, Index count) { return load_first(row, count); }
};

// Rows of bytes, which end in zeros.
template <class A>
struct AlongBytes {
  using Number = std::int8_t;
  using Arithmetic = A;
  static constexpr Index kStep = kLanes * A::kNumbersPerUnit;
  static Vec load(const std::int8_t* row, Index) { return A::load_units(row); }
};

// Everything but what is multiplied.
struct FewPass {
  struct Region {
    Region() {}
  };
  static constexpr Index kColumns = 32;
  static_assert(kColumns % kTileColumns == 0 && kColumns <= kBlock);

  FewPass(const Search& search, Index units) : search(search), units(units), x(kFewQueries * units, 1) {
    std::memset(x.of_thread(0), 0, kFewQueries * units * sizeof(float));
  }

  const Search& search;
  const Index units;  // of a query in x
  const Scratch x;
};

struct FewRowsPass : FewPass {
  static constexpr bool kHasIntegers = false, kHasResiduals = false;

  // Sets the terms of the queries.
  explicit FewRowsPass(const Search& search) : FewPass(search, round_up(search.depth(), kLanes)) {
    const KeptDenormals kept;
    const Index depth = search.depth();
    const double epsilon = epsilon_of(search.inputs, roundings_along(depth));
    visit_dtype(search.inputs.queries, [&](auto queries) {
      for (Index i = 0; i < search.queries.size(); ++i) {
        const auto* row = queries.row(search.queries.begin + i);
        search.terms.set(i, row, depth, search.inputs.metric, norm_bounds<Multiplied::kAsGiven>(row, depth), 1,
                         epsilon);
        if (search.terms.is_ordinary[i]) Float32::units_of_row(row, depth, x.of_thread(0) + i * units);
      }
    });
  }

  class Columns {
   public:
    static Index floats(const FewRowsPass&) { return 0; }
    Columns(const FewRowsPass& pass, Carver&) : pass_(pass) {}

    void take(Range columns, ColumnTerms& terms) {
      set_columns<Multiplied::kAsGiven>(pass_.search.inputs, columns, terms);
      columns_ = columns;
    }
    template <class Epilogue>
    void multiply(Range rows, float* numbers, Epilogue& epilogue) const {
      visit_dtype(pass_.search.inputs.gallery, [&](auto y) {
        multiply_few<AlongRows<NumberOf<decltype(y)>>>(pass_.x.of_thread(0) + rows.begin * pass_.units, pass_.units,
                                                       rows.size(), y.rows_from(columns_.begin, columns_.size()),
                                                       kColumns * y.row_stride, numbers);
      });
      filter_few(rows.size(), columns_.size(), epilogue);
    }

   private:
    const FewRowsPass& pass_;
    Range columns_{};
  };
};

template <class A>
struct FewBytesPass : FewPass {
  static constexpr bool kHasIntegers = true, kHasResiduals = true;

  // Sets the terms of the queries.
  explicit FewBytesPass(const Search& search) : FewPass(search, byte_stride(search.depth()) / A::kNumbersPerUnit) {
    const KeptDenormals kept;
    const Index stride = byte_stride(search.depth());
    const Scratch stage(stride / 4, 1);
    auto* bytes = reinterpret_cast<std::int8_t*>(stage.of_thread(0));
    for_each_query_as_bytes(search, {0, search.queries.size()}, bytes, [&](Index i, const std::int8_t* row) {
      A::units_of_row(row, stride, x.of_thread(0) + i * units);
    });
    A::raise(x.of_thread(0), kFewQueries * units);
  }

  class Columns {
   public:
    static Index floats(const FewBytesPass& pass) { return ByteColumns::floats(kColumns, pass.search.depth()); }
    Columns(const FewBytesPass& pass, Carver& carver) : pass_(pass), rows_(pass.search.inputs, kColumns, carver) {}

    void take(Range columns, ColumnTerms& terms) {
      bytes_ = rows_.take(columns, terms, A::kRaise);
      columns_ = columns;
    }
    template <class Epilogue>
    void multiply(Range rows, float* numbers, Epilogue& epilogue) const {
      const bool is_prepared = pass_.search.inputs.prepared.bytes != nullptr;
      multiply_few<AlongBytes<A>>(pass_.x.of_thread(0) + rows.begin * pass_.units, pass_.units, rows.size(), bytes_,
                                  is_prepared ? kColumns * bytes_.row_stride : 0, numbers);
      filter_few(rows.size(), columns_.size(), epilogue);
    }

   private:
    const FewBytesPass& pass_;
    ByteColumns rows_;
    Matrix<const std::int8_t> bytes_;
    Range columns_{};
  };
};

}  // namespace
}  // namespace mmcore

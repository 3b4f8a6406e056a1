// The first pass over the rows as they are given, or rounded to bfloat16: packed, by the block product.
//
//   number = x̂_i · ŷ_j    x̂ and ŷ as the arithmetic A multiplies them
//
// The queries of a chunk are packed once for all threads, a block of the gallery once per chunk.
#pragma once

#include "topk_queries.h"

namespace mmcore {
namespace {

template <class A, Multiplied kHow>
class RowsPass {
 public:
  using Region = Multiplying<A>;
  static constexpr bool kHasIntegers = false, kHasResiduals = kHow == Multiplied::kAsBfloat16;
  static constexpr Index kColumns = kBlock;

  // Sets the terms of the queries.
  RowsPass(const Search& search, int threads)
      : search_(search), packed_(Lhs<A>::floats(search.queries.size(), search.depth()), 1) {
    const Index depth = search.depth(), rows = search.queries.size();
    const double epsilon = epsilon_of(search.inputs, roundings<A>(depth));
    const Scratch stages(Lhs<A>::kWidth * depth, threads);
    for_each_stripe(threads, rows, Lhs<A>::kWidth, [&](Range mine, int thread) {
      const KeptDenormals kept;
      visit_dtype(search.inputs.queries, [&](auto x) {
        for (Index i = mine.begin; i < mine.end; ++i) {
          const auto* row = x.row(search.queries.begin + i);
          search.terms.set(i, row, depth, search.inputs.metric, norm_bounds<kHow>(row, depth), 1, epsilon);
        }
      });
      for_each_group_of_queries<Lhs<A>::kWidth>(search, mine, stages.of_thread(thread), [&](auto x, Index i) {
        Lhs<A>::pack_rows(x, packed_.of_thread(0) + Lhs<A>::floats(i, depth));
      });
    });
  }

  class Columns {
   public:
    static Index floats(const RowsPass& pass) { return Rhs<A>::floats(kColumns, pass.search_.depth()); }
    Columns(const RowsPass& pass, Carver& carver) : pass_(pass), packed_(carver.take(floats(pass))), count_(0) {}

    void take(Range columns, ColumnTerms& terms) {
      const TopkInputs& inputs = pass_.search_.inputs;
      set_columns<kHow>(inputs, columns, terms);
      Rhs<A>::pack_rows(inputs.gallery, columns.begin, columns.size(), packed_);
      count_ = columns.size();
    }

    template <class Epilogue>
    void multiply(Range rows, float* numbers, Epilogue& epilogue) const {
      const Index depth = pass_.search_.depth();
      multiply_block<A>(Lhs<A>(pass_.packed_.of_thread(0), depth).from_lane(rows.begin), Rhs<A>(packed_, depth),
                        rows.size(), count_, depth, numbers, epilogue);
    }

   private:
    const RowsPass& pass_;
    float* packed_;
    Index count_;
  };

 private:
  const Search& search_;
  Scratch packed_;
};

}  // namespace
}  // namespace mmcore

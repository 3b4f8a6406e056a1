// The first pass by bytes: packed, by the block product of int32 sums.
//
//   number = q(x_i) · q(y_j)    q: integers from −127 to 127 (byte_rows.h)
#pragma once

#include "topk_bytes.h"

namespace mmcore {
namespace {

template <class A>
class BytesPass {
 public:
  struct Region {
    Region() {}
  };
  static constexpr bool kHasIntegers = true, kHasResiduals = true;
  static constexpr Index kColumns = kBlock;

  // Sets the terms of the queries.
  BytesPass(const Search& search, int threads)
      : search_(search), packed_(Lhs<A>::floats(search.queries.size(), search.depth()), 1) {
    constexpr Index kGroup = Lhs<A>::kWidth;
    const Index depth = search.depth(), stride = byte_stride(depth);
    const Scratch stages(kGroup * stride / 4, threads);
    for_each_stripe(threads, search.queries.size(), kGroup, [&](Range mine, int thread) {
      const KeptDenormals kept;
      auto* stage = reinterpret_cast<std::int8_t*>(stages.of_thread(thread));
      for (Index i = mine.begin; i < mine.end; i += kGroup) {
        const Range group{i, minimum(i + kGroup, mine.end)};
        for (Index r = group.begin; r < group.end; ++r)
          for_each_query_as_bytes(search, {r, r + 1}, stage + (r - i) * stride, [](Index, const std::int8_t*) {});
        float* out = packed_.of_thread(0) + Lhs<A>::floats(i, depth);
        Lhs<A>::pack_rows(Matrix<const std::int8_t>{stage, group.size(), depth, stride}, out);
        A::raise(out, Lhs<A>::floats(kGroup, depth));
      }
    });
  }

  class Columns {
   public:
    static Index floats(const BytesPass& pass) {
      const Index depth = pass.search_.depth();
      return Rhs<A>::floats(kColumns, depth) + ByteColumns::floats(kColumns, depth);
    }
    Columns(const BytesPass& pass, Carver& carver)
        : pass_(pass),
          packed_(carver.take(Rhs<A>::floats(kColumns, pass.search_.depth()))),
          rows_(pass.search_.inputs, kColumns, carver),
          count_(0) {}

    void take(Range columns, ColumnTerms& terms) {
      Rhs<A>::pack_rows(rows_.take(columns, terms, A::kRaise), packed_);
      count_ = columns.size();
    }

    template <class Epilogue>
    void multiply(Range rows, float* numbers, Epilogue& epilogue) const {
      const Index depth = pass_.search_.depth();
      multiply_block<A>(Lhs<A>(pass_.packed_.of_thread(0), depth).from_lane(rows.begin), Rhs<A>(packed_, depth),
                        rows.size(), count_, depth, numbers, epilogue);
    }

   private:
    const BytesPass& pass_;
    float* packed_;
    ByteColumns rows_;
    Index count_;
  };

 private:
  const Search& search_;
  Scratch packed_;
};

}  // namespace
}  // namespace mmcore

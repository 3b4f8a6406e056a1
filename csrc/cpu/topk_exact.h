// Exact scores of a search, what a query does not see, and the best items that are known exactly.
#pragma once

#include <algorithm>

#include "topk_terms.h"

namespace mmcore {
namespace {

struct Best {
  double score;
  Index index;  // in the whole gallery

  // Whether it comes before the other: the order (−score, index).
  bool is_before(const Best& other) const {
    return score > other.score || (score == other.score && index < other.index);
  }
};

// The at most `most` best of what is offered, as a heap whose first is the last of them.
class BestItems {
 public:
  BestItems(Best* items, std::int32_t* count, Index most) : items_(items), count_(*count), most_(most) {}

  bool is_full() const { return count_ == most_; }
  const Best& last() const { return items_[0]; }

  void offer(const Best& item) {
    if (item.score != item.score) return;
    if (is_full()) {
      if (!item.is_before(last())) return;
      std::pop_heap(items_, items_ + count_, is_before);
      items_[count_ - 1] = item;
    } else {
      items_[count_++] = item;
    }
    std::push_heap(items_, items_ + count_, is_before);
  }

  // In order; afterwards nothing may be offered.
  void sort() { std::sort_heap(items_, items_ + count_, is_before); }
  Index count() const { return count_; }
  const Best& operator[](Index at) const { return items_[at]; }

 private:
  static bool is_before(const Best& a, const Best& b) { return a.is_before(b); }

  Best* items_;
  std::int32_t& count_;
  Index most_;
};

// One search: its inputs, and a chunk of its queries.
class Search {
 public:
  Search(const TopkInputs& inputs, Range queries, QueryTerms& terms) : inputs(inputs), queries(queries), terms(terms) {}

  const TopkInputs& inputs;
  const Range queries;
  QueryTerms& terms;  // row i of them belongs to query queries.begin + i

  Index depth() const { return inputs.queries.columns; }

  bool is_excluded(Index i, Index j) const {
    const Index query = queries.begin + i;
    if (inputs.excluded != nullptr && inputs.excluded[query] == inputs.offset + j) return true;
    if (inputs.query_group == nullptr) return false;
    const Index group = inputs.query_group[query];
    return group != -1 && group == inputs.gallery_group[j];
  }

  // offer(item) for `count` items of the gallery, item(n) the number of each. Never inlined into code that runs while
  // tiles are multiplied.
  template <class Item>
  __attribute__((noinline)) void offer(Index i, Index count, Item item, BestItems& best) const {
    const KeptDenormals kept;
    visit_dtype(inputs.queries, [&](auto x) {
      using T = NumberOf<decltype(x)>;
      const Matrix<const T> y = inputs.gallery.as<T>();
      const T* row = x.row(queries.begin + i);
      Index n = 0;
      for (; n + 4 <= count; n += 4) {
        const Index items[4] = {item(n), item(n + 1), item(n + 2), item(n + 3)};
        offer_rows<4>(i, row, y, items, best);
      }
      for (; n < count; ++n) {
        const Index items[1] = {item(n)};
        offer_rows<1>(i, row, y, items, best);
      }
    });
  }

  // A number that value, in the terms of a first pass, is not below.
  double value_below(Index i, double score) const {
    const double m = inputs.metric == Metric::kL2 ? 2 : 1, shift = terms.shift[i];
    if (std::isinf(score)) return score;
    return (score - shift) / m - 0x1p-44 * (std::abs(score) + std::abs(shift)) - terms.slack[i];
  }

 private:
  template <int kRows, class T>
  void offer_rows(Index i, const T* row, Matrix<const T> y, const Index (&items)[kRows], BestItems& best) const {
    const T* rows[kRows];
    for (int r = 0; r < kRows; ++r) rows[r] = y.row(items[r]);
    double scores[kRows], squares[kRows];
    if (inputs.metric == Metric::kL2) {
      exact_squared_distances<kRows>(row, rows, y.columns, scores);
    } else {
      exact_products<kRows>(row, rows, y.columns, scores);
    }
    for (int r = 0; r < kRows; ++r) {
      if (inputs.metric == Metric::kL2) scores[r] = -scores[r];
      if (inputs.metric == Metric::kCosine) {
        exact_products<1>(rows[r], {rows[r]}, y.columns, &squares[r]);
        scores[r] = as_rounded(scores[r] * as_rounded(terms.inverse[i] * inverse_norm(squares[r])));
      }
      if (inputs.bias != nullptr) scores[r] += inputs.bias[items[r]];
      best.offer({scores[r], inputs.offset + items[r]});
    }
  }
};

}  // namespace
}  // namespace mmcore

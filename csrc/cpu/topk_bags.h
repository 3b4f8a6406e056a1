// The candidates of each query in one part of the gallery: a bag of bounded size.
//
//   threshold = the k-th largest lower bound of a bag, or the k-th best score that is known
//
// An item whose upper bound is below the threshold is none of the k best. A full bag drops such items. Where too few
// drop out, because the bounds of all overlap (equal rows, collapsed embeddings), the bag is settled: its scores are
// computed in float64, those of the largest upper bounds first, the k best of them are kept, and the bag is empty.
#pragma once

#include "topk_exact.h"

namespace mmcore {
namespace {

struct Hit {
  float low, up;       // of value (topk_terms.h)
  std::int32_t index;  // in the gallery
};

// How many candidates of a query wait before they are compared; bounds that are wide let more of them stay.
inline Index bag_capacity(Index k, bool is_wide, Index items) {
  return minimum(is_wide ? maximum(8 * k, 96) + 32 : maximum(3 * k, 64) + 32, maximum(1, items));
}

// Scores hits in the order of their upper bounds, until the next is below the k-th best score: all others are as well.
inline void offer_hits(const Search& search, Index i, Hit* hits, Index count, BestItems& best) {
  constexpr Index kAtOnce = 8;
  std::sort(hits, hits + count, [](const Hit& a, const Hit& b) { return a.up > b.up; });
  for (Index n = 0; n < count; n += kAtOnce) {
    if (best.is_full() && hits[n].up < search.value_below(i, best.last().score)) return;
    search.offer(i, minimum(kAtOnce, count - n), [&](Index m) { return hits[n + m].index; }, best);
  }
}

class Bags {
 public:
  // The memory of one part, in floats.
  static Index floats(Index rows, Index kept, Index capacity) {
    return round_up(rows * capacity * 3, 16) + round_up(rows * kept * 4, 16) + 3 * round_up(rows, 16);
  }

  // A part of fewer than k items keeps all of them.
  Bags(const Search& search, Range rows, Index kept, Index capacity, float* memory)
      : search_(search), rows_(rows), k_(search.inputs.k), kept_(kept), capacity_(capacity) {
    Carver carver(memory);
    hits_ = reinterpret_cast<Hit*>(carver.take(rows.size() * capacity * 3));
    best_ = reinterpret_cast<Best*>(carver.take(rows.size() * kept * 4));
    threshold_ = carver.take(rows.size());
    counts_ = reinterpret_cast<std::int32_t*>(carver.take(rows.size()));
    best_counts_ = reinterpret_cast<std::int32_t*>(carver.take(rows.size()));
    std::fill_n(threshold_, rows.size(), -kInfinity);
    std::fill_n(counts_, rows.size(), 0);
    std::fill_n(best_counts_, rows.size(), 0);
  }

  Range rows() const { return rows_; }
  // A candidate of row i whose upper bound, without the slack of the query, is below this is none of the best.
  float threshold(Index i) const { return threshold_[at(i)]; }
  const Hit* hits(Index i) const { return hits_ + at(i) * capacity_; }
  Index count(Index i) const { return counts_[at(i)]; }
  BestItems best(Index i) const { return {best_ + at(i) * kept_, best_counts_ + at(i), kept_}; }

  // What a score that `best` of an earlier chunk knows says: `score` is its k-th best.
  void raise_to_score(Index i, double score) {
    raise(i, rounded_down(search_.value_below(i, score) - search_.terms.slack[i]));
  }

  // Nothing of a first pass may enter any more.
  void close(Index i) { threshold_[at(i)] = kInfinity; }

  void add(Index i, double low, double up, Index j) {
    std::int32_t& count = counts_[at(i)];
    if (count == capacity_) make_room(i);
    hits_[at(i) * capacity_ + count++] = {rounded_down(low), rounded_up(up), static_cast<std::int32_t>(j)};
  }

 private:
  Index at(Index i) const { return i - rows_.begin; }
  void raise(Index i, float threshold) {
    if (threshold > threshold_[at(i)]) threshold_[at(i)] = threshold;
  }

  __attribute__((noinline)) void make_room(Index i) {
    Hit* hits = hits_ + at(i) * capacity_;
    std::int32_t& count = counts_[at(i)];
    if (count > k_) {
      std::nth_element(hits, hits + (k_ - 1), hits + count, [](const Hit& a, const Hit& b) { return a.low > b.low; });
      const float least = hits[k_ - 1].low;
      count = static_cast<std::int32_t>(
          std::partition(hits, hits + count, [&](const Hit& h) { return h.up >= least; }) - hits);
      raise(i, rounded_down(least - search_.terms.slack[i]));
    }
    if (4 * count > 3 * capacity_) settle(i);
  }

  void settle(Index i) {
    BestItems known = best(i);
    offer_hits(search_, i, hits_ + at(i) * capacity_, counts_[at(i)], known);
    counts_[at(i)] = 0;
    if (known.is_full()) raise_to_score(i, known.last().score);
  }

  const Search& search_;
  Range rows_;
  Index k_, kept_, capacity_;
  Hit* hits_;
  Best* best_;
  float* threshold_;
  std::int32_t *counts_, *best_counts_;
};

}  // namespace
}  // namespace mmcore

// A chunk of queries: the first pass, rows that have none, and the best of what all parts have found.
#pragma once

#include "float64.h"
#include "topk_choice.h"

namespace mmcore {
namespace {

class TopkChunk {
 public:
  TopkChunk(const Search& search, const TopkPlan& plan, const FoundItems& earlier, const FoundItems& found)
      : search_(search),
        plan_(plan),
        earlier_(earlier),
        found_(found),
        memory_(Bags::floats(plan.most_rows(search.queries.size()), plan.kept, plan.capacity), plan.threads) {
    for (int part = 0; part < plan.threads; ++part)
      bags_.emplace_back(search, plan.rows(search.queries.size(), part), plan.kept, plan.capacity,
                         memory_.of_thread(part));
  }

  void run() {
    switch (plan_.kind) {
      case PassKind::kExact:
        score_all();
        break;
      case PassKind::kRows:
        if (plan_.is_few) {
          walk(FewRowsPass(search_));
        } else {
          with_rows_pass(search_, plan_.threads, [&](const auto& pass) { walk(pass); });
        }
        break;
      case PassKind::kRounded:
        with_rounded_pass(search_, plan_.threads, [&](const auto& pass) { walk(pass); });
        break;
      case PassKind::kBytes:
        with_bytes_pass(search_, plan_.is_few, plan_.threads, [&](const auto& pass) { walk(pass); });
        break;
    }
    merge();
  }

 private:
  // Every score is computed in float64.
  void score_all() {
    visit_dtype(search_.inputs.queries, [&](auto x) {
      for_each_stripe(plan_.threads, search_.queries.size(), 1, [&](Range rows, int) {
        const KeptDenormals kept;
        for (Index i = rows.begin; i < rows.end; ++i)
          search_.terms.set(i, x.row(search_.queries.begin + i), x.columns, search_.inputs.metric,
                            NormBounds{std::numeric_limits<double>::infinity(), 0, 0}, 1, 0);
      });
    });
    for_each_part([&](int part) { score_rows_without_pass(part); });
  }

  template <class Pass>
  void walk(const Pass& pass) {
    const Scratch scratch(floats_to_walk(pass), plan_.threads);
    for_each_part([&](int part) {
      seed(bags_[part]);
      walk_gallery(search_, pass, bags_[part], plan_.columns(search_.inputs.gallery.rows, part),
                   scratch.of_thread(part));
      score_rows_without_pass(part);
    });
  }

  template <class Body>
  void for_each_part(Body body) {
    for_each_stripe(plan_.threads, plan_.threads, 1, [&](Range, int part) {
      const KeptDenormals kept;
      body(part);
    });
  }

  // Thresholds from what earlier chunks have found.
  void seed(Bags& bags) const {
    const Index k = search_.inputs.k;
    for (Index i = bags.rows().begin; i < bags.rows().end; ++i) {
      const Index last = (search_.queries.begin + i) * k + k - 1;
      if (!search_.terms.is_ordinary[i]) {
        bags.close(i);
      } else if (earlier_.indices != nullptr && earlier_.indices[last] >= 0) {
        bags.raise_to_score(i, earlier_.scores[last]);
      }
    }
  }

  // Queries that no first pass can bound, against all items of the part. A NaN has no scores.
  void score_rows_without_pass(int part) {
    constexpr Index kItems = 64;
    Bags& bags = bags_[part];
    const Range columns = plan_.columns(search_.inputs.gallery.rows, part);
    for (Index j = columns.begin; j < columns.end; j += kItems)
      for (Index i = bags.rows().begin; i < bags.rows().end; ++i) {
        const double inverse = search_.terms.inverse[i];
        if (search_.terms.is_ordinary[i] || inverse != inverse) continue;
        Index seen[kItems], count = 0;
        for (Index item = j; item < minimum(j + kItems, columns.end); ++item)
          if (!search_.is_excluded(i, item)) seen[count++] = item;
        BestItems best = bags.best(i);
        search_.offer(i, count, [&](Index n) { return seen[n]; }, best);
      }
  }

  // Memory of one thread that merges.
  struct Merging {
    std::vector<Hit> hits;
    std::vector<Best> best;
    std::int32_t count = 0;
  };

  void merge() {
    const Index most =
        minimum(search_.inputs.k, search_.inputs.gallery.rows + (earlier_.indices ? search_.inputs.k : 0));
    std::vector<Merging> memory(plan_.threads);
    for (Merging& each : memory) {
      each.hits.resize(plan_.capacity * (plan_.is_by_queries ? 1 : plan_.threads));
      each.best.resize(most);
    }
    for_each_stripe(plan_.threads, search_.queries.size(), 1, [&](Range mine, int thread) {
      const KeptDenormals kept;
      for (Index i = mine.begin; i < mine.end; ++i) merge_row(i, memory[thread]);
    });
  }

  void merge_row(Index i, Merging& memory) const {
    const Index k = search_.inputs.k;
    Hit* hits = memory.hits.data();
    Index count = 0;
    float least = -kInfinity;
    memory.count = 0;
    BestItems best(memory.best.data(), &memory.count, static_cast<Index>(memory.best.size()));
    for (const Bags& bags : bags_) {
      if (i < bags.rows().begin || i >= bags.rows().end) continue;
      std::copy_n(bags.hits(i), bags.count(i), hits + count);
      count += bags.count(i);
      least = bags.threshold(i) > least ? bags.threshold(i) : least;
      const BestItems known = bags.best(i);
      for (Index n = 0; n < known.count(); ++n) best.offer(known[n]);
    }
    for (Index n = 0; earlier_.indices != nullptr && n < k; ++n) {
      const Index at = (search_.queries.begin + i) * k + n;
      if (earlier_.indices[at] >= 0) best.offer({earlier_.scores[at], earlier_.indices[at]});
    }
    offer_hits(search_, i, hits, drop_below(hits, count, least), best);
    write(i, best);
  }

  // Drops what cannot be among the k best; returns how many stay.
  Index drop_below(Hit* hits, Index count, float least) const {
    const Index k = search_.inputs.k;
    if (count > k) {
      std::nth_element(hits, hits + (k - 1), hits + count, [](const Hit& a, const Hit& b) { return a.low > b.low; });
      least = hits[k - 1].low > least ? hits[k - 1].low : least;
    }
    return std::partition(hits, hits + count, [&](const Hit& hit) { return !(hit.up < least); }) - hits;
  }

  void write(Index i, BestItems& best) const {
    const Index k = search_.inputs.k, first = (search_.queries.begin + i) * k;
    best.sort();
    for (Index n = 0; n < k; ++n) {
      const bool is_there = n < best.count();
      found_.scores[first + n] = is_there ? best[n].score : kMinusInfinity;
      found_.indices[first + n] = is_there ? best[n].index : -1;
    }
  }

  const Search& search_;
  const TopkPlan& plan_;
  const FoundItems& earlier_;
  const FoundItems& found_;
  Scratch memory_;
  std::vector<Bags> bags_;
};

}  // namespace
}  // namespace mmcore

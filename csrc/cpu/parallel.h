// How rows are distributed to threads; only this file uses OpenMP. Every schedule is static. So for a given number of
// threads, sums are added in one order, and every run returns the same bits.
#pragma once

#include <omp.h>

#include "../matrix.h"

namespace mmcore {
namespace {

struct Range {
  Index begin, end;
  Index size() const { return end - begin; }
};

inline Index minimum(Index a, Index b) { return a < b ? a : b; }
inline Index maximum(Index a, Index b) { return a > b ? a : b; }
constexpr Index round_up(Index value, Index multiple) { return (value + multiple - 1) / multiple * multiple; }

// Part `part` of `parts` near-equal parts of [0, total), cut at multiples of `unit`.
inline Range stripe(Index total, Index unit, Index part, Index parts) {
  Index units = (total + unit - 1) / unit;
  return {minimum(total, units * part / parts * unit), minimum(total, units * (part + 1) / parts * unit)};
}

// body(range, number) on `threads` stripes of [0, total), one per thread. If fewer threads start, each takes several.
template <class Body>
void for_each_stripe(int threads, Index total, Index unit, Body body) {
#pragma omp parallel num_threads(threads)
  {
    const int count = omp_get_num_threads();
    for (int part = omp_get_thread_num(); part < threads; part += count) body(stripe(total, unit, part, threads), part);
  }
}

// body(row stripe, column stripe, thread) for every pair of `threads` row stripes and as many column stripes. In step t
// slot k holds the pair (k, (k + t) mod T): no two threads ever hold the same rows or the same columns, so both sides
// of a product may be accumulated without atomics and without a copy per thread. If fewer threads start than were
// asked for, each takes several slots, and the order of the sums stays.
template <class Body>
void for_each_latin_square_pair(int threads, Body body) {
#pragma omp parallel num_threads(threads)
  {
    const int thread = omp_get_thread_num(), count = omp_get_num_threads();
    for (int step = 0; step < threads; ++step) {
      for (int slot = thread; slot < threads; slot += count) body(slot, (slot + step) % threads, thread);
#pragma omp barrier
    }
  }
}

// body(first, second, thread), first <= second, for every unordered pair of 2·threads stripes, as the rounds of a
// tournament: in a round every stripe plays once, so no two threads ever hold the same one. Each plays itself last.
template <class Body>
void for_each_tournament_pair(int threads, Body body) {
  const int circle = 2 * threads - 1;
#pragma omp parallel num_threads(threads)
  {
    const int thread = omp_get_thread_num(), count = omp_get_num_threads();
    for (int round = 0; round < circle; ++round) {
      for (int slot = thread; slot < threads; slot += count) {
        const int one = slot == 0 ? circle : (round + slot) % circle, other = (round + circle - slot) % circle;
        body(one < other ? one : other, one < other ? other : one, thread);
      }
#pragma omp barrier
    }
    for (int stripe = thread; stripe <= circle; stripe += count) body(stripe, stripe, thread);
  }
}

}  // namespace
}  // namespace mmcore

// The processor's peak rate of multiply-adds: independent chains in registers, no memory, no exponentials.
#pragma once

#include <chrono>
#include <vector>

#include "arithmetic.h"

namespace mmcore {
namespace {

// Every loop over chains is unrolled, because otherwise the chains would be kept in memory. 12 chains cover the latency
// of two pipes on every core so far, and fit 16 registers.
template <class A>
double measure_peak_of(int threads) {
  constexpr int kChains = 12;
  constexpr Index kSteps = 1'000'000;
  std::vector<float> keep(threads);
  auto start = std::chrono::steady_clock::now();
  for_each_stripe(threads, threads, 1, [&](Range, int thread) {
    Vec chain[kChains];
#pragma GCC unroll 16
    for (int c = 0; c < kChains; ++c) chain[c] = broadcast(0.01f * static_cast<float>(c + thread));
    const Vec factor = broadcast(0.999f), term = broadcast(0.001f);
    for (Index step = 0; step < kSteps; ++step) {
#pragma GCC unroll 16
      for (int c = 0; c < kChains; ++c) A::add_product(chain[c], factor, term);
    }
    Vec total{};
#pragma GCC unroll 16
    for (int c = 0; c < kChains; ++c) total += chain[c];
    keep[thread] = sum(total);
  });
  std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  volatile float sink = keep[0];
  (void)sink;
  const double steps = static_cast<double>(kSteps) * threads;
  return 2e-9 * A::kNumbersPerUnit * kChains * kLanes * steps / elapsed.count();
}

double measure_peak(bool in_bfloat16, int threads) {
  return in_bfloat16 ? measure_peak_of<Bfloat16Pairs>(threads) : measure_peak_of<Float32>(threads);
}

}  // namespace
}  // namespace mmcore

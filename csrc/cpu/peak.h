// The multiply-add roof: independent FMA chains in registers, no memory, no exp.
#pragma once

#include <chrono>
#include <vector>

#include "parallel.h"
#include "vec.h"

namespace mmcore {
namespace {

// 12 chains cover the latency of two FMA pipes on every core so far, and fit 16 registers.
double measure_fma_peak(int threads) {
  constexpr int kChains = 12;
  constexpr Index kSteps = 1'000'000;
  std::vector<float> keep(threads);
  auto start = std::chrono::steady_clock::now();
  for_each_stripe(threads, threads, 1, [&](Range, int thread) {
    Vec chain[kChains];
    for (int c = 0; c < kChains; ++c) chain[c] = broadcast(0.01f * static_cast<float>(c + thread));
    const Vec factor = broadcast(0.999f), term = broadcast(0.001f);
    for (Index step = 0; step < kSteps; ++step) {
      for (int c = 0; c < kChains; ++c) chain[c] = chain[c] * factor + term;
    }
    Vec total{};
    for (int c = 0; c < kChains; ++c) total += chain[c];
    keep[thread] = sum(total);
  });
  std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  volatile float sink = keep[0];
  (void)sink;
  return 2e-9 * kChains * kLanes * static_cast<double>(kSteps) * threads / elapsed.count();
}

}  // namespace
}  // namespace mmcore

// The processor's peak rate of multiply-adds: independent sums, no memory beyond L1, no exponentials.
#pragma once

#include <algorithm>
#include <chrono>
#include <vector>

#include "matmul.h"
#include "scratch.h"

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

#ifdef MMCORE_MATRIX_UNIT
// Of the matrix unit. Its operands are loaded from L1, as a product loads them.
double measure_peak_of_tiles(int threads) {
  constexpr Index kSteps = 4, kRepeats = 25'000;
  constexpr Index kFloats = kSteps * kPanelStep;
  const Scratch operands(2 * kFloats, threads);
  const auto start = std::chrono::steady_clock::now();
  for_each_stripe(threads, threads, 1, [&](Range, int thread) {
    const MatrixUnit::Region region;
    float* lhs = operands.of_thread(thread);
    std::fill_n(lhs, 2 * kFloats, 0.0f);
    for (Index repeat = 0; repeat < kRepeats; ++repeat)
      for (Index k = 0; k < kFloats; k += kPanelStep) add_step<true, true>(lhs + k, lhs + kFloats + k);
  });
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  return 2e-9 * 4 * 16 * 16 * 32 * kSteps * kRepeats * threads / elapsed.count();
}
#endif

double measure_peak(bool in_bfloat16, int threads) {
#ifdef MMCORE_MATRIX_UNIT
  if (in_bfloat16) return measure_peak_of_tiles(threads);
#endif
  return in_bfloat16 ? measure_peak_of<Bfloat16Pairs>(threads) : measure_peak_of<Float32>(threads);
}

}  // namespace
}  // namespace mmcore

// The processor's peak rate of multiply-adds: independent sums in registers, no memory, no exponentials.
#pragma once

#include <chrono>
#include <vector>

#include "matmul.h"

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

// Of the matrix unit: four sums, because one would wait for itself.
template <class Unit>
double measure_peak_of_tiles(int threads) {
  constexpr Index kSteps = 100'000;
  const auto start = std::chrono::steady_clock::now();
  for_each_stripe(threads, threads, 1, [&](Range, int) {
    const typename Unit::Region region;
    for (Index step = 0; step < kSteps; ++step) {
      Unit::template multiply<0, 4, 6>();
      Unit::template multiply<1, 4, 7>();
      Unit::template multiply<2, 5, 6>();
      Unit::template multiply<3, 5, 7>();
    }
  });
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  return 2e-9 * 4 * 16 * 16 * 32 * kSteps * threads / elapsed.count();
}

double measure_peak(bool in_bfloat16, int threads) {
#ifdef MMCORE_MATRIX_UNIT
  if (in_bfloat16) return measure_peak_of_tiles<MatrixUnit>(threads);
#endif
  return in_bfloat16 ? measure_peak_of<Bfloat16Pairs>(threads) : measure_peak_of<Float32>(threads);
}

}  // namespace
}  // namespace mmcore

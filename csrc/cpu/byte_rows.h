// Rows as bytes: v ≈ v̂ = scale·q with integers q from −127 to 127, and a bound of ‖v − v̂‖.
//
// The scale of a row is its largest magnitude over 127. The bound is computed from v and v̂ themselves, so that it holds
// however q was rounded.
#pragma once

#include "byte_arithmetic.h"
#include "norm_bounds.h"

namespace mmcore {
namespace {

// Rows of bytes are this far apart, with zeros behind the last number, so that whole vectors can be loaded.
constexpr Index kByteAlignment = 64;
constexpr Index byte_stride(Index depth) { return round_up(depth, kByteAlignment); }

struct ByteRow {
  NormBounds statistics;
  float scale = 1;
  std::int32_t sum = 0;  // Σ q
};

// Adding it to a float32 number below 2²² rounds that to an integer, which is then in the last bits.
constexpr float kIntegerRounder = 0x1.8p23f;

template <class T>
ByteRow quantised_row(const T* row, Index depth, std::int8_t* out) {
  std::memset(out, 0, byte_stride(depth));
  Vec largest{}, squares[2]{};
  for (Index k = 0; k < depth; k += 2 * kLanes)
    for (int half = 0; half < 2; ++half) {
      const Index from = k + half * kLanes;
      if (from >= depth) break;
      const Vec v = load_first(row + from, depth - from);
      squares[half] += v * v;
      const Vec magnitude = reinterpret_cast<Vec>(reinterpret_cast<BitsVec>(v) & 0x7fffffffu);
      largest = magnitude > largest ? magnitude : largest;
    }
  const NormBounds before = statistics_from_sums(row, depth, sum(squares[0] + squares[1]), 0);
  if (!before.is_ordinary() || before.norm == 0) return {before};

  float top = 0;
  for (int lane = 0; lane < kLanes; ++lane) top = largest[lane] > top ? largest[lane] : top;
  ByteRow result{before, top / 127};
  const float inverse = 127 / top;
  Vec residuals{};
  IntVec sums{};
  for (Index k = 0; k < depth; k += kLanes) {
    const Vec v = load_first(row + k, depth - k), raised = v * inverse + kIntegerRounder;
    const IntVec q = reinterpret_cast<IntVec>(raised) - reinterpret_cast<IntVec>(broadcast(kIntegerRounder));
    const Vec residual = v - (raised - kIntegerRounder) * result.scale;
    residuals += residual * residual;
    sums += q;
    store_bytes(out + k, q, depth - k);
  }
  result.statistics = statistics_from_sums(row, depth, before.square, sum(residuals));
  // v̂ and v − v̂ are rounded while they are computed.
  result.statistics.residual += 4 * kUnit * result.statistics.norm;
  result.sum = sum(sums);
  return result;
}

}  // namespace
}  // namespace mmcore

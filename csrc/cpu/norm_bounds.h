// What a first pass has to know of a row of features: its norm, and how far the numbers that it multiplies are away.
//
//   ‖v‖ ≤ norm     ‖v − v̂‖ ≤ residual     |square − ‖v‖²| ≤ γ(roundings_along)·‖v‖²     v̂: v as bfloat16, or as bytes
//
// One pass over a row that is in cache, in float32.
#pragma once

#include "bounds.h"
#include "score.h"

namespace mmcore {
namespace {

// A row with a norm of ∞ is scored in float64 beside everything; one with a NaN has no score at all.
struct NormBounds {
  double norm = 0, residual = 0, square = 0;

  bool is_ordinary() const { return norm <= kLargestNorm; }
};

enum class Multiplied { kAsGiven, kAsBfloat16 };

// The statistics of a row from sums over it, in float32: of squares, and of squares of v − v̂.
template <class T>
NormBounds statistics_from_sums(const T* row, Index depth, double square, double residual_square) {
  const double gamma = gamma_of(roundings_along(depth));
  if (!(square >= kLeastNorm * kLeastNorm && square <= kLargestNorm * kLargestNorm)) {
    square = exact_product(row, row, depth);
    if (square == 0) return {};
    const double norm = std::sqrt(square);
    if (!is_ordinary_norm(norm))
      return {square != square ? square : std::numeric_limits<double>::infinity(), 0, square};
  }
  const double norm = std::sqrt(square * (1 + gamma));
  // Squares below 2⁻¹²⁶ may have counted as zero.
  return {norm, std::sqrt(residual_square * (1 + gamma)) + kUnit * norm, square};
}

template <Multiplied kHow, class T>
NormBounds norm_bounds(const T* row, Index depth) {
  Vec squares[2]{}, residuals[2]{};
  for (Index k = 0; k < depth; k += 2 * kLanes)
    for (int half = 0; half < 2; ++half) {
      const Index from = k + half * kLanes;
      if (from >= depth) break;
      const Vec v = load_first(row + from, depth - from);
      squares[half] += v * v;
      if constexpr (kHow == Multiplied::kAsBfloat16) {
        const Vec residual = v - rounded_to_bfloat16(v);
        residuals[half] += residual * residual;
      }
    }
  NormBounds result = statistics_from_sums(row, depth, sum(squares[0] + squares[1]), sum(residuals[0] + residuals[1]));
  if (kHow == Multiplied::kAsGiven && result.is_ordinary()) result.residual = 0;
  return result;
}

}  // namespace
}  // namespace mmcore

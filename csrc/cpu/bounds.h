// How far a first pass may be from the exact score: bounds that hold for every input, of sums in float32.
//
// With u = 2⁻²⁴, every rounding multiplies by 1 + δ, |δ| ≤ u. If no term of a sum is rounded more than n times,
//
//   |sum computed − Σ terms| ≤ γ(n)·Σ |terms|,   γ(n) = n·u / (1 − n·u),   and Σ_k |x_k·y_k| ≤ ‖x‖·‖y‖
//
// (Higham, "Accuracy and Stability of Numerical Algorithms", 2002, chapter 3). n follows from the chains in which an
// arithmetic adds (`roundings`).
#pragma once

#include <cmath>
#include <limits>

#include "vector_product.h"

namespace mmcore {
namespace {

constexpr double kUnit = 0x1p-24, kUnit64 = 0x1p-53;

inline double gamma_of(double roundings) { return roundings * kUnit / (1 - roundings * kUnit); }

// Of a sum8 (score.h) and what is computed from it.
inline double gamma64_of(Index depth) { return (static_cast<double>(depth) / 8 + 16) * kUnit64; }

// The float32 numbers next to a float64 number, which is no NaN. By its bits, because std::nextafter is a call.
inline float rounded_down(double value) {
  float result = static_cast<float>(value);
  if (static_cast<double>(result) <= value) return result;
  std::int32_t bits;
  std::memcpy(&bits, &result, sizeof(bits));
  bits = result > 0 ? bits - 1 : result < 0 ? bits + 1 : std::numeric_limits<std::int32_t>::min() + 1;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}
inline float rounded_up(double value) { return -rounded_down(-value); }

// Norms in this range neither overflow nor underflow in a way that counts, whichever way the rows are multiplied. Zero
// is in it as well. A pair with a row outside is scored in float64.
constexpr double kLeastNorm = 0x1p-30, kLargestNorm = 0x1p60;

inline bool is_ordinary_norm(double norm) { return norm >= kLeastNorm && norm <= kLargestNorm; }

constexpr Index ceiling(Index value, Index divisor) { return (value + divisor - 1) / divisor; }

// How often A rounds a term of a sum over `depth`, at most.
template <class A>
double roundings(Index depth) {
  const Index count = units<A>(depth);
  if constexpr (A::kUsesMatrixUnit) {
    // Chains of 16 in a tile, their sum, and one addition for each product of parts of each step. The products of the
    // smallest parts are left out, which counts as two more roundings.
    constexpr Index kProducts = A::kParts == 1 ? 1 : A::kParts == 2 ? 4 : 6;
    return static_cast<double>(20 + kProducts * (count / 16));
  } else {
    // Chains, their sums in a slice of the depth, and the sums of slices (vector_product.h). A product that is no FMA
    // is rounded itself.
    const Index chain = minimum(count, A::kChain), chains = ceiling(minimum(count, kDepth), A::kChain);
    return static_cast<double>(A::kRoundingsPerUnit * chain + chains + ceiling(count, kDepth) + 2);
  }
}

// The same for a sum along vectors, as of `squared_norm`: a chain in each lane, and the sum of the lanes.
inline double roundings_along(Index depth) { return static_cast<double>(depth) / kLanes + 8; }

// What a bound adds for a pair of ordinary rows, relative to ‖x‖·‖y‖: a dozen roundings while number, factors and shift
// become the value that is compared, those of the exact score, and numbers below 2⁻¹²⁶, which count as zero on a matrix
// unit.
inline double evaluation_slack(Index depth) {
  return 12 * kUnit + 8 * gamma64_of(depth) + static_cast<double>(depth) * 0x1p-60;
}

}  // namespace
}  // namespace mmcore

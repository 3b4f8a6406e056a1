// Exponentials of vectors, and numbers in two parts for their exponents.
#pragma once

#include "vec.h"

namespace mmcore {
namespace {

// Adding kRounder to a float32 of magnitude below 2²² rounds it to an integer n and leaves n + 127, the exponent field
// of 2ⁿ, in the low bits of the sum.
constexpr float kRounder = 1.5f * (1 << 23) + 127.0f;

// 2^(n + fraction) for `rounded` = kRounder + n and |fraction| ≲ 0.5; exactly 0 below 2⁻¹²⁶. A NaN stays NaN.
// Minimax polynomial of degree 6 with relative error 2·10⁻⁹, so the rounding of the result dominates.
inline Vec exp2_from_parts(Vec rounded, Vec fraction) {
  Vec p = fraction * 0.000153529458f + 0.00133993907f;
  p = p * fraction + 0.00961844251f;
  p = p * fraction + 0.0555033125f;
  p = p * fraction + 0.240226477f;
  p = p * fraction + 0.693147182f;
  p = p * fraction + 1.0f;
  IntVec exponent = reinterpret_cast<IntVec>(rounded) << 23;
  Vec result = p * reinterpret_cast<Vec>(exponent);
  return rounded < kRounder - 126.0f ? Vec{} : result;
}

// 2^v for v <= 127.
inline Vec exp2(Vec v) {
  Vec rounded = v + kRounder;
  return exp2_from_parts(rounded, v - (rounded - kRounder));
}

// A number to about twice float32's precision. Logits near 100 need it: float32 alone leaves 4·10⁻⁶ in every exp.
struct Split {
  float high, low;
  explicit Split(double value)
      : high(static_cast<float>(value)), low(high - high == 0 ? static_cast<float>(value - high) : 0.0f) {}
};

}  // namespace
}  // namespace mmcore

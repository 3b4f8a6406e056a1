// What kernels compute in float64: constants, exact products, sums of exponentials.
#pragma once

#include <cmath>
#include <limits>

#include "vec.h"

namespace mmcore {
namespace {

constexpr double kLog2E = 1.4426950408889634074;
constexpr double kLn2 = 0.69314718055994530942;
constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();

// ⟨a, b⟩. A product of two float32 numbers is exact in float64; only the sum rounds.
template <class S, class T>
inline double exact_dot(const S* a, const T* b, Index columns) {
  constexpr int kParts = 16;
  double part[kParts] = {}, total = 0;
  Index k = 0;
  for (; k + kParts <= columns; k += kParts)
    for (int p = 0; p < kParts; ++p) part[p] += static_cast<double>(widen(a[k + p])) * widen(b[k + p]);
  for (; k < columns; ++k) total += static_cast<double>(widen(a[k])) * widen(b[k]);
  for (double p : part) total += p;
  return total;
}

// log(eᵃ + eᵇ)
inline double log_add_exp(double a, double b) {
  const double larger = a > b ? a : b, smaller = a > b ? b : a;
  if (a != a || b != b) return a + b;
  return larger == kMinusInfinity ? larger : larger + std::log1p(std::exp(smaller - larger));
}

}  // namespace
}  // namespace mmcore

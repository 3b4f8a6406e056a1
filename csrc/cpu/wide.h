// Vectors of float64, for logits without a useful bound: float32 exponents of large logits have no digits left.
#pragma once

#include "exponential.h"
#include "float64.h"

namespace mmcore {
namespace {

// kLanes numbers, in two registers.
struct Wide {
  using Half = double __attribute__((vector_size(kLanes / 2 * sizeof(double))));
  using HalfMask = std::int64_t __attribute__((vector_size(kLanes / 2 * sizeof(double))));
  using HalfOfVec = float __attribute__((vector_size(kLanes / 2 * sizeof(float))));
  using HalfOfIntVec = std::int32_t __attribute__((vector_size(kLanes / 2 * sizeof(float))));
  Half part[2];

  __attribute__((always_inline)) friend Wide operator+(const Wide& a, const Wide& b) {
    return {{a.part[0] + b.part[0], a.part[1] + b.part[1]}};
  }
  __attribute__((always_inline)) friend Wide operator-(const Wide& a, const Wide& b) {
    return {{a.part[0] - b.part[0], a.part[1] - b.part[1]}};
  }
  __attribute__((always_inline)) friend Wide operator*(const Wide& a, double b) {
    return {{a.part[0] * b, a.part[1] * b}};
  }
};

inline Wide load(const double* p) {
  Wide w;
  std::memcpy(&w, p, sizeof(w));
  return w;
}
inline void store(double* p, const Wide& w) { std::memcpy(p, &w, sizeof(w)); }

inline Wide broadcast_wide(double value) { return {{value - Wide::Half{}, value - Wide::Half{}}}; }

inline Wide widen(const Vec& v) {
  Wide::HalfOfVec half[2];
  std::memcpy(half, &v, sizeof(v));
  return {{__builtin_convertvector(half[0], Wide::Half), __builtin_convertvector(half[1], Wide::Half)}};
}
inline Vec narrow(const Wide& w) {
  const Wide::HalfOfVec half[2] = {__builtin_convertvector(w.part[0], Wide::HalfOfVec),
                                   __builtin_convertvector(w.part[1], Wide::HalfOfVec)};
  Vec v;
  std::memcpy(&v, half, sizeof(v));
  return v;
}

// `w` where the mask is set, `other` elsewhere.
inline Wide select(IntVec mask, const Wide& w, double other) {
  Wide::HalfOfIntVec half[2];
  std::memcpy(half, &mask, sizeof(mask));
  Wide result = broadcast_wide(other);
  for (int h = 0; h < 2; ++h)
    result.part[h] = __builtin_convertvector(half[h], Wide::HalfMask) ? w.part[h] : result.part[h];
  return result;
}

inline Wide larger(const Wide& a, const Wide& b) {
  return {{a.part[0] > b.part[0] ? a.part[0] : b.part[0], a.part[1] > b.part[1] ? a.part[1] : b.part[1]}};
}

inline double largest(const Wide& w) {
  double result = kMinusInfinity;
  for (const Wide::Half& half : w.part)
    for (int lane = 0; lane < kLanes / 2; ++lane) result = half[lane] > result ? half[lane] : result;
  return result;
}

inline double sum(const Wide& w) {
  double result = 0;
  for (int lane = 0; lane < kLanes / 2; ++lane) result += w.part[0][lane] + w.part[1][lane];
  return result;
}

// exp(v) in float32 for v up to 80, to its last digits: 0 far below, and NaN for NaN.
inline Vec exponential(const Wide& v) {
  const Wide bits = v * kLog2E;
  const Vec rounded = narrow(bits) + kRounder;
  return exp2_from_parts(rounded, narrow(bits - widen(rounded - kRounder)));
}

// Logits from float32 products. Every pass over the matrix, by rows or by columns, adds in this order and has the same
// bits: inlined, so that the compiler fuses the product into the same addition everywhere.
__attribute__((always_inline)) inline Wide wide_logits(Vec product, double scale, double bias, const Wide& row_bias,
                                                       const Wide& col_bias) {
  return widen(product) * scale + ((row_bias + col_bias) + broadcast_wide(bias));
}
__attribute__((always_inline)) inline double wide_logit(double product, double scale, double bias, double row_bias,
                                                        double col_bias) {
  return product * scale + ((row_bias + col_bias) + bias);
}

}  // namespace
}  // namespace mmcore

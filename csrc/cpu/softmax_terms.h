// Log-sum-exp and weight of each row or column, for weight·exp(s − lse) without overflow.
#pragma once

#include <vector>

#include "matmul.h"
#include "positives.h"

namespace mmcore {
namespace {

// Per row or per column, padded to whole blocks. Where nothing is counted, lse = −∞, the weight is 0.
struct SoftmaxTerms {
  std::vector<float> lse_high, lse_low;  // log2(e)·lse in two parts
  std::vector<float> weight;             // the upstream gradient

  SoftmaxTerms(const double* lse, const double* weights, Index count) {
    const Index padded = round_up(count, kBlock) + kBlock;
    lse_high.assign(padded, kInfinity);  // exp(−∞) = 0
    lse_low.resize(padded);
    weight.resize(padded);
    for (Index i = 0; i < count; ++i) {
      if (lse[i] == kMinusInfinity) continue;
      const Split split(lse[i] * kLog2E);
      lse_high[i] = split.high;
      lse_low[i] = split.low;
      weight[i] = static_cast<float>(weights[i]);
    }
  }
};

// exp(a·product − lse), a being log2(e)·scale in two parts.
inline Vec softmax(Vec product, const Split& a, Vec lse_high, Vec lse_low) {
  return exp2(multiply_add(product, broadcast(a.high), -lse_high) + multiply_add(product, broadcast(a.low), -lse_low));
}

}  // namespace
}  // namespace mmcore

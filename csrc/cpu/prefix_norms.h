// The norms of every row's prefixes, in float64, and as factors of float32 exponents.
#pragma once

#include <vector>

#include "exponential.h"
#include "float64.h"
#include "matmul.h"

namespace mmcore {
namespace {

// 1 / max(‖prefix‖, eps) of every row for every prefix, padded to whole blocks.
struct PrefixNorms {
  std::vector<std::vector<double>> inverse;
  std::vector<std::vector<float>> high, low;  // `factor` times the inverse, in two parts
  double eps, factor;

  PrefixNorms(const AnyMatrix& features, const std::vector<Index>& ends, double smallest, double times, int threads)
      : eps(smallest), factor(times) {
    const std::size_t padded = round_up(features.rows, kBlock) + kBlock;
    inverse.assign(ends.size(), std::vector<double>(padded));
    high.assign(ends.size(), std::vector<float>(padded));
    low = high;
    visit_dtype(features, [&](auto m) {
      for_each_stripe(threads, m.rows, 1, [&](Range rows, int) {
        for (Index i = rows.begin; i < rows.end; ++i) set(m, i, ends);
      });
    });
  }

  bool is_clamped(std::size_t prefix, Index i) const { return inverse[prefix][i] >= 1 / eps; }

 private:
  template <class M>
  void set(M m, Index i, const std::vector<Index>& ends) {
    double square = 0;
    Index begin = 0;
    for (std::size_t k = 0; k < ends.size(); ++k) {
      square += exact_dot(m.row(i) + begin, m.row(i) + begin, ends[k] - begin);
      begin = ends[k];
      const double norm = std::sqrt(square);
      inverse[k][i] = 1 / (norm < eps ? eps : norm);  // written so that a NaN stays NaN
      const Split split(factor * inverse[k][i]);
      high[k][i] = split.high;
      low[k][i] = split.low;
    }
  }
};

}  // namespace
}  // namespace mmcore

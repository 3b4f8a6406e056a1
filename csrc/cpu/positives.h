// The logits of targets, computed apart from the tiles and in float64: O(N·D). Used by sigmoid_similarity, where no
// other logit is subtracted from a positive's.
#pragma once

#include <vector>

#include "../kernels.h"
#include "float64.h"
#include "parallel.h"

namespace mmcore {
namespace {

inline double row_bias(const SimilarityInputs& inputs, Index i) { return inputs.row_bias ? inputs.row_bias[i] : 0; }
inline double col_bias(const SimilarityInputs& inputs, Index j) { return inputs.col_bias ? inputs.col_bias[j] : 0; }

// The logit of each row's target, every bias included; 0 for rows without one. Empty where there are no targets.
std::vector<double> target_logits(const SimilarityInputs& inputs, int threads) {
  const Index* target = inputs.pairs.target;
  if (target == nullptr) return {};
  std::vector<double> logits(inputs.x.rows);
  visit_dtype(inputs.x, [&](auto x) {
    const auto y = inputs.y.as<NumberOf<decltype(x)>>();
    for_each_stripe(threads, x.rows, 1, [&](Range rows, int) {
      for (Index i = rows.begin; i < rows.end; ++i) {
        if (target[i] < 0) continue;
        logits[i] = inputs.scale * exact_dot(x.row(i), y.row(target[i]), x.columns) + inputs.bias +
                    row_bias(inputs, i) + col_bias(inputs, target[i]);
      }
    });
  });
  return logits;
}

}  // namespace
}  // namespace mmcore

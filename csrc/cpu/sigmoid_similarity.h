// Sums over the similarity matrix for sigmoid objectives, with their gradients in the same pass.
//
//   total = Σ_{counted} softplus(s_ij)     positive = Σ_{positive} s_ij     s_ij = scale·⟨x_i, y_j⟩ + bias
//   G_ij = a·[counted]·σ(s_ij) + c·[positive]     grad_x = scale·G·y     grad_y = scale·Gᵀ·x
//
// a and c are the upstream gradients of total and positive. G needs no statistic of the matrix, so one pass is enough.
//
// Never stored: G and the logits. One block of G is in scratch memory and is multiplied into both gradients.
// Loop order: similarity_blocks.h.
// Precision: float32 logits. With z = e^−|s|, softplus(s) is max(s, 0) + log1p(z), and σ(s) is 1 / (1 + z) or
// z / (1 + z), each as exact as a float32 logit allows. Sums are float32 inside a tile, float64 across tiles. At a
// positive, G is (a + c) − a·σ(−s): if a = −c, nothing cancels as σ → 1. Entries of targets are computed in float64.
#pragma once

#include "choose_arithmetic.h"
#include "exponential.h"
#include "gradient_sums.h"
#include "positives.h"
#include "tile_masks.h"

namespace mmcore {
namespace {

// log(1 + z) for z in [0, 1]: z times a minimax polynomial, relative error 5·10⁻⁹ before rounding.
inline Vec log1p_of_unit(Vec z) {
  Vec p = z * -0.0032440233f + 0.0198514536f;
  p = p * z - 0.0569595173f;
  p = p * z + 0.106036536f;
  p = p * z - 0.153055921f;
  p = p * z + 0.196759388f;
  p = p * z - 0.249541342f;
  p = p * z + 0.333299637f;
  p = p * z - 0.499999017f;
  p = p * z + 1.0f;
  return p * z;
}

// Epilogue of one block: sums softplus and positives and, where gradients are wanted, overwrites the products with G.
struct SigmoidTile {
  const SimilarityInputs& inputs;
  const PairMasks& masks;
  const std::vector<double>& targets;
  SigmoidSums upstream;
  bool has_gradients;
  Split a{inputs.scale * kLog2E}, b{inputs.bias * kLog2E};
  Block block{};
  float* numbers = nullptr;
  double total = 0, positive = 0;  // of the block
  Vec total_lanes{}, positive_lanes{};

  void enter(const Block& next, float* target) {
    block = next;
    numbers = target;
    total = positive = 0;
    total_lanes = positive_lanes = Vec{};
  }

  void operator()(Index row, Index column) {
    const bool is_plain_tile = !inputs.is_symmetric && counts_all(masks, block, row, column);
    is_plain_tile ? add_tile<true>(row, column) : add_tile<false>(row, column);
    const Index end = row + kTileRows;
    if (end % kSummedRows != 0 && end < block.rows.size()) return;
    total += sum(total_lanes);
    positive += sum(positive_lanes);
    total_lanes = positive_lanes = Vec{};
  }

 private:
  // Rows of a tile that are summed in float32.
  static constexpr Index kSummedRows = kHasMatrixUnit ? 32 : kTileRows;

  template <bool kCountsAll>
  void add_tile(Index row, Index column) {
    const Index valid = minimum(kTileRows, block.rows.size() - row), first = block.columns.begin + column;
    float* tile = numbers + row * kBlockStride + column;
    Vec tile_total = total_lanes, tile_positive = positive_lanes;
    for (Index r = 0; r < valid; ++r, tile += kBlockStride) {
      const Index i = block.rows.begin + row + r;
      for (int v = 0; v < kTileVectors; ++v) {
        const Index j = first + v * kLanes;
        add_vector<kCountsAll>(tile + v * kLanes, i, j, block.columns.end - j, tile_total, tile_positive);
      }
      if (kCountsAll || !has_gradients) continue;
      masks.visit_targets(i, first, [&](Index lane) { tile[lane] = target_gradient(i, first + lane); });
    }
    total_lanes = tile_total;
    positive_lanes = tile_positive;
  }

  template <bool kCountsAll>
  void add_vector(float* place, Index i, Index j, Index count, Vec& tile_total, Vec& tile_positive) const {
    const Vec product = load(place);
    const Vec logit =
        multiply_add(product, broadcast(static_cast<float>(inputs.scale)), broadcast(static_cast<float>(inputs.bias)));
    const IntVec is_negative = logit < 0.0f;
    // −|s|·log2(e), scale and bias each in two parts.
    const Vec high = multiply_add(product, broadcast(a.high), broadcast(b.high));
    const Vec low = multiply_add(product, broadcast(a.low), broadcast(b.low));
    const Vec z = exp2((is_negative ? high : -high) + (is_negative ? low : -low));
    const Vec rest = log1p_of_unit(z);
    if constexpr (kCountsAll) {
      tile_total += (is_negative ? Vec{} : logit) + rest;
      if (has_gradients) store(place, Sigmoids(upstream.total, z).of(is_negative));
      return;
    }
    Masks mask = masks.at(i, j);
    if (count < kLanes) limit(mask, count);
    // At a positive softplus(−s) is summed. s is added at the end in float64, so that total − positive keeps its
    // digits.
    const Vec at_positive = (is_negative ? -logit : Vec{}) + rest;
    const Vec softplus = mask.positive ? at_positive : (is_negative ? Vec{} : logit) + rest;
    tile_total += mask.keep ? softplus : Vec{};
    if (stands_for_two()) tile_total += mask.keep_col ? softplus : Vec{};
    if (masks.has_labels()) tile_positive += (mask.positive ? logit : Vec{}) * (stands_for_two() ? 2.0f : 1.0f);
    if (has_gradients) store(place, gradient(z, is_negative, mask));
  }

  // a·σ(|s|) and a·σ(−|s|)
  struct Sigmoids {
    Vec larger, smaller;
    Sigmoids(double a, Vec z) : larger(static_cast<float>(a) / (z + 1.0f)), smaller(z * larger) {}
    // a·σ(s), or a·σ(−s) for the opposite signs.
    Vec of(IntVec is_negative) const { return is_negative ? smaller : larger; }
  };

  Vec gradient(Vec z, IntVec is_negative, const Masks& mask) const {
    const Sigmoids sigmoids(upstream.total, z);
    const Vec sigma = sigmoids.of(is_negative);
    Vec g = mask.keep ? sigma : Vec{};
    if (masks.has_labels()) {
      const Vec both = broadcast(static_cast<float>(upstream.total + upstream.positive));
      g = mask.positive ? both - sigmoids.of(~is_negative) : g;
      return inputs.is_symmetric ? g + g : g;
    }
    return inputs.is_symmetric ? g + (mask.keep_col ? sigma : Vec{}) : g;
  }

  // In a symmetric matrix an entry off the diagonal blocks stands for (i, j) and (j, i).
  bool stands_for_two() const { return inputs.is_symmetric && !block.is_diagonal; }

  static void limit(Masks& mask, Index count) {
    for (IntVec* part : {&mask.positive, &mask.keep, &mask.keep_col})
      for (Index lane = maximum(0, count); lane < kLanes; ++lane) (*part)[lane] = 0;
  }

  // G where j is the target of i, or, in a symmetric matrix, i the target of j.
  float target_gradient(Index i, Index j) const {
    const bool is_row_target = masks.target(i) == j, is_col_target = inputs.is_symmetric && masks.target(j) == i;
    const bool is_excluded = masks.is_excluded(i, j);
    const double logit = is_row_target ? targets[i] : targets[j], z = std::exp(-std::abs(logit));
    const double grad_total =
        upstream.total * ((is_row_target || !is_excluded) + (inputs.is_symmetric && (is_col_target || !is_excluded)));
    const double grad_positive = upstream.positive * (is_row_target + is_col_target);
    if (logit < 0) return static_cast<float>(grad_total * z / (1 + z) + grad_positive);
    return static_cast<float>((grad_total + grad_positive) - grad_total * z / (1 + z));
  }
};

template <class A>
SigmoidSums sigmoid_pass(const SimilarityInputs& inputs, SigmoidSums upstream, SimilarityGradients* gradients,
                         int threads) {
  const bool has_gradients = gradients != nullptr;
  const PairMasks masks(inputs);
  const std::vector<double> targets = target_logits(inputs, threads);
  const BlockGrid grid(inputs, threads);
  GradientSums sums(inputs.x.rows, inputs.y.rows, has_gradients && gradients->needs_bias, false);
  std::vector<SigmoidSums> block_sums(grid.block_count());  // added in this order, whichever thread computed them
  Scratch scratch(BlockScratch<A>::floats(grid, inputs.x.columns, has_gradients), threads);
  grid.for_each_pair([&](int row_stripe, int column_stripe, int thread) {
    const Multiplying<A> multiplying;
    BlockScratch<A> blocks(scratch.of_thread(thread), inputs, grid, has_gradients);
    SigmoidTile epilogue{inputs, masks, targets, upstream, has_gradients};
    blocks.walk(grid, row_stripe, column_stripe, [&](const Block& block) {
      epilogue.enter(block, blocks.numbers);
      blocks.multiply(block, blocks.numbers, epilogue);
      block_sums[block.number] = {epilogue.total, epilogue.positive};
      if (!has_gradients) return;
      sums.add(block, blocks.numbers);
      blocks.add_gradients(block, blocks.numbers, *gradients);
    });
  });
  SigmoidSums result;
  for (const SigmoidSums& part : block_sums) {
    result.total += part.total + part.positive;
    result.positive += part.positive;
  }
  for (Index i = 0; masks.has_targets() && i < inputs.x.rows; ++i) {
    if (inputs.pairs.target[i] < 0) continue;
    result.total += log_add_exp(0, targets[i]);
    result.positive += targets[i];
  }
  if (!has_gradients) return result;
  finish_gradients(inputs, *gradients, threads);
  gradients->bias = sums.total() / gradients->power;
  return result;
}

SigmoidSums sigmoid_similarity_forward(const SimilarityInputs& inputs, int threads) {
  return with_arithmetic(inputs, threads, [&](auto arithmetic) {
    return sigmoid_pass<decltype(arithmetic)>(inputs, {}, nullptr, threads);
  });
}

SigmoidSums sigmoid_similarity_gradients(const SimilarityInputs& inputs, SigmoidSums upstream,
                                         SimilarityGradients& gradients, int threads) {
  return with_arithmetic(inputs, {{&upstream.total, 1}, {&upstream.positive, 1}}, threads, [&](auto arithmetic) {
    using A = decltype(arithmetic);
    if constexpr (A::kParts > 1) gradients.power = raising_power({{&upstream.total, 1}, {&upstream.positive, 1}});
    const SigmoidSums raised{upstream.total * gradients.power, upstream.positive * gradients.power};
    return sigmoid_pass<A>(inputs, raised, &gradients, threads);
  });
}

}  // namespace
}  // namespace mmcore

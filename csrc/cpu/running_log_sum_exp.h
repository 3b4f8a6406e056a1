// Log-sum-exp of each row with a running maximum, for logits without a useful bound: features that are not normalised,
// or rows whose logits lie far below the others.
//
//   s_ij = scale·⟨x_i, y_j⟩ + (bias + (own_bias_i + other_bias_j))      row_lse_i = log Σ_{j counted} exp s_ij
//
// Never stored: the N×M logits. One kBlock × kBlock block of products is in scratch memory.
// Loop order: each thread takes a stripe of rows, chunk by chunk. In a chunk: column blocks, and row blocks inside
// them, so that a block of y is packed once for all rows of the chunk.
// Precision: float32 products. Logits are float64, so that the backward finds the same bits: of rows whose largest
// logit is far above the others, lse is that logit, and its softmax is 1 however large it is. Exponentials of the
// differences from the running maximum are float32; their sums are float32 inside a block, float64 across blocks.
//
// Used by softmax_similarity.
#pragma once

#include "exponential_sums.h"
#include "wide.h"

namespace mmcore {
namespace {

struct RunningLogSumExp {
  double maximum = kMinusInfinity;
  double sum = 0;  // Σ exp(logit − maximum)

  // Adds `count` logits; behind them, up to a whole vector, is −∞.
  void add(const double* logits, Index count) {
    Wide peak = broadcast_wide(kMinusInfinity);
    for (Index j = 0; j < count; j += kLanes) peak = larger(load(logits + j), peak);
    const double block_maximum = largest(peak);
    if (block_maximum > maximum) {
      sum *= std::exp(maximum - block_maximum);
      maximum = block_maximum;
    }
    // If all logits so far are −∞, every term is 0, or NaN.
    const Wide shift = broadcast_wide(maximum == kMinusInfinity ? 0 : maximum);
    Vec total{};
    for (Index j = 0; j < count; j += kLanes) total += exponential(load(logits + j) - shift);
    sum += mmcore::sum(total);
  }

  double log() const { return (maximum == kMinusInfinity ? 0 : maximum) + std::log(sum); }
};

template <class A>
struct RunningCall {
  AnyMatrix x, y;
  double scale, bias;
  const double *own_bias, *other_bias;  // (N,) and (M,), or nullptr
  const PairMasks& masks;
  double* row_lse;    // (N,)
  LabelSums* labels;  // of logits without the row's own biases; nullptr: not wanted
  float* targets;     // (N,): the products that targets name; nullptr: not wanted

  // Row i of a block: logits, −∞ where an entry is not counted.
  void logits(const float* products, Index i, Range columns, const double* biases, double* out) const {
    const double own = own_bias == nullptr ? 0 : own_bias[i];
    Wide positive_sum = broadcast_wide(0);
    Index positive_count = 0;
    for (Index j = 0; j < columns.size(); j += kLanes) {
      const Masks mask = masks.at(i, columns.begin + j);
      const Wide logit = wide_logits(load(products + j), scale, bias, broadcast_wide(own), load(biases + j));
      store(out + j, select(mask.keep, logit, kMinusInfinity));
      if (labels == nullptr || !any(mask.positive)) continue;
      positive_sum = positive_sum + select(mask.positive, logit, 0);
      for (int lane = 0; lane < kLanes; ++lane) positive_count -= mask.positive[lane];
    }
    for (Index j = columns.size(); j < round_up(columns.size(), kLanes); ++j) out[j] = kMinusInfinity;
    if (targets != nullptr) {
      const Index lane = masks.target_lane(i, columns.begin);
      if (lane >= 0 && lane < columns.size()) targets[i] = products[lane];
    }
    if (positive_count == 0) return;
    if (std::isfinite(own + bias)) labels->total[i] += sum(positive_sum) - positive_count * (own + bias);
    labels->count[i] += positive_count;
  }

  void run(int threads) const {
    const Index depth = x.columns, chunk = minimum(kChunk, round_up(x.rows, kStripeRows));
    Scratch scratch(Lhs<A>::floats(chunk, depth) + Rhs<A>::floats(kBlock, depth) + kBlockFloats + 64, threads);
    for_each_stripe(threads, x.rows, kStripeRows, [&](Range stripe_rows, int thread) {
      const Multiplying<A> multiplying;
      Carver carver(scratch.of_thread(thread));
      float* packed_x = carver.take(Lhs<A>::floats(chunk, depth));
      float* packed_y = carver.take(Rhs<A>::floats(kBlock, depth));
      float* block = carver.take(kBlockFloats);
      double biases[kBlockStride] = {}, row_logits[kBlockStride];
      for (Index begin = stripe_rows.begin; begin < stripe_rows.end; begin += chunk) {
        const Index rows = minimum(chunk, stripe_rows.end - begin);
        RunningLogSumExp running[kChunk];
        Lhs<A>::pack_rows(x, begin, rows, packed_x);
        for (Index j = 0; j < y.rows; j += kBlock) {
          const Range columns{j, minimum(j + kBlock, y.rows)};
          Rhs<A>::pack_rows(y, j, columns.size(), packed_y);
          for (Index c = 0; other_bias != nullptr && c < columns.size(); ++c) biases[c] = other_bias[j + c];
          for (Index i = 0; i < rows; i += kBlock) {
            const Index block_rows = minimum(kBlock, rows - i);
            multiply_block<A>(Lhs<A>(packed_x, depth).from_lane(i), Rhs<A>(packed_y, depth), block_rows, columns.size(),
                              depth, block, [](Index, Index) {});
            for (Index r = 0; r < block_rows; ++r) {
              logits(block + r * kBlockStride, begin + i + r, columns, biases, row_logits);
              running[i + r].add(row_logits, columns.size());
            }
          }
        }
        for (Index r = 0; r < rows; ++r) row_lse[begin + r] = running[r].log();
      }
    });
  }
};

// The rows of `m` that are listed, dense.
struct GatheredRows {
  std::vector<char> bytes;
  AnyMatrix features;

  GatheredRows(const AnyMatrix& m, const std::vector<Index>& rows) : features(m) {
    const Index size = (m.dtype == Dtype::kFloat32 ? 4 : 2) * m.columns;
    const char* source = static_cast<const char*>(m.data);
    bytes.resize(rows.size() * size);
    for (std::size_t i = 0; i < rows.size(); ++i)
      std::memcpy(bytes.data() + i * size, source + rows[i] * m.row_stride * (size / m.columns), size);
    features.data = bytes.data();
    features.rows = static_cast<Index>(rows.size());
    features.row_stride = m.columns;
  }
};

}  // namespace
}  // namespace mmcore

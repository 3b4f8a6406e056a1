// Log-sum-exp of each row with a running maximum, for logits without a useful bound: features that are not normalised,
// or rows whose logits lie far below the others.
//
//   row_lse_i = log Σ_{j counted} exp(scale·⟨x_i, y_j⟩ + col_bias_j)
//
// Never stored: the N×M logits. One kBlock × kBlock block of products is in scratch memory.
// Loop order: each thread takes a stripe of rows, chunk by chunk. In a chunk: column blocks, and row blocks inside
// them, so that a block of y is packed once for all rows of the chunk.
// Precision: float32 products. Exponents are relative to the running maximum, which is rounded up to an integer so that
// rescaling a sum is exact. Sums are float32 inside a block, float64 across blocks.
// Used by softmax_similarity.
#pragma once

#include "exponential_sums.h"

namespace mmcore {
namespace {

struct RunningLogSumExp {
  double maximum = kMinusInfinity;  // an integer, at least the largest exponent so far
  double sum = 0;                   // Σ 2^(exponent − maximum)

  // Adds 2^(exponents[j] + rests[j]) for `count` columns.
  void add(const float* exponents, const float* rests, Index count) {
    Vec peak = broadcast(-kInfinity);
    for (Index j = 0; j < count; j += kLanes) {
      const Vec exponent = first_lanes(load(exponents + j), count - j, peak);
      peak = exponent > peak ? exponent : peak;
    }
    const double block_maximum = std::ceil(largest(peak));
    if (block_maximum > maximum) {
      sum *= std::exp2(maximum - block_maximum);
      maximum = block_maximum;
    }
    Vec total{};
    // If all exponents so far are −inf, every term is 0, or NaN.
    const float shift = maximum == kMinusInfinity ? 0.0f : static_cast<float>(maximum);
    for (Index j = 0; j < count; j += kLanes)
      total += first_lanes(exp2((load(exponents + j) - shift) + load(rests + j)), count - j, Vec{});
    sum += mmcore::sum(total);
  }

  double log() const { return (maximum == kMinusInfinity ? 0 : maximum) * kLn2 + std::log(sum); }
};

template <class A>
struct RunningCall {
  AnyMatrix x, y;
  double scale;
  const double* col_bias;  // (M,) or nullptr
  const PairMasks& masks;
  double* row_lse;    // (N,)
  LabelSums* labels;  // of logits; nullptr: not wanted

  // Row i of a block: exponents, −inf where an entry is not counted, and their rounding errors.
  void exponents(const float* products, Index i, Range columns, const float* bias, float* out, float* rests) const {
    const Split a(scale * kLog2E);
    Vec positive_sum{}, positive_count{};
    for (Index j = 0; j < columns.size(); j += kLanes) {
      const Vec product = load(products + j);
      const Masks mask = masks.at(i, columns.begin + j);
      // Exponents may be large, so their rounding errors change the exponentials by a factor. Both are kept.
      const Vec scaled = multiply_add(product, broadcast(a.high), Vec{}), exponent = scaled + load(bias + j);
      const Vec rest =
          multiply_add(product, broadcast(a.high), -scaled) + (load(bias + j) - (exponent - scaled)) + product * a.low;
      store(out + j, mask.keep ? exponent : broadcast(-kInfinity));
      // Beyond 2²⁹ the error is left out: it is no longer a few digits, but as large as differences between logits.
      const Vec size = exponent < 0.0f ? -exponent : exponent;
      store(rests + j, mask.keep & (size < 5.36870912e8f) ? rest : Vec{});
      if (labels == nullptr) continue;
      positive_sum += mask.positive ? exponent : Vec{};
      positive_count += mask.positive ? broadcast(1) : Vec{};
    }
    if (labels == nullptr) return;
    labels->total[i] += sum(positive_sum) * kLn2;
    labels->count[i] += sum(positive_count);
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
      float bias[kBlockStride] = {}, exponent[kBlockStride], rest[kBlockStride];
      for (Index begin = stripe_rows.begin; begin < stripe_rows.end; begin += chunk) {
        const Index rows = minimum(chunk, stripe_rows.end - begin);
        RunningLogSumExp running[kChunk];
        Lhs<A>::pack_rows(x, begin, rows, packed_x);
        for (Index j = 0; j < y.rows; j += kBlock) {
          const Range columns{j, minimum(j + kBlock, y.rows)};
          Rhs<A>::pack_rows(y, j, columns.size(), packed_y);
          for (Index c = 0; col_bias != nullptr && c < columns.size(); ++c)
            bias[c] = static_cast<float>(col_bias[j + c] * kLog2E);
          for (Index i = 0; i < rows; i += kBlock) {
            const Index block_rows = minimum(kBlock, rows - i);
            multiply_block<A>(Lhs<A>(packed_x, depth).from_lane(i), Rhs<A>(packed_y, depth), block_rows, columns.size(),
                              depth, block, [](Index, Index) {});
            for (Index r = 0; r < block_rows; ++r) {
              exponents(block + r * kBlockStride, begin + i + r, columns, bias, exponent, rest);
              running[i + r].add(exponent, rest, columns.size());
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

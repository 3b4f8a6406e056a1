// Row-wise log-sum-exp of the logits where no bound on them helps: unnormalised features, rows far below the others.
//
//   row_lse_i = log Σ_j exp(scale·⟨x_i, y_j⟩)
//
// Never stored: the N×M logits; one kBlock × kBlock block rests in scratch memory. Loop order: row blocks of one chunk
// inside column blocks, so that a packed block of y serves the whole chunk. Precision: float32 products, the exponent
// relative to the running maximum (an integer, so rescaling is exact), float64 across blocks.
#pragma once

#include <cmath>

#include "matmul.h"
#include "pack.h"

namespace mmcore {
namespace {

constexpr double kLog2E = 1.4426950408889634074;
constexpr double kLn2 = 0.69314718055994530942;

// Rows of x that are packed at a time. Packing y once per chunk then costs 1/kChunk of the multiply-adds.
constexpr Index kChunk = 8 * kBlock;

struct RunningLogSumExp {
  double maximum = -kInfinity;  // an integer, at least the largest exponent so far
  double sum = 0;               // Σ 2^(exponent − maximum)

  // Adds 2^(a·product) for `count` products, a = scale·log2(e).
  void add(const float* products, Index count, Split a) {
    Vec peak = broadcast(-kInfinity);
    for (Index j = 0; j < count; j += kLanes) {
      Vec exponent = first_lanes(load(products + j) * a.high, count - j, peak);
      peak = exponent > peak ? exponent : peak;
    }
    double block_maximum = std::ceil(largest(peak));
    if (block_maximum > maximum) {
      sum *= std::exp2(maximum - block_maximum);
      maximum = block_maximum;
    }
    Vec total{};
    float shift = static_cast<float>(maximum);
    for (Index j = 0; j < count; j += kLanes) {
      Vec product = load(products + j);
      Vec exponent = (product * a.high - shift) + product * a.low;
      total += first_lanes(exp2(exponent), count - j, Vec{});
    }
    sum += mmcore::sum(total);
  }

  double log() const { return maximum * kLn2 + std::log(sum); }
};

// Where target is given, positive_product[i] = ⟨x_i, y_target⟩ is set for the rows that have a positive.
void running_row_log_sum_exp(ConstMatrix x, ConstMatrix y, double scale, const Index* target, double* row_lse,
                             float* positive_product, int threads) {
  const Split a(scale * kLog2E);
  const Index depth = x.columns, chunk = minimum(kChunk, round_up(x.rows, kTileRows));
  Scratch scratch(
      packed_floats<kTileRows>(chunk, depth) + packed_floats<kTileColumns>(kBlock, depth) + kBlockFloats + 48, threads);
  for_each_stripe(threads, x.rows, kTileRows, [&](Range stripe_rows, int thread) {
    Carver carver(scratch.of_thread(thread));
    float* packed_x = carver.take(packed_floats<kTileRows>(chunk, depth));
    float* packed_y = carver.take(packed_floats<kTileColumns>(kBlock, depth));
    float* block = carver.take(kBlockFloats);
    for (Index begin = stripe_rows.begin; begin < stripe_rows.end; begin += chunk) {
      Index rows = minimum(chunk, stripe_rows.end - begin);
      RunningLogSumExp running[kChunk];
      pack_rows<kTileRows>(x.rows_from(begin, rows), packed_x);
      for (Index j = 0; j < y.rows; j += kBlock) {
        Index columns = minimum(kBlock, y.rows - j);
        pack_rows<kTileColumns>(y.rows_from(j, columns), packed_y);
        for (Index i = 0; i < rows; i += kBlock) {
          Index block_rows = minimum(kBlock, rows - i);
          multiply_block(PackedLhs{packed_x + i * depth, depth * kTileRows}, PackedRhs{packed_y, depth * kTileColumns},
                         block_rows, columns, depth, block, [](Index, Index) {});
          for (Index r = 0; r < block_rows; ++r) {
            const float* products = block + r * kBlockStride;
            running[i + r].add(products, columns, a);
            Index positive = target == nullptr ? -1 : target[begin + i + r] - j;
            if (positive >= 0 && positive < columns) positive_product[begin + i + r] = products[positive];
          }
        }
      }
      for (Index r = 0; r < rows; ++r) row_lse[begin + r] = running[r].log();
    }
  });
}

}  // namespace
}  // namespace mmcore

// Statistics of the similarity matrix, backward.
//
//   G_ij = a_i·exp(s_ij − row_lse_i) + b_j·exp(s_ij − col_lse_j) + [j = target(i)]·(c_i + d_j)
//   grad_x = scale·G·y     grad_y = scale·Gᵀ·x     grad_scale = Σ_i ⟨x_i, (G·y)_i⟩     grad_bias = Σ_ij G_ij
//
// with a, b, c, d the upstream gradients of row_lse, col_lse, row_pos, col_pos. Each softmax sums to 1, so grad_bias is
// Σ a + Σ b + Σ_i (c_i + d_target(i)), without G.
// Never stored: G or the logits; one kBlock × kBlock block of G rests in scratch memory and is multiplied twice, once
// as it stands into grad_x, once transposed into grad_y. Loop order: one Latin-square pair of stripes per thread and
// step, so that no two threads ever add to the same rows of grad_x or of grad_y; in it row chunks, column blocks, row
// blocks. Operands are packed per chunk and per block. Precision: as forward. Both exponents are at most 0, so nothing
// overflows however far a row lies below the others. A positive's entry is formed in float64: where training has
// converged it is the difference of equal numbers.
#pragma once

#include <vector>

#include "running_log_sum_exp.h"

namespace mmcore {
namespace {

// What G needs of one side of the matrix, per row or per column, padded to whole tiles.
struct SideTerms {
  std::vector<float> lse_high, lse_low, weight;  // log2(e)·(lse − bias) in two parts; the upstream gradient of lse

  SideTerms(const double* lse, double bias, const double* upstream, Index count)
      : lse_high(round_up(count, kBlock) + kBlock), lse_low(lse_high.size()), weight(lse_high.size()) {
    for (Index i = 0; i < count; ++i) {
      Split split((lse[i] - bias) * kLog2E);
      lse_high[i] = split.high;
      lse_low[i] = split.low;
      weight[i] = static_cast<float>(upstream[i]);
    }
  }
};

// Epilogue of one block: products in, G into scratch memory.
struct StoreGradient {
  const SimilarityInputs& inputs;
  const SoftmaxStatistics& statistics;
  const SoftmaxStatistics& upstream;
  const SideTerms& row_terms;
  const SideTerms& col_terms;
  Split a;
  float* block;
  Range rows;
  Index first_column;

  void operator()(Index row, Index column) const {
    const Index valid = minimum(kTileRows, rows.size() - row);
    float* tile = block + row * kBlockStride + column;
    for (Index r = 0; r < valid; ++r, tile += kBlockStride) {
      const Index i = rows.begin + row + r, lane = inputs.target[i] - first_column - column;
      const bool has_positive = lane >= 0 && lane < kTileColumns;
      const float at_positive = has_positive ? positive_gradient(i, tile[lane]) : 0.0f;
      for (int v = 0; v < kTileVectors; ++v) {
        float* p = tile + v * kLanes;
        store(p, gradient(load(p), i, first_column + column + v * kLanes));
      }
      if (has_positive) tile[lane] = at_positive;
    }
  }

 private:
  float positive_gradient(Index i, float product) const {
    const Index j = inputs.target[i];
    const double logit = inputs.scale * product + inputs.bias;
    return static_cast<float>(upstream.row_lse[i] * std::exp(logit - statistics.row_lse[i]) + upstream.row_pos[i] +
                              upstream.col_lse[j] * std::exp(logit - statistics.col_lse[j]) + upstream.col_pos[j]);
  }

  // a_i·exp(s_ij − row_lse_i) + b_j·exp(s_ij − col_lse_j) for kLanes columns from j.
  Vec gradient(Vec product, Index i, Index j) const {
    const Vec low = product * a.low;
    const Vec p = exp2((product * a.high - row_terms.lse_high[i]) + (low - row_terms.lse_low[i]));
    const Vec q =
        exp2((product * a.high - load(col_terms.lse_high.data() + j)) + (low - load(col_terms.lse_low.data() + j)));
    return p * row_terms.weight[i] + q * load(col_terms.weight.data() + j);
  }
};

// Where one thread keeps its packed operands.
struct GradientScratch {
  float *rows_of_x, *columns_of_x, *rows_of_y, *columns_of_y, *block, *rows_of_block, *columns_of_block;

  static Index chunk(Index rows) { return minimum(kChunk, round_up(rows, kTileRows)); }
  static Index floats(Index rows, Index depth) {
    return packed_floats<kTileRows>(chunk(rows), depth) + packed_floats<kTileColumns>(depth, chunk(rows)) +
           packed_floats<kTileColumns>(kBlock, depth) + packed_floats<kTileColumns>(depth, kBlock) + kBlockFloats +
           2 * packed_floats<kTileRows>(kBlock, kBlock) + 112;
  }
  GradientScratch(float* data, Index rows, Index depth) {
    Carver carver(data);
    rows_of_x = carver.take(packed_floats<kTileRows>(chunk(rows), depth));
    columns_of_x = carver.take(packed_floats<kTileColumns>(depth, chunk(rows)));
    rows_of_y = carver.take(packed_floats<kTileColumns>(kBlock, depth));
    columns_of_y = carver.take(packed_floats<kTileColumns>(depth, kBlock));
    block = carver.take(kBlockFloats);
    rows_of_block = carver.take(packed_floats<kTileRows>(kBlock, kBlock));
    columns_of_block = carver.take(packed_floats<kTileRows>(kBlock, kBlock));
  }
};

// Adds G·y to grad_x and Gᵀ·x to grad_y over one pair of stripes.
void add_gradients(StoreGradient epilogue, Range rows, Range columns, const GradientScratch& scratch,
                   MutableMatrix grad_x, MutableMatrix grad_y) {
  const ConstMatrix x = epilogue.inputs.x, y = epilogue.inputs.y;
  const Index depth = x.columns, chunk = GradientScratch::chunk(rows.size());
  epilogue.block = scratch.block;
  for (Index begin = rows.begin; begin < rows.end; begin += chunk) {
    const Index chunk_rows = minimum(chunk, rows.end - begin);
    pack_rows<kTileRows>(x.rows_from(begin, chunk_rows), scratch.rows_of_x);
    pack_columns<kTileColumns>(x.rows_from(begin, chunk_rows), scratch.columns_of_x);
    for (Index j = columns.begin; j < columns.end; j += kBlock) {
      const Index block_columns = minimum(kBlock, columns.end - j);
      pack_rows<kTileColumns>(y.rows_from(j, block_columns), scratch.rows_of_y);
      pack_columns<kTileColumns>(y.rows_from(j, block_columns), scratch.columns_of_y);
      epilogue.first_column = j;
      for (Index i = 0; i < chunk_rows; i += kBlock) {
        const Index block_rows = minimum(kBlock, chunk_rows - i);
        epilogue.rows = {begin + i, begin + i + block_rows};
        multiply_block(PackedLhs{scratch.rows_of_x + i * depth, depth * kTileRows},
                       PackedRhs{scratch.rows_of_y, depth * kTileColumns}, block_rows, block_columns, depth,
                       scratch.block, epilogue);
        const ConstMatrix g{scratch.block, block_rows, block_columns, kBlockStride};
        pack_rows<kTileRows>(g, scratch.rows_of_block);
        pack_columns<kTileRows>(g, scratch.columns_of_block);
        multiply_into(PackedLhs{scratch.rows_of_block, block_columns * kTileRows},
                      PackedRhs{scratch.columns_of_y, block_columns * kTileColumns}, block_columns,
                      grad_x.rows_from(begin + i, block_rows));
        multiply_into(PackedLhs{scratch.columns_of_block, block_rows * kTileRows},
                      PackedRhs{scratch.columns_of_x + i * kTileColumns, chunk_rows * kTileColumns}, block_rows,
                      grad_y.rows_from(j, block_columns));
      }
    }
  }
}

// gradient *= scale; returns Σ_i ⟨m_i, gradient_i⟩ as it was before.
double scale_gradient(MutableMatrix gradient, ConstMatrix m, double scale, int threads) {
  std::vector<double> total_of_thread(threads, 0.0);
  for_each_stripe(threads, gradient.rows, 1, [&](Range rows, int thread) {
    for (Index i = rows.begin; i < rows.end; ++i) {
      total_of_thread[thread] += dot(m.row(i), gradient.row(i), m.columns);
      scale_row(gradient.row(i), gradient.columns, static_cast<float>(scale));
    }
  });
  double total = 0;
  for (double of_thread : total_of_thread) total += of_thread;
  return total;
}

double sum_of_gradients(const SimilarityInputs& inputs, const SoftmaxStatistics& upstream) {
  double total = 0;
  for (Index i = 0; i < inputs.x.rows; ++i) {
    total += upstream.row_lse[i];
    if (inputs.target[i] >= 0) total += upstream.row_pos[i] + upstream.col_pos[inputs.target[i]];
  }
  for (Index j = 0; j < inputs.y.rows; ++j) total += upstream.col_lse[j];
  return total;
}

ScalarGradients softmax_similarity_backward(SimilarityInputs inputs, SoftmaxStatistics statistics,
                                            SoftmaxStatistics upstream, MutableMatrix grad_x, MutableMatrix grad_y,
                                            int threads) {
  const Index rows = inputs.x.rows, columns = inputs.y.rows, depth = inputs.x.columns;
  const SideTerms row_terms(statistics.row_lse, inputs.bias, upstream.row_lse, rows),
      col_terms(statistics.col_lse, inputs.bias, upstream.col_lse, columns);
  const StoreGradient epilogue{inputs,  statistics, upstream, row_terms, col_terms, Split(inputs.scale * kLog2E),
                               nullptr, {},         0};
  Scratch scratch(GradientScratch::floats(rows, depth), threads);
  for_each_latin_square_pair(threads, rows, kTileRows, columns, kTileColumns, [&](Range r, Range c, int thread) {
    add_gradients(epilogue, r, c, GradientScratch(scratch.of_thread(thread), rows, depth), grad_x, grad_y);
  });
  scale_gradient(grad_y, inputs.y, inputs.scale, threads);
  return {scale_gradient(grad_x, inputs.x, inputs.scale, threads), sum_of_gradients(inputs, upstream)};
}

}  // namespace
}  // namespace mmcore

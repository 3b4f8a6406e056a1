// Projection head: optional input norm, linear map, optional L2 normalisation of the output.
//
//   x̂ = norm(x)      z = x̂·weightᵀ + bias      output = z / max(‖z‖, eps)
//   grad_z = l2_normalize backward (or grad_output)   grad_x = norm backward of grad_z·weight   grad_weight = grad_zᵀ·x̂
//
// Never stored: x̂; rows are normalised while they are packed. Loop order: row blocks, each kept in L2 from the first
// multiply-add to the last pass over its outputs; for grad_weight, every thread owns columns of it and sees all rows.
// Precision: float32 products and sums; sums over rows that are not products (biases, norm weights) in float64.
#pragma once

#include <vector>

#include "input_norm.h"
#include "matmul.h"
#include "pack.h"

namespace mmcore {
namespace {

// A matrix packed once, by all threads, for all threads.
template <class PackPart>
void pack_shared(int threads, Index lanes, PackPart pack_part) {
  for_each_stripe(threads, lanes, kTileColumns, [&](Range part, int) {
    if (part.size() > 0) pack_part(part);
  });
}

inline void fill_row(float* row, const float* source, Index columns) {
  if (source == nullptr) {
    std::memset(row, 0, columns * sizeof(float));
  } else {
    std::memcpy(row, source, columns * sizeof(float));
  }
}

// Statistics and packed x̂ of one block of rows; `rows_of_tile` holds kTileRows × K.
void pack_normalized_rows(ConstMatrix x, const InputNorm& norm, Range rows, ProjectionStatistics statistics,
                          float* rows_of_tile, float* packed) {
  const Index depth = x.columns;
  for (Index i = rows.begin; i < rows.end; i += kTileRows) {
    const Index count = minimum(kTileRows, rows.end - i);
    for (Index r = 0; r < count; ++r) {
      RowStatistics row = row_statistics(x.row(i + r), depth, norm);
      if (statistics.mean != nullptr) statistics.mean[i + r] = row.mean;
      if (statistics.inverse_std != nullptr) statistics.inverse_std[i + r] = row.inverse_std;
      apply_norm(x.row(i + r), norm, row, 0, depth, rows_of_tile + r * depth);
    }
    pack_rows<Float32, kTileRows>(ConstMatrix{rows_of_tile, count, depth, depth}, packed + (i - rows.begin) * depth);
  }
}

void project_forward(ConstMatrix x, InputNorm norm, ConstMatrix weight, const float* bias, float output_eps,
                     MutableMatrix output, ProjectionStatistics statistics, int threads) {
  const Index depth = x.columns, width = weight.rows;
  Scratch packed_weight(packed_units<Float32, kTileColumns>(width, depth), 1);
  pack_shared(threads, width, [&](Range part) {
    pack_rows<Float32, kTileColumns>(weight.rows_from(part.begin, part.size()),
                                     packed_weight.of_thread(0) + part.begin * depth);
  });
  Scratch scratch(packed_units<Float32, kTileRows>(kBlock, depth) + kTileRows * depth + 32, threads);
  for_each_stripe(threads, x.rows, kTileRows, [&](Range rows, int thread) {
    Carver carver(scratch.of_thread(thread));
    float* packed_x = carver.take(packed_units<Float32, kTileRows>(kBlock, depth));
    float* rows_of_tile = carver.take(kTileRows * depth);
    for (Index begin = rows.begin; begin < rows.end; begin += kBlock) {
      Range block{begin, minimum(begin + kBlock, rows.end)};
      pack_normalized_rows(x, norm, block, statistics, rows_of_tile, packed_x);
      for (Index i = block.begin; i < block.end; ++i) fill_row(output.row(i), bias, width);
      multiply_into<Float32>(PackedLhs{packed_x, depth * kTileRows},
                             PackedRhs{packed_weight.of_thread(0), depth * kTileColumns}, depth,
                             output.rows_from(block.begin, block.size()));
      if (statistics.inverse_norm == nullptr) continue;
      for (Index i = block.begin; i < block.end; ++i) {
        float norm = l2_norm(output.row(i), width, output_eps);
        statistics.inverse_norm[i] = 1.0f / norm;
        divide_row(output.row(i), width, norm, output.row(i));
      }
    }
  });
}

// Everything the phases of the backward share.
struct ProjectionBackward {
  ConstMatrix x;
  InputNorm norm;
  ConstMatrix weight;
  float output_eps;
  ConstMatrix output;
  ProjectionStatistics statistics;
  ConstMatrix grad_output;
  ProjectionGradients gradients;
  MutableMatrix grad_z;  // (N, D), scratch

  RowStatistics row(Index i) const {
    RowStatistics result;
    if (statistics.mean != nullptr) result.mean = statistics.mean[i];
    if (statistics.inverse_std != nullptr) result.inverse_std = statistics.inverse_std[i];
    return result;
  }

  void fill_grad_z(Index i, double* grad_bias) const {
    float* z = grad_z.row(i);
    if (statistics.inverse_norm == nullptr) {
      fill_row(z, grad_output.row(i), grad_z.columns);
    } else {
      l2_normalize_row_backward(output.row(i), grad_output.row(i), grad_z.columns, statistics.inverse_norm[i],
                                output_eps, z);
    }
    if (grad_bias == nullptr) return;
    for (Index d = 0; d < grad_z.columns; ++d) grad_bias[d] += z[d];
  }
};

// Per-thread float64 totals of a vector of gradients, added up in thread order.
class VectorTotals {
 public:
  VectorTotals(float* target, Index size, int threads) : target_(target), size_(size) {
    if (target != nullptr) totals_.resize(size * threads);
  }
  double* of_thread(int thread) { return target_ == nullptr ? nullptr : totals_.data() + thread * size_; }
  void finish() {
    if (target_ == nullptr) return;
    for (Index k = 0; k < size_; ++k) {
      double total = 0;
      for (std::size_t i = k; i < totals_.size(); i += size_) total += totals_[i];
      target_[k] = static_cast<float>(total);
    }
  }

 private:
  float* target_;
  Index size_;
  std::vector<double> totals_;
};

// grad_z, grad_x and the gradients of the vectors, by row blocks.
void project_backward_rows(const ProjectionBackward& call, int threads) {
  const Index depth = call.weight.rows, inputs = call.x.columns;
  Scratch packed_weight(packed_units<Float32, kTileColumns>(inputs, depth), 1);
  pack_shared(threads, inputs, [&](Range part) {
    pack_columns<Float32, kTileColumns>(
        ConstMatrix{call.weight.data + part.begin, depth, part.size(), call.weight.row_stride},
        packed_weight.of_thread(0) + part.begin * depth);
  });
  VectorTotals bias(call.gradients.bias, depth, threads), norm_weight(call.gradients.norm_weight, inputs, threads),
      norm_bias(call.gradients.norm_bias, inputs, threads);
  Scratch scratch(packed_units<Float32, kTileRows>(kBlock, depth), threads);
  for_each_stripe(threads, call.x.rows, kTileRows, [&](Range rows, int thread) {
    float* packed = scratch.of_thread(thread);
    for (Index begin = rows.begin; begin < rows.end; begin += kBlock) {
      const Index count = minimum(kBlock, rows.end - begin);
      for (Index i = begin; i < begin + count; ++i) {
        call.fill_grad_z(i, bias.of_thread(thread));
        fill_row(call.gradients.x.row(i), nullptr, inputs);
      }
      pack_rows<Float32, kTileRows>(ConstMatrix(call.grad_z.rows_from(begin, count)), packed);
      multiply_into<Float32>(PackedLhs{packed, depth * kTileRows},
                             PackedRhs{packed_weight.of_thread(0), depth * kTileColumns}, depth,
                             call.gradients.x.rows_from(begin, count));
      for (Index i = begin; i < begin + count; ++i)
        norm_row_backward(call.x.row(i), call.norm, call.row(i), inputs, call.gradients.x.row(i),
                          norm_weight.of_thread(thread), norm_bias.of_thread(thread));
    }
  });
  bias.finish();
  norm_weight.finish();
  norm_bias.finish();
}

// grad_weight by stripes of its columns, which no two threads share.
void project_backward_weight(const ProjectionBackward& call, int threads) {
  const Index width = call.weight.rows, inputs = call.x.columns;
  Scratch scratch(kDepth * round_up(width, kTileRows) + 2 * kDepth * round_up(inputs, kTileColumns) + 48, threads);
  for_each_stripe(threads, inputs, kTileColumns, [&](Range columns, int thread) {
    Carver carver(scratch.of_thread(thread));
    float* packed_grad_z = carver.take(kDepth * round_up(width, kTileRows));
    float* normalized = carver.take(kDepth * columns.size());
    float* packed_x = carver.take(packed_units<Float32, kTileColumns>(columns.size(), kDepth));
    const MutableMatrix target{call.gradients.weight.data + columns.begin, width, columns.size(),
                               call.gradients.weight.row_stride};
    for (Index d = 0; d < width; ++d) fill_row(target.row(d), nullptr, columns.size());
    for (Index begin = 0; begin < call.x.rows; begin += kDepth) {
      const Index count = minimum(kDepth, call.x.rows - begin);
      pack_columns<Float32, kTileRows>(ConstMatrix(call.grad_z.rows_from(begin, count)), packed_grad_z);
      for (Index i = 0; i < count; ++i)
        apply_norm(call.x.row(begin + i), call.norm, call.row(begin + i), columns.begin, columns.size(),
                   normalized + i * columns.size());
      pack_columns<Float32, kTileColumns>(ConstMatrix{normalized, count, columns.size(), columns.size()}, packed_x);
      multiply_into<Float32>(PackedLhs{packed_grad_z, count * kTileRows}, PackedRhs{packed_x, count * kTileColumns},
                             count, target);
    }
  });
}

void project_backward(ConstMatrix x, InputNorm norm, ConstMatrix weight, float output_eps, ConstMatrix output,
                      ProjectionStatistics statistics, ConstMatrix grad_output, ProjectionGradients gradients,
                      int threads) {
  Scratch grad_z(x.rows * weight.rows, 1);
  const ProjectionBackward call{x,           norm,      weight,
                                output_eps,  output,    statistics,
                                grad_output, gradients, {grad_z.of_thread(0), x.rows, weight.rows, weight.rows}};
  project_backward_rows(call, threads);
  project_backward_weight(call, threads);
}

}  // namespace
}  // namespace mmcore

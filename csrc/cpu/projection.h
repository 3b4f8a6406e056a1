// Projection head, forward: optional input norm, linear map, optional L2 normalisation of the output.
//
//   x̂ = norm(x)      z = x̂·weightᵀ + bias      output = z / max(‖z‖, eps)
//
// Never stored: x̂ and z. A few rows of x̂ exist while they are packed. One block of rows of z exists per thread, in
// the output itself if that is float32, otherwise in scratch memory.
// Loop order: the weight is packed once for all threads. Each thread takes a stripe of rows, block by block, and a
// block stays in L2 from the first multiply-add to the last pass over its outputs.
// Precision: any dtype in and out. Norms and sums are float32. Operands of the product are float32, or rounded to
// bfloat16. Each output is rounded once.
#pragma once

#include <vector>

#include "choose_arithmetic.h"
#include "input_norm.h"
#include "matmul.h"
#include "scratch.h"

namespace mmcore {
namespace {

// Packs a matrix once for all threads; each packs a part.
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

// Where a block of `rows` is computed in float32: in place, or in scratch memory.
template <class T>
inline MutableMatrix float32_block(Matrix<T> rows, Range block, float* scratch) {
  if constexpr (std::is_same_v<T, float>)
    if (rows.data != nullptr) return rows.rows_from(block.begin, block.size());
  return {scratch, block.size(), rows.columns, rows.columns};
}

template <class T>
inline void round_row(const float* source, Index columns, T* target) {
  if (static_cast<const void*>(source) == target) return;
  for_each_vector(columns,
                  [&](Index k, Index count) { store_first(target + k, load_first(source + k, count), count); });
}

// Statistics and packed x̂ of one block of rows; `rows_of_tile` holds A::kLhsLanes × K.
template <class A, class T>
void pack_normalized_rows(Matrix<const T> x, const InputNorm& norm, Range rows, const ProjectionStatistics& statistics,
                          float* rows_of_tile, float* packed) {
  if (norm.kind == Norm::kNone) return Lhs<A>::pack_rows(x.rows_from(rows.begin, rows.size()), packed);
  const Index depth = x.columns;
  for (Index i = rows.begin; i < rows.end; i += A::kLhsLanes) {
    const Index count = minimum(A::kLhsLanes, rows.end - i);
    for (Index r = 0; r < count; ++r) {
      RowStatistics row = row_statistics(x.row(i + r), depth, norm);
      if (statistics.mean != nullptr) statistics.mean[i + r] = row.mean;
      statistics.inverse_std[i + r] = row.inverse_std;
      apply_norm(x.row(i + r), norm, row, 0, depth, rows_of_tile + r * depth);
    }
    Lhs<A>::pack_rows(ConstMatrix{rows_of_tile, count, depth, depth}, packed + Lhs<A>::floats(i - rows.begin, depth));
  }
}

template <class A, class T>
void project_rows(const ProjectionInputs& inputs, Matrix<const T> x, Matrix<T> output,
                  const ProjectionStatistics& statistics, int threads) {
  const Index depth = x.columns, width = output.columns;
  Scratch packed_weight(Rhs<A>::floats(width, depth), 1);
  pack_shared(threads, width, [&](Range part) {
    Rhs<A>::pack_rows(inputs.weight, part.begin, part.size(),
                      packed_weight.of_thread(0) + Rhs<A>::floats(part.begin, depth));
  });
  const Rhs<A> weight(packed_weight.of_thread(0), depth);
  Scratch scratch(Lhs<A>::floats(kBlock, depth) + A::kLhsLanes * depth + kBlock * width + 48, threads);
  for_each_stripe(threads, x.rows, kStripeRows, [&](Range rows, int thread) {
    const Multiplying<A> multiplying;
    Carver carver(scratch.of_thread(thread));
    float* packed_x = carver.take(Lhs<A>::floats(kBlock, depth));
    float* rows_of_tile = carver.take(A::kLhsLanes * depth);
    float* rows_of_z = carver.take(kBlock * width);
    for (Index begin = rows.begin; begin < rows.end; begin += kBlock) {
      const Range block{begin, minimum(begin + kBlock, rows.end)};
      const MutableMatrix z = float32_block(output, block, rows_of_z);
      pack_normalized_rows<A>(x, inputs.norm, block, statistics, rows_of_tile, packed_x);
      for (Index r = 0; r < z.rows; ++r) fill_row(z.row(r), inputs.bias, width);
      multiply_into<A>(Lhs<A>(packed_x, depth), weight, depth, z);
      for (Index r = 0; r < z.rows; ++r) {
        if (statistics.inverse_norm == nullptr) {
          round_row(z.row(r), width, output.row(begin + r));
          continue;
        }
        const float norm = l2_norm(z.row(r), width, inputs.eps);
        statistics.inverse_norm[begin + r] = 1.0f / norm;
        divide_row(z.row(r), width, norm, output.row(begin + r));
      }
    }
  });
}

void project_forward(const ProjectionInputs& inputs, const MutableAnyMatrix& output,
                     const ProjectionStatistics& statistics, int threads) {
  visit_dtype(output, [&](auto rows) {
    const auto x = inputs.x.as<NumberOf<decltype(rows)>>();
    with_arithmetic(inputs, nullptr, threads,
                    [&](auto arithmetic) { project_rows<decltype(arithmetic)>(inputs, x, rows, statistics, threads); });
  });
}

}  // namespace
}  // namespace mmcore

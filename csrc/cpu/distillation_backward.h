// Statistics of a student's similarity matrix under the softmaxes of a teacher's matrix, backward.
//
//   G_ij = a_i·exp(s_ij − row_lse_i) + b_j·exp(s_ij − col_lse_j) + [i = j]·c_i
//        + e_i·exp(t_ij − teacher_row_lse_i) + f_j·exp(t_ij − teacher_col_lse_j)
//   grad_x = scale·G·y     grad_y = scale·Gᵀ·x     grad_scale = Σ_i ⟨x_i, (G·y)_i⟩
//
// a, b, c, e, f are the upstream gradients of row_lse, col_lse, positive, row_cross, col_cross. The teacher has none.
//
// Never stored: G or either matrix. One block of the teacher's products is in scratch memory, and one of the student's,
// which G overwrites.
// Loop order: as in distillation.h; then the block of G is multiplied into both gradients.
// Precision: each entry is the sum of four float32 exponentials whose exponents are at most 0. It is rounded to the
// dtype of the product only after the sum, because student and teacher cancel once the student has learned. Entries of
// the diagonal are computed in float64.
#pragma once

#include "distillation.h"
#include "gradient_sums.h"
#include "softmax_terms.h"

namespace mmcore {
namespace {

struct StoreDistillationGradient {
  const DistillationStatistics &statistics, &upstream;
  double teacher_scale;
  const SoftmaxTerms &student_rows, &student_columns, &teacher_rows, &teacher_columns;
  Split student, teacher;  // log2(e)·scale
  Block block{};
  const float* teacher_products = nullptr;
  float* out = nullptr;  // the student's products in, G out

  void operator()(Index row, Index column) const {
    const Index valid = minimum(kTileRows, block.rows.size() - row), first = block.columns.begin + column;
    for (Index r = 0; r < valid; ++r) {
      const Index i = block.rows.begin + row + r, at = (row + r) * kBlockStride + column;
      for (int v = 0; v < kTileVectors; ++v) {
        const Index j = first + v * kLanes, place = at + v * kLanes;
        store(out + place, softmaxes(load(out + place), student, student_rows, student_columns, i, j) +
                               softmaxes(load(teacher_products + place), teacher, teacher_rows, teacher_columns, i, j));
      }
      const Index lane = i - first;
      if (lane >= 0 && lane < kTileColumns)
        out[at + lane] = diagonal_gradient(i, teacher_scale * teacher_products[at + lane]);
    }
  }

 private:
  static Vec softmaxes(Vec product, const Split& a, const SoftmaxTerms& rows, const SoftmaxTerms& columns, Index i,
                       Index j) {
    const Vec row = softmax(product, a, broadcast(rows.lse_high[i]), broadcast(rows.lse_low[i]));
    const Vec column = softmax(product, a, load(columns.lse_high.data() + j), load(columns.lse_low.data() + j));
    return row * rows.weight[i] + column * load(columns.weight.data() + j);
  }

  // t is the teacher's logit.
  float diagonal_gradient(Index i, double t) const {
    const double s = statistics.positive[i];
    return static_cast<float>(upstream.row_lse[i] * std::exp(s - statistics.row_lse[i]) +
                              upstream.col_lse[i] * std::exp(s - statistics.col_lse[i]) + upstream.positive[i] +
                              upstream.row_cross[i] * std::exp(t - statistics.teacher_row_lse[i]) +
                              upstream.col_cross[i] * std::exp(t - statistics.teacher_col_lse[i]));
  }
};

template <class A>
void distillation_gradients(const DistillationInputs& inputs, const DistillationStatistics& statistics,
                            const DistillationStatistics& upstream, SimilarityGradients& gradients, int threads) {
  const SimilarityInputs &student = inputs.student, &teacher = inputs.teacher;
  const Index count = student.x.rows;
  const SoftmaxTerms student_rows(statistics.row_lse, upstream.row_lse, count),
      student_columns(statistics.col_lse, upstream.col_lse, count),
      teacher_rows(statistics.teacher_row_lse, upstream.row_cross, count),
      teacher_columns(statistics.teacher_col_lse, upstream.col_cross, count);
  const BlockGrid grid(student, threads);
  const Index student_floats = round_up(BlockScratch<A>::floats(grid, student.x.columns, true), 16);
  Scratch scratch(student_floats + BlockScratch<A>::floats(grid, teacher.x.columns, false), threads);
  grid.for_each_pair([&](int row_stripe, int column_stripe, int thread) {
    const Multiplying<A> multiplying;
    BlockScratch<A> students(scratch.of_thread(thread), student, grid, true);
    BlockScratch<A> teachers(scratch.of_thread(thread) + student_floats, teacher, grid, false);
    StoreDistillationGradient epilogue{statistics,
                                       upstream,
                                       teacher.scale,
                                       student_rows,
                                       student_columns,
                                       teacher_rows,
                                       teacher_columns,
                                       Split(student.scale * kLog2E),
                                       Split(teacher.scale * kLog2E)};
    epilogue.teacher_products = teachers.numbers;
    epilogue.out = students.numbers;
    walk_blocks(
        grid, row_stripe, column_stripe, [&](Range rows) { students.take_chunk(rows), teachers.take_chunk(rows); },
        [&](Range columns) { students.take_columns(columns), teachers.take_columns(columns); },
        [&](const Block& block) {
          epilogue.block = block;
          students.multiply(block, students.numbers, [](Index, Index) {});
          teachers.multiply(block, teachers.numbers, epilogue);
          students.add_gradients(block, students.numbers, gradients);
        });
  });
  finish_gradients(student, gradients, threads);
}

void distillation_backward(const DistillationInputs& inputs, const DistillationStatistics& statistics,
                           const DistillationStatistics& upstream, SimilarityGradients& gradients, int threads) {
  const Index count = inputs.student.x.rows;
  with_arithmetic(inputs,
                  {{upstream.row_lse, count},
                   {upstream.col_lse, count},
                   {upstream.positive, count},
                   {upstream.row_cross, count},
                   {upstream.col_cross, count}},
                  threads, [&](auto arithmetic) {
                    distillation_gradients<decltype(arithmetic)>(inputs, statistics, upstream, gradients, threads);
                  });
}

}  // namespace
}  // namespace mmcore

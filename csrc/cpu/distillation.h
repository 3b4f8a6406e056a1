// Statistics of a student's similarity matrix under the softmaxes of a teacher's matrix, forward.
//
//   s_ij = scale·⟨x_i, y_j⟩      t_ij = the same of the teacher      row i of x belongs to row i of y
//   row_lse_i = log Σ_j exp s_ij      row_cross_i = Σ_j s_ij·exp(t_ij − teacher_row_lse_i)      and likewise by columns
//
// Each matrix has one shift for all of its exponentials (shared_shift.h). So Σ E_t·s can be summed before the teacher's
// log-sum-exps are known, and one pass computes everything. If the bound of a matrix is too large for a shift, or a row
// or column lies too far below the bound, the kernel returns false, and the caller computes all statistics by another
// method.
//
// Never stored: either matrix. One block of each is in scratch memory.
// Loop order: similarity_blocks.h. In a block: the student's products, then the teacher's, whose epilogue sums both.
// Precision: as in softmax_similarity.h. Entries of the diagonal enter in float64, because near convergence they are
// nearly all of every sum.
#pragma once

#include "exponential_sums.h"

namespace mmcore {
namespace {

// The exponentials of both matrices and the student's logits under the teacher's, as they are summed.
struct DistillationSums {
  // cross: Σ E_t·(a·⟨x_i, y_j⟩ − offset), a = log2(e)·scale rounded to float32
  std::vector<double> student, teacher, cross;
  explicit DistillationSums(Index size) : student(size), teacher(size), cross(size) {}
};

struct SumDistillation {
  const SharedShift &student, &teacher;
  float *student_diagonal, *teacher_diagonal;  // (N,): the products of each row with its own column
  float offset;  // about the largest a·⟨x, y⟩: large logits round less as differences from it
  Block block{};
  const float *student_products = nullptr, *teacher_products = nullptr;
  BlockSums student_sums{}, teacher_sums{}, cross_sums{};

  void enter(const Block& next) {
    block = next;
    for (BlockSums* sums : {&student_sums, &teacher_sums, &cross_sums}) sums->clear();
  }
  void leave(DistillationSums& rows, DistillationSums& columns) const {
    student_sums.flush(block, rows.student, &columns.student);
    teacher_sums.flush(block, rows.teacher, &columns.teacher);
    cross_sums.flush(block, rows.cross, &columns.cross);
  }

  void operator()(Index row, Index column) {
    const Index valid = minimum(kTileRows, block.rows.size() - row);
    Vec col_student[kTileVectors] = {}, col_teacher[kTileVectors] = {}, col_cross[kTileVectors] = {};
    for (Index r = 0; r < valid; ++r) {
      Vec row_student{}, row_teacher{}, row_cross{};
      const Index i = block.rows.begin + row + r, diagonal = i - block.columns.begin - column;
      if (diagonal >= 0 && diagonal < minimum(kTileColumns, block.columns.size() - column)) {
        const Index at = (row + r) * kBlockStride + column + diagonal;
        student_diagonal[i] = student_products[at];
        teacher_diagonal[i] = teacher_products[at];
      }
      for (int v = 0; v < kTileVectors; ++v) {
        const Index at = (row + r) * kBlockStride + column + v * kLanes;
        const Vec product = load(student_products + at);
        const Index count = block.columns.size() - column - v * kLanes, lane = diagonal - v * kLanes;
        const Vec s = off_diagonal(student.exponential(product, broadcast(student.shifted_rounder())), count, lane);
        const Vec t = off_diagonal(
            teacher.exponential(load(teacher_products + at), broadcast(teacher.shifted_rounder())), count, lane);
        row_student += s, col_student[v] += s;
        row_teacher += t, col_teacher[v] += t;
        // a·product has a bound; E_t·product may overflow.
        const Vec weighted = t * multiply_add(product, broadcast(student.a.high), broadcast(-offset));
        row_cross += weighted, col_cross[v] += weighted;
      }
      BlockSums::add(student_sums.row + (row + r) * kLanes, row_student);
      BlockSums::add(teacher_sums.row + (row + r) * kLanes, row_teacher);
      BlockSums::add(cross_sums.row + (row + r) * kLanes, row_cross);
    }
    for (int v = 0; v < kTileVectors; ++v) {
      BlockSums::add(student_sums.col + column + v * kLanes, col_student[v]);
      BlockSums::add(teacher_sums.col + column + v * kLanes, col_teacher[v]);
      BlockSums::add(cross_sums.col + column + v * kLanes, col_cross[v]);
    }
  }

 private:
  static Vec off_diagonal(Vec e, Index count, Index lane) {
    if (lane >= 0 && lane < kLanes) e[lane] = 0;
    return count < kLanes ? first_lanes(e, maximum(0, count), Vec{}) : e;
  }
};

template <class A>
class DistillationForward {
 public:
  DistillationForward(const DistillationInputs& inputs, const DistillationStatistics& statistics, int threads)
      : inputs_(inputs),
        statistics_(statistics),
        threads_(threads),
        student_(inputs.student, threads),
        teacher_(inputs.teacher, threads),
        student_diagonal_(inputs.student.x.rows),
        teacher_diagonal_(inputs.student.x.rows),
        rows_(inputs.student.x.rows),
        columns_(inputs.student.x.rows) {}

  // False where a shift is not exact enough.
  bool run() {
    if (!student_.is_usable() || !teacher_.is_usable()) return false;
    sum_blocks();
    const bool rows_are_trusted =
        finish(rows_, statistics_.row_lse, statistics_.row_cross, statistics_.teacher_row_lse);
    for (Index i = 0; i < inputs_.student.x.rows; ++i) statistics_.positive[i] = student_logit(i);
    return finish(columns_, statistics_.col_lse, statistics_.col_cross, statistics_.teacher_col_lse) &&
           rows_are_trusted;
  }

 private:
  void sum_blocks() {
    const SimilarityInputs &student = inputs_.student, &teacher = inputs_.teacher;
    const BlockGrid grid(student, threads_);
    const Index student_floats = round_up(BlockScratch<A>::floats(grid, student.x.columns, false), 16);
    Scratch scratch(student_floats + BlockScratch<A>::floats(grid, teacher.x.columns, false), threads_);
    grid.for_each_pair([&](int row_stripe, int column_stripe, int thread) {
      const Multiplying<A> multiplying;
      BlockScratch<A> students(scratch.of_thread(thread), student, grid, false);
      BlockScratch<A> teachers(scratch.of_thread(thread) + student_floats, teacher, grid, false);
      SumDistillation epilogue{student_, teacher_, student_diagonal_.data(), teacher_diagonal_.data(), offset()};
      epilogue.student_products = students.numbers;
      epilogue.teacher_products = teachers.numbers;
      walk_blocks(
          grid, row_stripe, column_stripe, [&](Range rows) { students.take_chunk(rows), teachers.take_chunk(rows); },
          [&](Range columns) { students.take_columns(columns), teachers.take_columns(columns); },
          [&](const Block& block) {
            epilogue.enter(block);
            students.multiply(block, students.numbers, [](Index, Index) {});
            teachers.multiply(block, teachers.numbers, epilogue);
            epilogue.leave(rows_, columns_);
          });
    });
  }

  float offset() const { return static_cast<float>(student_.bound); }
  double student_logit(Index i) const { return inputs_.student.scale * student_diagonal_[i]; }

  // Sets the statistics of one side, the diagonal included. Returns false if a sum has lost terms.
  bool finish(const DistillationSums& sums, double* lse, double* cross, double* teacher_lse) const {
    const Index count = inputs_.student.x.rows;
    const double smallest_trusted = smallest_trusted_sum(count);
    const double scale = inputs_.student.scale, to_logits = scale == 0 ? 0 : scale / student_.a.high;
    bool is_trusted = true;
    for (Index i = 0; i < count; ++i) {
      const double s = student_logit(i), t = inputs_.teacher.scale * teacher_diagonal_[i];
      const double e = std::exp2(t * kLog2E - teacher_.shift), all = sums.teacher[i] + e;
      lse[i] = log_add_exp(std::log(sums.student[i]) + student_.shift * kLn2, s);
      teacher_lse[i] = log_add_exp(std::log(sums.teacher[i]) + teacher_.shift * kLn2, t);
      cross[i] = ((sums.cross[i] + offset() * sums.teacher[i]) * to_logits + e * s) / all;
      is_trusted = is_trusted && all >= smallest_trusted &&
                   sums.student[i] + std::exp2(s * kLog2E - student_.shift) >= smallest_trusted;
    }
    return is_trusted;
  }

  const DistillationInputs& inputs_;
  DistillationStatistics statistics_;
  int threads_;
  SharedShift student_, teacher_;
  std::vector<float> student_diagonal_, teacher_diagonal_;
  DistillationSums rows_, columns_;
};

bool distillation_forward(const DistillationInputs& inputs, const DistillationStatistics& statistics, int threads) {
  return with_arithmetic(inputs, {}, threads, [&](auto arithmetic) {
    return DistillationForward<decltype(arithmetic)>(inputs, statistics, threads).run();
  });
}

}  // namespace
}  // namespace mmcore

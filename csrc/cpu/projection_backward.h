// Projection head, backward.
//
//   grad_z = backward of the L2 normalisation at grad_output, or grad_output itself without one
//   grad_x = backward of the input norm at grad_z·weight      grad_weight = grad_zᵀ·x̂      grad_bias = Σ grad_z
//
// Never stored: x̂, which is computed again, and grad_z beyond one packed chunk of rows.
// Loop order: chunks of rows, in two steps. First each thread computes grad_z and grad_x of its own blocks of rows.
// Then each thread adds the product of all rows of the chunk to its own columns of grad_weight.
// Precision: as in projection.h. Sums over rows that are not products (biases, weights of the norm) are float64.
#pragma once

#include "projection.h"

namespace mmcore {
namespace {

// The packed units of grad_z of a chunk, 4 MiB. A chunk is larger if one block for each thread needs more.
constexpr Index kChunkUnits = 1 << 20;

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

template <class A, class T>
class ProjectionBackward {
 public:
  ProjectionBackward(const ProjectionInputs& inputs, const AnyMatrix& output, const ProjectionStatistics& statistics,
                     const AnyMatrix& grad_output, const ProjectionGradients& gradients, int threads)
      : inputs_(inputs),
        statistics_(statistics),
        gradients_(gradients),
        x_(inputs.x.as<T>()),
        output_(output.as<T>()),
        grad_output_(grad_output.as<T>()),
        grad_x_{static_cast<T*>(gradients.x.data), inputs.x.rows, inputs.x.columns, gradients.x.row_stride},
        threads_(threads),
        width_(inputs.weight.rows),
        columns_(inputs.x.columns),
        needs_grad_normed_(gradients.x.data != nullptr || gradients.norm_weight != nullptr ||
                           gradients.norm_bias != nullptr),
        blocks_per_thread_(minimum(maximum(1, kChunkUnits / (slot_units() * threads)),
                                   (x_.rows + threads * kBlock - 1) / (threads * kBlock))),
        bias_(gradients.bias, width_, threads),
        norm_weight_(gradients.norm_weight, columns_, threads),
        norm_bias_(gradients.norm_bias, columns_, threads) {}

  void run() {
    const bool needs_weight = gradients_.weight.data != nullptr;
    Scratch packed_weight(needs_grad_normed_ ? Rhs<A>::floats(columns_, width_) : 0, 1);
    if (needs_grad_normed_) pack_weight(packed_weight.of_thread(0));
    Scratch chunk(needs_weight ? slot_units() * blocks_per_thread_ * threads_ : 0, 1);
    Scratch row_scratch(kBlock * width_ + (needs_grad_normed_ ? row_units() : 0) + 48, threads_);
    Scratch weight_scratch(needs_weight ? Rhs<A>::floats(columns_, kBlock) + kBlock * columns_ + 64 : 0, threads_);
    const Index rows = x_.rows, largest = blocks_per_thread_ * threads_ * kBlock;
    for (Index begin = 0; begin < rows; begin += largest) {
      chunk_ = {begin, minimum(begin + largest, rows)};
      for_each_stripe(threads_, chunk_.size(), kStripeRows, [&](Range part, int thread) {
        const Multiplying<A> multiplying;
        visit_rows(part, thread, row_scratch.of_thread(thread), packed_weight.of_thread(0),
                   needs_weight ? chunk.of_thread(0) : nullptr);
      });
      if (!needs_weight) continue;
      for_each_stripe(threads_, columns_, kTileColumns, [&](Range columns, int thread) {
        const Multiplying<A> multiplying;
        add_grad_weight(columns, chunk.of_thread(0), weight_scratch.of_thread(thread));
      });
    }
    for (VectorTotals* totals : {&bias_, &norm_weight_, &norm_bias_}) totals->finish();
  }

 private:
  // The sizes of a block of grad_z that is packed by columns, and of the scratch memory of a block of grad_x.
  Index slot_units() const { return Lhs<A>::floats(width_, kBlock); }
  Index row_units() const { return Lhs<A>::floats(kBlock, width_) + kBlock * columns_; }

  void pack_weight(float* packed) const {
    visit_dtype(inputs_.weight, [&](auto weight) {
      pack_shared(threads_, columns_, [&](Range part) {
        auto columns = weight;
        columns.data += part.begin;
        columns.columns = part.size();
        Rhs<A>::pack_columns(columns, packed + Rhs<A>::floats(part.begin, width_));
      });
    });
  }

  // The blocks of a thread's part of the chunk: visit(block, slot).
  template <class Visit>
  void for_each_block(Range part, int thread, Visit visit) const {
    Index slot = thread * blocks_per_thread_;
    for (Index begin = part.begin; begin < part.end; begin += kBlock, ++slot)
      visit(Range{chunk_.begin + begin, chunk_.begin + minimum(begin + kBlock, part.end)}, slot);
  }

  // grad_z, grad_x and the gradients of the vectors.
  void visit_rows(Range part, int thread, float* scratch, const float* packed_weight, float* slots) {
    Carver carver(scratch);
    float* rows_of_grad_z = carver.take(kBlock * width_);
    for_each_block(part, thread, [&](Range block, Index slot) {
      const MutableMatrix grad_z{rows_of_grad_z, block.size(), width_, width_};
      for (Index r = 0; r < grad_z.rows; ++r) fill_grad_z(block.begin + r, grad_z.row(r), bias_.of_thread(thread));
      if (slots != nullptr) Lhs<A>::pack_columns(ConstMatrix(grad_z), slots + slot * slot_units());
      if (!needs_grad_normed_) return;
      Carver rest = carver;
      float* packed = rest.take(Lhs<A>::floats(kBlock, width_));
      Lhs<A>::pack_rows(ConstMatrix(grad_z), packed);
      store_grad_x(block, packed, packed_weight, rest.take(kBlock * columns_), thread);
    });
  }

  void fill_grad_z(Index i, float* z, double* grad_bias) const {
    if (statistics_.inverse_norm == nullptr) {
      for_each_vector(
          width_, [&](Index k, Index count) { store_first(z + k, load_first(grad_output_.row(i) + k, count), count); });
    } else {
      l2_normalize_row_backward(output_.row(i), grad_output_.row(i), width_, statistics_.inverse_norm[i], inputs_.eps,
                                z);
    }
    for (Index d = 0; grad_bias != nullptr && d < width_; ++d) grad_bias[d] += z[d];
  }

  void store_grad_x(Range block, const float* packed_grad_z, const float* packed_weight, float* rows, int thread) {
    const MutableMatrix grad = float32_block(grad_x_, block, rows);
    for (Index r = 0; r < grad.rows; ++r) fill_row(grad.row(r), nullptr, columns_);
    multiply_into<A>(Lhs<A>(packed_grad_z, width_), Rhs<A>(packed_weight, width_), width_, grad);
    for (Index r = 0; r < grad.rows; ++r) {
      const Index i = block.begin + r;
      norm_row_backward(x_.row(i), inputs_.norm, row(i), columns_, grad.row(r), norm_weight_.of_thread(thread),
                        norm_bias_.of_thread(thread));
      if (grad_x_.data != nullptr) round_row(grad.row(r), columns_, grad_x_.row(i));
    }
  }

  void add_grad_weight(Range columns, const float* slots, float* scratch) const {
    if (columns.size() == 0) return;
    Carver carver(scratch);
    float* packed_x = carver.take(Rhs<A>::floats(columns.size(), kBlock));
    float* rows = carver.take(kBlock * columns.size());
    const MutableMatrix target{gradients_.weight.data + columns.begin, width_, columns.size(),
                               gradients_.weight.row_stride};
    for (int thread = 0; thread < threads_; ++thread)
      for_each_block(stripe(chunk_.size(), kStripeRows, thread, threads_), thread, [&](Range block, Index slot) {
        pack_normalized_columns(block, columns, rows, packed_x);
        multiply_into<A>(Lhs<A>(slots + slot * slot_units(), block.size()), Rhs<A>(packed_x, block.size()),
                         block.size(), target);
      });
  }

  // The columns of x̂ of one block; `rows` holds kBlock of them.
  void pack_normalized_columns(Range block, Range columns, float* rows, float* packed) const {
    const Index count = columns.size();
    if (inputs_.norm.kind == Norm::kNone)
      return Rhs<A>::pack_columns(
          Matrix<const T>{x_.row(block.begin) + columns.begin, block.size(), count, x_.row_stride}, packed);
    for (Index r = 0; r < block.size(); ++r)
      apply_norm(x_.row(block.begin + r), inputs_.norm, row(block.begin + r), columns.begin, count, rows + r * count);
    Rhs<A>::pack_columns(ConstMatrix{rows, block.size(), count, count}, packed);
  }

  RowStatistics row(Index i) const {
    RowStatistics result;
    if (statistics_.mean != nullptr) result.mean = statistics_.mean[i];
    if (statistics_.inverse_std != nullptr) result.inverse_std = statistics_.inverse_std[i];
    return result;
  }

  const ProjectionInputs& inputs_;
  const ProjectionStatistics& statistics_;
  const ProjectionGradients& gradients_;
  Matrix<const T> x_, output_, grad_output_;
  Matrix<T> grad_x_;
  int threads_;
  Index width_, columns_;
  bool needs_grad_normed_;   // of x̂
  Index blocks_per_thread_;  // in a chunk
  VectorTotals bias_, norm_weight_, norm_bias_;
  Range chunk_{};
};

void project_backward(const ProjectionInputs& inputs, const AnyMatrix& output, const ProjectionStatistics& statistics,
                      const AnyMatrix& grad_output, const ProjectionGradients& gradients, int threads) {
  visit_dtype(inputs.x, [&](auto x) {
    using T = NumberOf<decltype(x)>;
    with_arithmetic(inputs, &grad_output, threads, [&](auto arithmetic) {
      ProjectionBackward<decltype(arithmetic), T>(inputs, output, statistics, grad_output, gradients, threads).run();
    });
  });
}

}  // namespace
}  // namespace mmcore

// Statistics of one similarity matrix for each prefix of the width, with rows normalised for each prefix, forward.
//
//   s_kij = scale·⟨x_i[:d_k], y_j[:d_k]⟩ / (max(‖x_i[:d_k]‖, eps)·max(‖y_j[:d_k]‖, eps))
//   row_lse_ki = log Σ_{j counted} exp s_kij      col_lse_kj likewise over i      row_pos_ki = s_ki,target(i)
//
// The products of a prefix are those of the prefix before it, plus the products of the columns in between. So one pass
// over the depth computes all prefixes. They share one shift, because every |s| ≤ |scale|. The kernel returns the
// prefixes in which a row or column lies too far below |scale|; the caller computes their statistics by another method.
//
// Never stored: normalised prefixes and the matrices, except for the products that kept_prefixes.h keeps.
// Loop order: similarity_blocks.h. In a block: the prefixes from the shortest to the longest.
// Precision: float32 products; norms are float64, and so are logits of targets, from the same products as all others.
// The norms multiply the exponent in two float32 parts, so that each exponential is as exact as that of normalised
// rows. Sums are float32 inside a block, float64 across blocks.
#pragma once

#include "exponential_sums.h"
#include "kept_prefixes.h"
#include "prefix_norms.h"
#include "tile_masks.h"

namespace mmcore {
namespace {

// The columns [begin, begin + count) of a matrix.
inline AnyMatrix columns_of(const AnyMatrix& m, Index begin, Index count) {
  AnyMatrix part = m;
  part.data = static_cast<const char*>(m.data) + begin * (m.dtype == Dtype::kFloat32 ? 4 : 2);
  part.columns = count;
  return part;
}

// A product divided by the norm of its column's prefix: in float32, and the rounding error of that.
struct NormedProduct {
  Vec value, rest;
  NormedProduct(Vec product, Vec norm_high, Vec norm_low)
      : value(multiply_add(product, norm_high, Vec{})),
        rest(multiply_add(product, norm_high, -value) + product * norm_low) {}
};

// The factor a_i of a row's exponents, in two parts.
struct RowFactor {
  Vec high, low;

  // 2^(log2(e)·s − shift), as in shared_shift.h.
  Vec exponential(const NormedProduct& normed, Vec rounder) const {
    const Vec rounded = multiply_add(normed.value, high, rounder);
    const Vec rest = multiply_add(normed.value, high, rounder - rounded);
    return exp2_from_parts(rounded, rest + multiply_add(normed.value, low, normed.rest * high));
  }
};

// The factors of one prefix that epilogues read: log2(e)·s_ij = a_i·(product·inverse norm of y_j).
struct PrefixView {
  const float *a_high, *a_low, *norm_high, *norm_low;

  RowFactor row(Index i) const { return {broadcast(a_high[i]), broadcast(a_low[i])}; }
  NormedProduct normed(Vec product, Index j) const { return {product, load(norm_high + j), load(norm_low + j)}; }
};

// One shift for all prefixes: of unit rows every |s| ≤ |scale|, but rounding to bfloat16 may lengthen them.
inline Shift shift_of_unit_rows(double scale) { return Shift(std::abs(scale) * kLog2E * 1.01); }

// A thread's scratch memory: packed operands of each segment, and one block of numbers.
template <class A>
struct SegmentScratch {
  std::vector<BlockScratch<A>> segments;
  float* numbers = nullptr;
};

// Norms and segments of all prefixes, for forward and backward, and the cosines that the backward needs.
struct Prefixes {
  const PrefixInputs& inputs;
  const SimilarityInputs& matrix = inputs.matrix;
  std::size_t count = inputs.ends.size();
  PrefixNorms rows, columns;
  std::vector<SimilarityInputs> segments;    // the columns by which a prefix is longer than the one before it
  std::vector<std::vector<double>> cosines;  // of every row and its target, once found; 0 for rows without one

  Prefixes(const PrefixInputs& all, int threads)
      : inputs(all),
        rows(matrix.x, all.ends, all.eps, matrix.scale * kLog2E, threads),
        columns(matrix.y, all.ends, all.eps, 1, threads),
        segments(count, matrix) {
    for (std::size_t k = 0; k < count; ++k) {
      segments[k].x = columns_of(matrix.x, begin(k), inputs.ends[k] - begin(k));
      segments[k].y = columns_of(matrix.y, begin(k), inputs.ends[k] - begin(k));
    }
  }

  void find_cosines(int threads) {
    cosines.assign(count, std::vector<double>(matrix.x.rows));
    visit_dtype(matrix.x, [&](auto x) {
      const auto y = matrix.y.as<NumberOf<decltype(x)>>();
      for_each_stripe(threads, x.rows, 1, [&](Range stripe_rows, int) {
        for (Index i = stripe_rows.begin; i < stripe_rows.end; ++i) set_cosines(x, y, i);
      });
    });
  }

  PrefixView view(std::size_t k) const {
    return {rows.high[k].data(), rows.low[k].data(), columns.high[k].data(), columns.low[k].data()};
  }
  Index begin(std::size_t k) const { return k == 0 ? 0 : inputs.ends[k - 1]; }

  // A thread's packed operands, one for each segment.
  template <class A>
  Index floats(const BlockGrid& grid, bool has_gradients) const {
    Index total = 0;
    for (const SimilarityInputs& segment : segments)
      total += round_up(BlockScratch<A>::floats(grid, segment.x.columns, has_gradients), 16);
    return total + kBlockFloats;
  }
  // One for each thread. This allocates, so it must happen before the threads start.
  template <class A>
  std::vector<SegmentScratch<A>> scratch(const Scratch& memory, const BlockGrid& grid, bool has_gradients,
                                         int threads) const {
    std::vector<SegmentScratch<A>> result(threads);
    for (int thread = 0; thread < threads; ++thread) {
      Carver carver(memory.of_thread(thread));
      for (const SimilarityInputs& segment : segments)
        result[thread].segments.emplace_back(
            carver.take(BlockScratch<A>::floats(grid, segment.x.columns, has_gradients)), segment, grid, has_gradients);
      result[thread].numbers = carver.take(kBlockFloats);
    }
    return result;
  }

 private:
  template <class M>
  void set_cosines(M x, M y, Index i) {
    const Index j = matrix.pairs.target[i];
    double dot = 0;
    for (std::size_t k = 0; j >= 0 && k < count; ++k) {
      dot += exact_dot(x.row(i) + begin(k), y.row(j) + begin(k), inputs.ends[k] - begin(k));
      cosines[k][i] = dot * rows.inverse[k][i] * columns.inverse[k][j];
    }
  }
};

// Epilogue of one block and prefix: adds up exponentials by rows and by columns, and leaves the products.
struct SumPrefixExponentials {
  const PairMasks& masks;
  float rounder;  // with the shift
  PrefixView view{};
  Block block{};
  const float* products = nullptr;
  float* targets = nullptr;  // (N,): the products that targets name
  BlockSums sums{};

  void operator()(Index row, Index column) {
    counts_all(masks, block, row, column) ? add_tile<AllEntries>(row, column) : add_tile<CountedEntries>(row, column);
  }

 private:
  template <class Counted>
  void add_tile(Index row, Index column) {
    const Index valid = minimum(kTileRows, block.rows.size() - row), first = block.columns.begin + column;
    const float* tile = products + row * kBlockStride + column;
    const PrefixView prefix_view = view;
    const Vec shifted_rounder = broadcast(rounder);
    Vec col_total[kTileVectors] = {};
    for (Index r = 0; r < valid; ++r, tile += kBlockStride) {
      const Index i = block.rows.begin + row + r;
      const RowFactor factor = prefix_view.row(i);
      const Counted counted(masks, i, block.columns.end);
      const Index lane = masks.target_lane(i, first);
      if (lane >= 0 && lane < minimum(kTileColumns, block.columns.end - first)) targets[i] = tile[lane];
      Vec row_total{};
#pragma GCC unroll 4
      for (int v = 0; v < kTileVectors; ++v) {
        const Index j = first + v * kLanes;
        const NormedProduct normed = prefix_view.normed(load(tile + v * kLanes), j);
        const Vec e = counted(factor.exponential(normed, shifted_rounder), j);
        row_total += e;
        col_total[v] += e;
      }
      BlockSums::add(sums.row + (row + r) * kLanes, row_total);
    }
    for (int v = 0; v < kTileVectors; ++v) BlockSums::add(sums.col + column + v * kLanes, col_total[v]);
  }
};

template <class A>
class PrefixForward {
 public:
  PrefixForward(const PrefixInputs& inputs, const PrefixStatistics& statistics, Kept kept, int threads)
      : prefixes_(inputs, threads),
        matrix_(inputs.matrix),
        statistics_(statistics),
        kept_(kept),
        threads_(threads),
        masks_(inputs.matrix),
        shift_(shift_of_unit_rows(inputs.matrix.scale)) {}

  // Returns the prefixes whose statistics are not to be trusted.
  std::vector<Index> run() {
    if (kept_.size > 0) kept_.data[0] = 0;  // nothing is kept yet: clears the fingerprint of an earlier call
    const bool is_usable = shift_.is_usable();
    rows_.assign(prefixes_.count, std::vector<double>(matrix_.x.rows));
    columns_.assign(prefixes_.count, std::vector<double>(matrix_.y.rows));
    targets_.assign(prefixes_.count, std::vector<float>(matrix_.x.rows));
    if (is_usable) sum_blocks();
    std::vector<Index> untrusted;
    for (std::size_t k = 0; k < prefixes_.count; ++k)
      if (!finish(k) || !is_usable) untrusted.push_back(static_cast<Index>(k));
    return untrusted;
  }

 private:
  void sum_blocks() {
    const BlockGrid grid(matrix_, threads_);
    const KeptPrefixes<A> kept(kept_, grid, prefixes_.count, threads_);
    kept.prepare();
    const Scratch memory(prefixes_.floats<A>(grid, false), threads_);
    std::vector<SegmentScratch<A>> scratch = prefixes_.scratch<A>(memory, grid, false, threads_);
    grid.for_each_pair([&](int row_stripe, int column_stripe, int thread) {
      const Multiplying<A> multiplying;
      std::vector<BlockScratch<A>>& segments = scratch[thread].segments;
      SumPrefixExponentials epilogue{masks_, shift_.shifted_rounder()};
      const auto take_rows = [&](Range rows) {
        for (auto& segment : segments) segment.take_chunk(rows);
      };
      const auto take_columns = [&](Range columns) {
        for (auto& segment : segments) segment.take_columns(columns);
      };
      walk_blocks(grid, row_stripe, column_stripe, take_rows, take_columns, [&](const Block& block) {
        epilogue.block = block;
        const float* shorter = nullptr;
        for (std::size_t k = 0; k < prefixes_.count; ++k) {
          float* place = kept.of(k, block);
          if (place == nullptr) place = segments[0].numbers;
          epilogue.view = prefixes_.view(k);
          epilogue.products = place;
          epilogue.targets = targets_[k].data();
          epilogue.sums.clear();
          segments[k].multiply(block, place, epilogue, shorter);
          epilogue.sums.flush(block, rows_[k], &columns_[k]);
          shorter = place;
        }
      });
    });
  }

  // Sets the statistics of one prefix, targets included. Returns false if a sum has lost terms to the shift.
  bool finish(std::size_t k) {
    const Index rows = matrix_.x.rows, columns = matrix_.y.rows;
    double *row_lse = statistics_.row_lse + k * rows, *col_lse = statistics_.col_lse + k * columns,
           *row_pos = statistics_.row_pos + k * rows;
    const double smallest_trusted = smallest_trusted_sum(maximum(rows, columns));
    std::vector<double>&row_sums = rows_[k], &col_sums = columns_[k];
    for (Index i = 0; i < rows; ++i) row_lse[i] = std::log(row_sums[i]) + shift_.shift * kLn2;
    for (Index j = 0; j < columns; ++j) col_lse[j] = std::log(col_sums[j]) + shift_.shift * kLn2;
    for (Index i = 0; i < rows; ++i) {
      const Index j = matrix_.pairs.target[i];
      row_pos[i] = 0;
      if (j < 0) continue;
      row_pos[i] = matrix_.scale * targets_[k][i] * prefixes_.rows.inverse[k][i] * prefixes_.columns.inverse[k][j];
      const double e = std::exp2(row_pos[i] * kLog2E - shift_.shift);
      row_sums[i] += e;
      col_sums[j] += e;
      row_lse[i] = log_add_exp(row_lse[i], row_pos[i]);
      col_lse[j] = log_add_exp(col_lse[j], row_pos[i]);
    }
    bool is_trusted = true;
    for (double sum : row_sums) is_trusted = is_trusted && sum >= smallest_trusted;
    for (double sum : col_sums) is_trusted = is_trusted && sum >= smallest_trusted;
    return is_trusted;
  }

  Prefixes prefixes_;
  const SimilarityInputs& matrix_;
  PrefixStatistics statistics_;
  Kept kept_;
  int threads_;
  PairMasks masks_;
  Shift shift_;
  std::vector<std::vector<double>> rows_, columns_;  // sums of exponentials of each prefix
  std::vector<std::vector<float>> targets_;          // products that targets name, of each prefix
};

std::vector<Index> prefix_similarity_forward(const PrefixInputs& inputs, const PrefixStatistics& statistics, Kept kept,
                                             int threads) {
  return with_arithmetic(inputs.matrix, threads, [&](auto arithmetic) {
    return PrefixForward<decltype(arithmetic)>(inputs, statistics, kept, threads).run();
  });
}

}  // namespace
}  // namespace mmcore

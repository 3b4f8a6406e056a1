// Statistics of the similarity matrix, forward.
//
//   s_ij = scale·⟨x_i, y_j⟩ + bias     row_lse_i = log Σ_j exp s_ij     col_lse_j = log Σ_i exp s_ij
//   row_pos_i = s_i,target(i)   col_pos_j = Σ_{i: target(i) = j} s_ij
//
// Never stored: the N×M logits. Each tile of products is exponentiated while it is in L1, with one shift for
// the whole matrix, E_ij = 2^(a·⟨x_i, y_j⟩ − shift) with a = scale·log2(e), so one exp serves the row and the column
// sum and no maximum is tracked; the bias is the same in every term and is added at the end. The shift follows from the
// Cauchy-Schwarz bound on |s|. A row or column so far below that bound that its sum lost bits is done again with
// running maxima (running_log_sum_exp.h), as is everything where the bound is loose from the start. Loop order: one
// Latin-square pair of stripes per thread and step; in it row chunks, column blocks, row blocks. Precision: float32
// products, each exp to 2⁻²³ relative however large the logit; float32 sums inside a block, float64 beyond. Positives
// are summed in float64 apart, so that lse − pos stays exact when they dominate.
#pragma once

#include <vector>

#include "normalize.h"
#include "running_log_sum_exp.h"

namespace mmcore {
namespace {

// Beyond this bound on |s|·log2(e) most rows of real data lie too far below it for a shared shift.
constexpr double kLargestSharedBound = 300;

// Where the sums of E are collected, and what the logits are shifted by.
struct ExponentialSums {
  Split a;
  double shift;  // an integer
  std::vector<double> row_sum, col_sum;
  std::vector<float> positive_product;

  ExponentialSums(const SimilarityInputs& inputs, double bound)
      : a(inputs.scale * kLog2E),
        // Puts the largest possible E, summed over every row and column, just below float32's overflow.
        shift(std::ceil(bound) - 126 + std::ceil(std::log2(maximum(inputs.x.rows, inputs.y.rows)))),
        row_sum(inputs.x.rows),
        col_sum(inputs.y.rows),
        positive_product(inputs.x.rows) {}

  // Terms below 2⁻¹²⁶ were dropped; above this sum they do not matter in float32.
  double smallest_trusted(Index terms) const { return std::exp2(-126 + 24) * terms; }
};

// Epilogue of one block: exponentiates tiles and adds up rows and columns.
struct SumExponentials {
  Split a;
  float* block;  // products
  Range rows;    // of the block
  Index first_column;
  const Index* target;            // (N,)
  float* positive_product;        // (N,)
  float shifted_rounder[kBlock];  // per column: kRounder − shift, and −inf in the padding, so that E = 0 there
  float row_partial[kBlock * kLanes];
  float col_partial[kBlock];

  void operator()(Index row, Index column) {
    const Index valid = minimum(kTileRows, rows.size() - row);
    float* tile = block + row * kBlockStride + column;
    Vec col_total[kTileVectors] = {};
    for (Index r = 0; r < valid; ++r, tile += kBlockStride) {
      const Index lane = target[rows.begin + row + r] - first_column - column;
      const bool has_positive = lane >= 0 && lane < kTileColumns;
      if (has_positive) positive_product[rows.begin + row + r] = tile[lane];
      for (int v = 0; v < kTileVectors; ++v) store(tile + v * kLanes, exponential(load(tile + v * kLanes), column, v));
      if (has_positive) tile[lane] = 0;
      Vec row_total{};
      for (int v = 0; v < kTileVectors; ++v) {
        row_total += load(tile + v * kLanes);
        col_total[v] += load(tile + v * kLanes);
      }
      add_to(row_partial + (row + r) * kLanes, row_total);
    }
    for (int v = 0; v < kTileVectors; ++v) add_to(col_partial + column + v * kLanes, col_total[v]);
  }

 private:
  static void add_to(float* partial, Vec v) { store(partial, load(partial) + v); }

  Vec exponential(Vec product, Index column, int v) const {
    // One FMA rounds a·product − shift to an integer, a second one leaves the exact remainder.
    const Vec rounder = load(shifted_rounder + column + v * kLanes);
    const Vec rounded = product * a.high + rounder;
    return exp2_from_parts(rounded, (product * a.high - (rounded - rounder)) + product * a.low);
  }
};

// The sums over one pair of stripes.
void add_exponentials(const SimilarityInputs& inputs, Range rows, Range columns, float* scratch,
                      ExponentialSums& sums) {
  const Index depth = inputs.x.columns, chunk = minimum(kChunk, round_up(rows.size(), kTileRows));
  Carver carver(scratch);
  float* packed_x = carver.take(packed_floats<kTileRows>(chunk, depth));
  float* packed_y = carver.take(packed_floats<kTileColumns>(kBlock, depth));
  float* block = carver.take(kBlockFloats);
  SumExponentials epilogue{sums.a, block, {}, 0, inputs.target, sums.positive_product.data(), {}, {}, {}};
  for (Index begin = rows.begin; begin < rows.end; begin += chunk) {
    Index chunk_end = minimum(begin + chunk, rows.end);
    pack_rows<kTileRows>(inputs.x.rows_from(begin, chunk_end - begin), packed_x);
    for (Index j = columns.begin; j < columns.end; j += kBlock) {
      Index block_columns = minimum(kBlock, columns.end - j);
      pack_rows<kTileColumns>(inputs.y.rows_from(j, block_columns), packed_y);
      epilogue.first_column = j;
      for (Index c = 0; c < kBlock; ++c)
        epilogue.shifted_rounder[c] = c < block_columns ? kRounder - static_cast<float>(sums.shift) : -kInfinity;
      for (Index i = begin; i < chunk_end; i += kBlock) {
        epilogue.rows = {i, minimum(i + kBlock, chunk_end)};
        std::memset(epilogue.row_partial, 0, sizeof(epilogue.row_partial));
        std::memset(epilogue.col_partial, 0, sizeof(epilogue.col_partial));
        multiply_block(PackedLhs{packed_x + (i - begin) * depth, depth * kTileRows},
                       PackedRhs{packed_y, depth * kTileColumns}, epilogue.rows.size(), block_columns, depth, block,
                       epilogue);
        for (Index r = 0; r < epilogue.rows.size(); ++r)
          sums.row_sum[i + r] += sum(load(epilogue.row_partial + r * kLanes));
        for (Index c = 0; c < block_columns; ++c) sums.col_sum[j + c] += epilogue.col_partial[c];
      }
    }
  }
}

Index exponential_sums_scratch(Index rows, Index depth) {
  return packed_floats<kTileRows>(minimum(kChunk, round_up(rows, kTileRows)), depth) +
         packed_floats<kTileColumns>(kBlock, depth) + kBlockFloats + 48;
}

// max_i ‖m_i‖; NaN if any number is.
double largest_row_norm(ConstMatrix m, int threads) {
  std::vector<double> largest_of_thread(threads, 0.0);
  for_each_stripe(threads, m.rows, 1, [&](Range rows, int thread) {
    double largest = 0;
    for (Index i = rows.begin; i < rows.end; ++i) {
      double square = dot(m.row(i), m.row(i), m.columns);
      if (!(square <= largest)) largest = square;
      if (largest != largest) break;
    }
    largest_of_thread[thread] = largest;
  });
  double result = 0;
  for (double largest : largest_of_thread)
    if (!(largest <= result)) result = largest;
  return std::sqrt(result);
}

// The positives of one side, whose exponentials are kept apart from the sum of the others. Where several fall into one
// column the largest is kept and the others join the sum.
struct Positives {
  std::vector<double> exponential, logit;  // E, and the logit without bias; E = 0 where there is none

  explicit Positives(Index count) : exponential(count), logit(count) {}

  void add(Index i, double e, double s, double& sum_of_others) {
    if (e > exponential[i]) {
      std::swap(e, exponential[i]);
      logit[i] = s;
    }
    sum_of_others += e;
  }

  // log(Σ E) + shift. Relative to a dominating positive, lse − pos keeps all its digits however small it is.
  double log_sum(Index i, double sum_of_others, double shift) const {
    if (exponential[i] >= sum_of_others && exponential[i] > 0)
      return logit[i] + std::log1p(sum_of_others / exponential[i]);
    return std::log(sum_of_others + exponential[i]) + shift * kLn2;
  }
};

// Log-sum-exp with running maxima of those rows of x whose sum lost too many terms to underflow.
void redo_untrusted(ConstMatrix x, ConstMatrix y, double scale, const std::vector<double>& sums,
                    const Positives& positives, double smallest_trusted, double* row_lse, int threads) {
  std::vector<Index> untrusted;
  for (Index i = 0; i < x.rows; ++i)
    if (!(sums[i] + positives.exponential[i] >= smallest_trusted)) untrusted.push_back(i);
  if (untrusted.empty()) return;
  std::vector<float> gathered(untrusted.size() * x.columns);
  std::vector<double> lse(untrusted.size());
  for (std::size_t i = 0; i < untrusted.size(); ++i)
    std::memcpy(gathered.data() + i * x.columns, x.row(untrusted[i]), x.columns * sizeof(float));
  ConstMatrix subset{gathered.data(), static_cast<Index>(untrusted.size()), x.columns, x.columns};
  running_row_log_sum_exp(subset, y, scale, nullptr, lse.data(), nullptr, threads);
  for (std::size_t i = 0; i < untrusted.size(); ++i) row_lse[untrusted[i]] = lse[i];
}

// Sets row_lse and col_lse, without the bias, and the products of the positives.
void shared_shift_log_sum_exp(const SimilarityInputs& inputs, double bound, double* row_lse, double* col_lse,
                              std::vector<float>& positive_product, int threads) {
  const Index rows = inputs.x.rows, columns = inputs.y.rows;
  ExponentialSums sums(inputs, bound);
  Scratch scratch(exponential_sums_scratch(rows, inputs.x.columns), threads);
  for_each_latin_square_pair(threads, rows, kTileRows, columns, kTileColumns, [&](Range r, Range c, int thread) {
    add_exponentials(inputs, r, c, scratch.of_thread(thread), sums);
  });
  positive_product = std::move(sums.positive_product);
  Positives row_positives(rows), col_positives(columns);
  for (Index i = 0; i < rows; ++i) {
    const Index j = inputs.target[i];
    if (j < 0) continue;
    double logit = inputs.scale * positive_product[i], e = std::exp2(logit * kLog2E - sums.shift);
    row_positives.add(i, e, logit, sums.row_sum[i]);
    col_positives.add(j, e, logit, sums.col_sum[j]);
  }
  for (Index i = 0; i < rows; ++i) row_lse[i] = row_positives.log_sum(i, sums.row_sum[i], sums.shift);
  for (Index j = 0; j < columns; ++j) col_lse[j] = col_positives.log_sum(j, sums.col_sum[j], sums.shift);
  redo_untrusted(inputs.x, inputs.y, inputs.scale, sums.row_sum, row_positives, sums.smallest_trusted(columns), row_lse,
                 threads);
  redo_untrusted(inputs.y, inputs.x, inputs.scale, sums.col_sum, col_positives, sums.smallest_trusted(rows), col_lse,
                 threads);
}

void softmax_similarity_forward(SimilarityInputs inputs, SoftmaxStatistics statistics, int threads) {
  const Index rows = inputs.x.rows, columns = inputs.y.rows;
  std::vector<float> positive_product(rows);
  double bound =
      std::abs(inputs.scale) * kLog2E * largest_row_norm(inputs.x, threads) * largest_row_norm(inputs.y, threads);
  if (bound <= kLargestSharedBound) {
    shared_shift_log_sum_exp(inputs, bound, statistics.row_lse, statistics.col_lse, positive_product, threads);
  } else {
    running_row_log_sum_exp(inputs.x, inputs.y, inputs.scale, inputs.target, statistics.row_lse,
                            positive_product.data(), threads);
    running_row_log_sum_exp(inputs.y, inputs.x, inputs.scale, nullptr, statistics.col_lse, nullptr, threads);
  }
  for (Index i = 0; i < rows; ++i) statistics.row_lse[i] += inputs.bias;
  for (Index j = 0; j < columns; ++j) statistics.col_lse[j] += inputs.bias;
  for (Index j = 0; j < columns; ++j) statistics.col_pos[j] = 0;
  for (Index i = 0; i < rows; ++i) {
    const Index j = inputs.target[i];
    statistics.row_pos[i] = j < 0 ? 0 : inputs.scale * positive_product[i] + inputs.bias;
    if (j >= 0) statistics.col_pos[j] += statistics.row_pos[i];
  }
}

}  // namespace
}  // namespace mmcore

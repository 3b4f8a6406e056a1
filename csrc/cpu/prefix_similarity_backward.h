// Statistics of one similarity matrix for each prefix of the width, backward.
//
//   G_kij = [counted]·(a_ki·exp(s_kij − row_lse_ki) + b_kj·exp(s_kij − col_lse_kj)) + [j = target(i)]·c_ki
//   W_kij = scale·G_kij / (norms of both prefixes)      t_ki = Σ_j G_kij·cos_kij      u_kj = Σ_i G_kij·cos_kij
//   grad_x_i[d_{k−1}:d_k] = Σ_j (Σ_{l≥k} W_lij)·y_j[d_{k−1}:d_k] − (Σ_{l≥k} scale·t_li / ‖x_i[:d_l]‖²)·x_i[d_{k−1}:d_k]
//   grad_scale = Σ_ki t_ki
//
// grad_y likewise, with u. A segment, the columns d_{k−1} to d_k, is multiplied once, with the sum of W over the
// prefixes that contain it. So the products with W cost as much as those of the longest prefix alone.
//
// Never stored: the matrices. In scratch memory are one block of the sum of W and, for each prefix that the forward did
// not keep, one block of products.
// Loop order: similarity_blocks.h. In a block: the products from the shortest prefix to the longest, then the gradients
// from the longest to the shortest.
// Precision: as in the forward. One exponential is enough for both sides; blocks with a row or column too far below
// |scale| take one for each side. Entries of targets are computed in float64. Sums of G·cos are float64 across blocks.
#pragma once

#include "prefix_similarity.h"
#include "softmax_terms.h"

namespace mmcore {
namespace {

// For one block and one prefix: reads products, and adds W to the sum over the longer prefixes.
struct AddPrefixGradient {
  const Prefixes& prefixes;
  const PairMasks& masks;
  const PrefixStatistics &statistics, &upstream;
  std::vector<std::vector<double>>&row_cosines, &col_cosines;  // t and u
  float rounder;                                               // with the shift
  std::size_t prefix = 0;
  PrefixView view{};
  const SharedSoftmaxTerms *row_terms = nullptr, *col_terms = nullptr;
  bool is_exact = false;  // one exp for each term of G, instead of one for both
  Block block{};
  const float* products = nullptr;
  float* out = nullptr;
  bool is_first = false;  // whether `out` holds nothing yet
  BlockSums sums{};       // of G·cos

  void add_block() {
    for (Index row = 0; row < block.rows.size(); row += kTileRows)
      for (Index column = 0; column < block.columns.size(); column += kTileColumns) add_tile(row, column);
  }

 private:
  void add_tile(Index row, Index column) {
    if (is_exact) {
      add_tile<true, CountedEntries>(row, column);
    } else if (counts_all(masks, block, row, column)) {
      add_tile<false, AllEntries>(row, column);
    } else {
      add_tile<false, CountedEntries>(row, column);
    }
  }

  template <bool kIsExact, class Counted>
  void add_tile(Index row, Index column) {
    const Index valid = minimum(kTileRows, block.rows.size() - row), first = block.columns.begin + column;
    const float* from = products + row * kBlockStride + column;
    float* tile = out + row * kBlockStride + column;
    const PrefixView prefix_view = view;
    const ColumnTerms columns = terms_of_columns(first);
    Vec col_total[kTileVectors] = {};
    for (Index r = 0; r < valid; ++r, from += kBlockStride, tile += kBlockStride) {
      const Index i = block.rows.begin + row + r;
      const double inverse = prefixes.rows.inverse[prefix][i];
      const Vec inverse_norm = broadcast(static_cast<float>(inverse)),
                scaled = broadcast(static_cast<float>(prefixes.matrix.scale * inverse));
      const RowTerms current = terms_of_row(i);
      const Counted counted(masks, i, block.columns.end);
      Vec row_total{};
#pragma GCC unroll 4
      for (int v = 0; v < kTileVectors; ++v) {
        const Index at = v * kLanes, j = first + at;
        __builtin_prefetch(from + kTileRows * kBlockStride + at);
        __builtin_prefetch(tile + kTileRows * kBlockStride + at, 1);
        const NormedProduct normed = prefix_view.normed(load(from + at), j);
        const Vec g = counted(gradient<kIsExact>(normed, current, columns, at), j);
        const Vec w = g * load(prefix_view.norm_high + j) * scaled;
        store(tile + at, is_first ? w : load(tile + at) + w);
        const Vec along = g * normed.value;
        row_total += along;
        col_total[v] += along * inverse_norm;
      }
      BlockSums::add(sums.row + (row + r) * kLanes, row_total * inverse_norm);
      const Index lane = masks.target_lane(i, first);
      if (lane >= 0 && lane < kTileColumns) tile[lane] += target_gradient(i, first + lane);
    }
    for (int v = 0; v < kTileVectors; ++v) BlockSums::add(sums.col + column + v * kLanes, col_total[v]);
  }

  // Copies of what a loop reads of a row and of columns, because the compiler would have to load the originals again
  // after every store.
  struct RowTerms {
    RowFactor exponent;
    Vec rounder, factor, lse_high, lse_low, weight;
  };
  struct ColumnTerms {
    const float *factor, *lse_high, *lse_low, *weight;
  };
  RowTerms terms_of_row(Index i) const {
    return {view.row(i),
            broadcast(rounder),
            broadcast(row_terms->factor[i]),
            broadcast(row_terms->lse_high[i]),
            broadcast(row_terms->lse_low[i]),
            broadcast(row_terms->weight[i])};
  }
  ColumnTerms terms_of_columns(Index j) const {
    return {col_terms->factor.data() + j, col_terms->lse_high.data() + j, col_terms->lse_low.data() + j,
            col_terms->weight.data() + j};
  }

  template <bool kIsExact>
  static Vec gradient(const NormedProduct& normed, const RowTerms& row, const ColumnTerms& columns, Index at) {
    if constexpr (!kIsExact)
      return row.exponent.exponential(normed, row.rounder) * (load(columns.factor + at) + row.factor);
    const Vec by_row = softmax(normed, row.exponent, row.lse_high, row.lse_low);
    const Vec by_column = softmax(normed, row.exponent, load(columns.lse_high + at), load(columns.lse_low + at));
    return by_row * row.weight + by_column * load(columns.weight + at);
  }

  // exp(s − lse)
  static Vec softmax(const NormedProduct& normed, const RowFactor& exponent, Vec lse_high, Vec lse_low) {
    const Vec rest = multiply_add(normed.value, exponent.low, normed.rest * exponent.high);
    return exp2(multiply_add(normed.value, exponent.high, -lse_high) + (rest - lse_low));
  }

  // W where j is the target of i.
  float target_gradient(Index i, Index j) const {
    const Index rows = prefixes.matrix.x.rows, columns = prefixes.matrix.y.rows;
    const Index at_row = prefix * rows + i, at_col = prefix * columns + j;
    const double logit = statistics.row_pos[at_row], cosine = prefixes.cosines[prefix][i];
    const double g = upstream.row_lse[at_row] * std::exp(logit - statistics.row_lse[at_row]) +
                     upstream.col_lse[at_col] * std::exp(logit - statistics.col_lse[at_col]) + upstream.row_pos[at_row];
    row_cosines[prefix][i] += g * cosine;
    col_cosines[prefix][j] += g * cosine;
    return static_cast<float>(prefixes.matrix.scale * g * prefixes.rows.inverse[prefix][i] *
                              prefixes.columns.inverse[prefix][j]);
  }
};

template <class A>
class PrefixBackward {
 public:
  PrefixBackward(const PrefixInputs& inputs, const PrefixStatistics& statistics, const PrefixStatistics& upstream,
                 Kept kept, int threads)
      : prefixes_(inputs, threads),
        matrix_(inputs.matrix),
        statistics_(statistics),
        upstream_(upstream),
        kept_(kept),
        threads_(threads),
        masks_(inputs.matrix),
        shift_(shift_of_unit_rows(inputs.matrix.scale)),
        row_cosines_(prefixes_.count, std::vector<double>(matrix_.x.rows)),
        col_cosines_(prefixes_.count, std::vector<double>(matrix_.y.rows)) {
    prefixes_.find_cosines(threads);
    const Index rows = matrix_.x.rows, columns = matrix_.y.rows;
    for (std::size_t k = 0; k < prefixes_.count; ++k) {
      row_terms_.emplace_back(statistics.row_lse + k * rows, upstream.row_lse + k * rows, rows, shift_);
      col_terms_.emplace_back(statistics.col_lse + k * columns, upstream.col_lse + k * columns, columns, shift_);
    }
  }

  void run(SimilarityGradients& gradients) {
    const BlockGrid grid(matrix_, threads_);
    const KeptPrefixes<A> kept(kept_, grid, prefixes_.count, threads_);
    const Scratch memory(prefixes_.floats<A>(grid, true), threads_);
    std::vector<SegmentScratch<A>> scratch = prefixes_.scratch<A>(memory, grid, true, threads_);
    grid.for_each_pair([&](int row_stripe, int column_stripe, int thread) {
      const Multiplying<A> multiplying;
      std::vector<BlockScratch<A>>& segments = scratch[thread].segments;
      AddPrefixGradient gradient{
          prefixes_, masks_, statistics_, upstream_, row_cosines_, col_cosines_, shift_.shifted_rounder()};
      gradient.out = scratch[thread].numbers;
      const auto take_rows = [&](Range rows) {
        for (auto& segment : segments) segment.take_chunk(rows);
      };
      const auto take_columns = [&](Range columns) {
        for (auto& segment : segments) segment.take_columns(columns);
      };
      walk_blocks(grid, row_stripe, column_stripe, take_rows, take_columns, [&](const Block& block) {
        form_products(block, kept, segments);
        add_gradients(block, kept, segments, gradient, gradients);
      });
    });
    finish(gradients.x, matrix_.x, prefixes_.rows, row_cosines_);
    finish(gradients.y, matrix_.y, prefixes_.columns, col_cosines_);
    for (const auto& cosines : row_cosines_)
      for (double t : cosines) gradients.scale += t;
  }

 private:
  // The products that the forward did not keep, each in the scratch block of its segment.
  void form_products(const Block& block, const KeptPrefixes<A>& kept, std::vector<BlockScratch<A>>& segments) {
    for (std::size_t k = 0; k < prefixes_.count && kept.of(k, block) == nullptr; ++k)
      segments[k].multiply(block, segments[k].numbers, [](Index, Index) {}, k == 0 ? nullptr : segments[k - 1].numbers);
  }

  // From the longest prefix to the shortest: each segment is multiplied by the sum of W over the prefixes that contain
  // it.
  void add_gradients(const Block& block, const KeptPrefixes<A>& kept, std::vector<BlockScratch<A>>& segments,
                     AddPrefixGradient& gradient, const SimilarityGradients& gradients) {
    gradient.block = block;
    for (std::size_t k = prefixes_.count; k-- > 0;) {
      const float* place = kept.of(k, block);
      gradient.prefix = k;
      gradient.view = prefixes_.view(k);
      gradient.row_terms = &row_terms_[k];
      gradient.col_terms = &col_terms_[k];
      gradient.is_exact = !row_terms_[k].trusts(block.rows) || !col_terms_[k].trusts(block.columns);
      gradient.products = place == nullptr ? segments[k].numbers : place;
      gradient.is_first = k + 1 == prefixes_.count;
      gradient.sums.clear();
      gradient.add_block();
      gradient.sums.flush(block, row_cosines_[k], &col_cosines_[k]);
      SimilarityGradients segment_gradients;
      segment_gradients.x = segment_of(gradients.x, k);
      segment_gradients.y = segment_of(gradients.y, k);
      segments[k].add_gradients(block, gradient.out, segment_gradients);
    }
  }

  MutableMatrix segment_of(MutableMatrix gradient, std::size_t k) const {
    if (gradient.data == nullptr) return gradient;
    gradient.data += prefixes_.begin(k);
    gradient.columns = prefixes_.inputs.ends[k] - prefixes_.begin(k);
    return gradient;
  }

  // Subtracts the part of the gradient that comes from the norms of the prefixes.
  void finish(MutableMatrix gradient, const AnyMatrix& features, const PrefixNorms& norms,
              const std::vector<std::vector<double>>& cosines) const {
    if (gradient.data == nullptr) return;
    visit_dtype(features, [&](auto m) {
      for_each_stripe(threads_, m.rows, 1, [&](Range rows, int) {
        for (Index i = rows.begin; i < rows.end; ++i) {
          double along = 0;
          for (std::size_t k = prefixes_.count; k-- > 0;) {
            const double inverse = norms.inverse[k][i];
            if (!norms.is_clamped(k, i)) along += matrix_.scale * cosines[k][i] * inverse * inverse;
            for (Index c = prefixes_.begin(k); c < prefixes_.inputs.ends[k]; ++c)
              gradient.row(i)[c] -= static_cast<float>(along * widen(m.row(i)[c]));
          }
        }
      });
    });
  }

  Prefixes prefixes_;
  const SimilarityInputs& matrix_;
  PrefixStatistics statistics_, upstream_;
  Kept kept_;
  int threads_;
  PairMasks masks_;
  Shift shift_;
  std::vector<SharedSoftmaxTerms> row_terms_, col_terms_;
  std::vector<std::vector<double>> row_cosines_, col_cosines_;  // t and u of every prefix
};

void prefix_similarity_backward(const PrefixInputs& inputs, const PrefixStatistics& statistics,
                                const PrefixStatistics& upstream, Kept kept, SimilarityGradients& gradients,
                                int threads) {
  const Index prefixes = static_cast<Index>(inputs.ends.size()), rows = prefixes * inputs.matrix.x.rows,
              columns = prefixes * inputs.matrix.y.rows;
  with_arithmetic(inputs.matrix, {{upstream.row_lse, rows}, {upstream.col_lse, columns}, {upstream.row_pos, rows}},
                  threads, [&](auto arithmetic) {
                    PrefixBackward<decltype(arithmetic)>(inputs, statistics, upstream, kept, threads).run(gradients);
                  });
}

}  // namespace
}  // namespace mmcore

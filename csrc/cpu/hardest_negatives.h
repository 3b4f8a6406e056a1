// The hardest negative of every row and every column.
//
//   row_index_i = argmax_{j counted} ⟨x_i, y_j⟩      col_index_j = argmax_{i counted} ⟨x_i, y_j⟩      −1 where none is
//
// Never stored: the products. A tile in L1 is compared with the largest products of its rows and columns so far.
// Loop order: similarity_blocks.h.
// Precision: float32 products. Of equal products the one with the lowest index wins, whichever thread finds it first,
// so the result does not depend on the number of threads. A NaN is never the largest.
#pragma once

#include "choose_arithmetic.h"
#include "pairs.h"
#include "similarity_blocks.h"

namespace mmcore {
namespace {

// The largest product of every row or column so far, and its index.
struct Largest {
  std::vector<float> value;
  Index* index;

  Largest(Index count, Index* out) : value(count, -kInfinity), index(out) { std::fill_n(out, count, Index{-1}); }

  void offer(Index at, float candidate, Index from) {
    const bool is_better = candidate > value[at] || (candidate == value[at] && from < index[at]);
    if (!is_better) return;
    value[at] = candidate;
    index[at] = from;
  }
};

// Epilogue of one block: keeps the largest product of each row, one for each lane, and of each column.
struct CompareProducts {
  const PairMasks& masks;
  Block block{};
  const float* products = nullptr;
  float row_value[kBlock * kLanes]{}, col_value[kBlock + kTileColumns]{};
  std::int32_t row_index[kBlock * kLanes]{}, col_index[kBlock + kTileColumns]{};

  void enter(const Block& next, const float* numbers) {
    block = next;
    products = numbers;
    std::fill(std::begin(row_value), std::end(row_value), -kInfinity);
    std::fill(std::begin(col_value), std::end(col_value), -kInfinity);
  }

  void leave(Largest& rows, Largest& columns) const {
    for (Index at = 0; at < block.rows.size() * kLanes; ++at)
      if (row_value[at] > -kInfinity) rows.offer(block.rows.begin + at / kLanes, row_value[at], row_index[at]);
    for (Index c = 0; c < block.columns.size(); ++c)
      if (col_value[c] > -kInfinity) columns.offer(block.columns.begin + c, col_value[c], col_index[c]);
  }

  void operator()(Index row, Index column) {
    const Index valid = minimum(kTileRows, block.rows.size() - row);
    IntVec lane;
    for (int l = 0; l < kLanes; ++l) lane[l] = l;
    for (Index r = 0; r < valid; ++r) {
      const Index i = block.rows.begin + row + r;
      for (int v = 0; v < kTileVectors; ++v) {
        const Index c = column + v * kLanes, j = block.columns.begin + c;
        const IntVec is_inside = lane < static_cast<std::int32_t>(maximum(0, block.columns.size() - c));
        const Vec product = load(products + (row + r) * kBlockStride + c);
        const Vec candidate = masks.at(i, j).keep & is_inside ? product : broadcast(-kInfinity);
        keep_larger(candidate, lane + static_cast<std::int32_t>(j), row_value + (row + r) * kLanes,
                    row_index + (row + r) * kLanes);
        keep_larger(candidate, lane * 0 + static_cast<std::int32_t>(i), col_value + c, col_index + c);
      }
    }
  }

 private:
  static void keep_larger(Vec candidate, IntVec from, float* value, std::int32_t* index) {
    const Vec before = load(value);
    const IntVec is_better = candidate > before;
    if (!any(is_better)) return;
    const IntVec chosen = is_better ? from : load(index);
    store(value, is_better ? candidate : before);
    std::memcpy(index, &chosen, sizeof(chosen));
  }
};

template <class A>
void find_hardest_negatives(const SimilarityInputs& inputs, Index* row_index, Index* col_index, int threads) {
  const PairMasks masks(inputs);
  Largest rows(inputs.x.rows, row_index), columns(inputs.y.rows, col_index);
  const BlockGrid grid(inputs, threads);
  Scratch scratch(BlockScratch<A>::floats(grid, inputs.x.columns, false), threads);
  grid.for_each_pair([&](int row_stripe, int column_stripe, int thread) {
    const Multiplying<A> multiplying;
    BlockScratch<A> blocks(scratch.of_thread(thread), inputs, grid, false);
    CompareProducts epilogue{masks};
    blocks.walk(grid, row_stripe, column_stripe, [&](const Block& block) {
      epilogue.enter(block, blocks.numbers);
      blocks.multiply(block, blocks.numbers, epilogue);
      epilogue.leave(rows, columns);
    });
  });
}

void hardest_negatives(const SimilarityInputs& inputs, Index* row_index, Index* col_index, int threads) {
  with_arithmetic(inputs, threads, [&](auto arithmetic) {
    find_hardest_negatives<decltype(arithmetic)>(inputs, row_index, col_index, threads);
  });
}

}  // namespace
}  // namespace mmcore

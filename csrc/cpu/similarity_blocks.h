// The walk over the blocks of the similarity matrix that its kernels share, forward and backward.
//
//   S = x·yᵀ in blocks of kBlock × kBlock;     grad_x += G·y,  grad_y += Gᵀ·x  block by block
//
// Loop order: pairs of stripes by the schedules of parallel.h; in a pair row chunks, column blocks, row blocks.
// Operands are packed per chunk and per block, never whole. A symmetric matrix is walked over its upper triangle: an
// entry off the diagonal blocks stands for (i, j) and for (j, i), G holds the sum of both gradients there, and grad_x
// receives G·x and Gᵀ·x.
#pragma once

#include <utility>

#include "../kernels.h"
#include "matmul.h"
#include "scratch.h"

namespace mmcore {
namespace {

// Rows of x that are packed at a time. Packing y once per chunk then costs 1/kChunk of the multiply-adds.
constexpr Index kChunk = (kHasMatrixUnit ? 4 : 8) * kBlock;

struct Block {
  Range rows, columns;
  bool is_diagonal;  // of a symmetric matrix
  Index number;      // among all blocks, for a given number of threads

  ConstMatrix view(const float* numbers) const { return {numbers, rows.size(), columns.size(), kBlockStride}; }
};

// The division of the matrix into stripes for the threads, and of these into blocks.
class BlockGrid {
 public:
  BlockGrid(const SimilarityInputs& inputs, int threads)
      : is_symmetric_(inputs.is_symmetric),
        threads_(threads),
        row_stripes_(stripes(inputs.x.rows, kStripeRows)),
        column_stripes_(is_symmetric_ ? row_stripes_ : stripes(inputs.y.rows, kTileColumns)) {}

  // body(row stripe, column stripe, thread); the indices name stripes.
  template <class Body>
  void for_each_pair(Body body) const {
    is_symmetric_ ? for_each_tournament_pair(threads_, body) : for_each_latin_square_pair(threads_, body);
  }

  bool is_symmetric() const { return is_symmetric_; }
  Range rows(int stripe) const { return row_stripes_[stripe]; }
  Range columns(int stripe) const { return column_stripes_[stripe]; }
  // How many rows of x are packed at a time.
  Index chunk() const {
    Index largest = 0;
    for (const Range& rows : row_stripes_) largest = maximum(largest, rows.size());
    return minimum(kChunk, round_up(largest, kBlock));
  }

  Index block_count() const {
    const Index rows = blocks_before(row_stripes_, row_stripes_.size()),
                columns = blocks_before(column_stripes_, column_stripes_.size());
    return is_symmetric_ ? rows * (rows + 1) / 2 : rows * columns;
  }
  Index number(int row_stripe, Index i, int column_stripe, Index j) const {
    const Index row = blocks_before(row_stripes_, row_stripe) + (i - rows(row_stripe).begin) / kBlock,
                column = blocks_before(column_stripes_, column_stripe) + (j - columns(column_stripe).begin) / kBlock;
    if (is_symmetric_) return column * (column + 1) / 2 + row;
    return row * blocks_before(column_stripes_, column_stripes_.size()) + column;
  }

 private:
  std::vector<Range> stripes(Index total, Index unit) const {
    const int count = is_symmetric_ ? 2 * threads_ : threads_;
    std::vector<Range> result;
    for (int part = 0; part < count; ++part) result.push_back(stripe(total, unit, part, count));
    return result;
  }
  static Index blocks_before(const std::vector<Range>& stripes, std::size_t stripe) {
    Index count = 0;
    for (std::size_t s = 0; s < stripe; ++s) count += (stripes[s].size() + kBlock - 1) / kBlock;
    return count;
  }

  bool is_symmetric_;
  int threads_;
  std::vector<Range> row_stripes_, column_stripes_;
};

// visit(block) for every block of a pair of stripes, after take_rows(rows of the chunk) and take_columns(columns).
template <class TakeRows, class TakeColumns, class Visit>
void walk_blocks(const BlockGrid& grid, int row_stripe, int column_stripe, TakeRows take_rows, TakeColumns take_columns,
                 Visit visit) {
  const Range rows = grid.rows(row_stripe), columns = grid.columns(column_stripe);
  if (columns.size() == 0) return;
  const Index chunk = grid.chunk();
  const bool is_triangle = grid.is_symmetric() && row_stripe == column_stripe;
  for (Index begin = rows.begin; begin < rows.end; begin += chunk) {
    const Range in_chunk{begin, minimum(begin + chunk, rows.end)};
    take_rows(in_chunk);
    for (Index j = is_triangle ? begin : columns.begin; j < columns.end; j += kBlock) {
      const Range in_block{j, minimum(j + kBlock, columns.end)};
      take_columns(in_block);
      for (Index i = begin; i < (is_triangle ? minimum(in_chunk.end, j + 1) : in_chunk.end); i += kBlock)
        visit(Block{{i, minimum(i + kBlock, in_chunk.end)},
                    in_block,
                    is_triangle && i == j,
                    grid.number(row_stripe, i, column_stripe, j)});
    }
  }
}

// One thread's packed operands and, where gradients are wanted, the operands of the products with G.
template <class A>
class BlockScratch {
 public:
  static Index floats(const BlockGrid& grid, Index depth, bool has_gradients) {
    const Index rows = grid.chunk(),
                forward = Lhs<A>::floats(rows, depth) + Rhs<A>::floats(kBlock, depth) + kBlockFloats,
                backward =
                    Rhs<A>::floats(depth, rows) + Rhs<A>::floats(depth, kBlock) + 2 * Lhs<A>::floats(kBlock, kBlock);
    return forward + (has_gradients ? backward : 0) + 112;
  }

  BlockScratch(float* data, const SimilarityInputs& inputs, const BlockGrid& grid, bool has_gradients)
      : inputs_(inputs), depth_(inputs.x.columns) {
    Carver carver(data);
    const Index chunk = grid.chunk();
    rows_of_x_ = carver.take(Lhs<A>::floats(chunk, depth_));
    rows_of_y_ = carver.take(Rhs<A>::floats(kBlock, depth_));
    numbers = carver.take(kBlockFloats);
    if (!has_gradients) return;
    columns_of_x_ = carver.take(Rhs<A>::floats(depth_, chunk));
    columns_of_y_ = carver.take(Rhs<A>::floats(depth_, kBlock));
    rows_of_g_ = carver.take(Lhs<A>::floats(kBlock, kBlock));
    columns_of_g_ = carver.take(Lhs<A>::floats(kBlock, kBlock));
  }

  // visit(block) for every block of a pair of stripes; in it `multiply` and `add_gradients` may be called.
  template <class Visit>
  void walk(const BlockGrid& grid, int row_stripe, int column_stripe, Visit visit) {
    walk_blocks(
        grid, row_stripe, column_stripe, [&](Range rows) { take_chunk(rows); },
        [&](Range columns) { take_columns(columns); }, visit);
  }

  // For callers with a walk of their own: set the rows and columns that `multiply` and `add_gradients` read. Each
  // operand is packed when it is first needed.
  void take_chunk(Range rows) {
    rows_ = rows;
    has_rows_of_x_ = has_columns_of_x_ = false;
  }
  void take_columns(Range columns) {
    columns_ = columns;
    has_rows_of_y_ = has_columns_of_y_ = false;
  }

  // out = base + the block of x·yᵀ; no base means zeros. epilogue(row, column) follows each finished tile.
  template <class Epilogue>
  void multiply(const Block& block, float* out, Epilogue&& epilogue, const float* base = nullptr) {
    if (!std::exchange(has_rows_of_x_, true)) Lhs<A>::pack_rows(inputs_.x, rows_.begin, rows_.size(), rows_of_x_);
    if (!std::exchange(has_rows_of_y_, true)) Rhs<A>::pack_rows(inputs_.y, columns_.begin, columns_.size(), rows_of_y_);
    multiply_block<A>(Lhs<A>(rows_of_x_, depth_).from_lane(block.rows.begin - rows_.begin), Rhs<A>(rows_of_y_, depth_),
                      block.rows.size(), block.columns.size(), depth_, out, epilogue, base);
  }

  // Adds the block's part to the gradients that are wanted; `g` is not scaled yet.
  void add_gradients(const Block& block, const float* g, const SimilarityGradients& gradients) {
    if (gradients.x.data != nullptr) {
      if (!std::exchange(has_columns_of_y_, true))
        Rhs<A>::pack_columns(inputs_.y, columns_.begin, columns_.size(), columns_of_y_);
      const Index depth = block.columns.size();
      Lhs<A>::pack_rows(block.view(g), rows_of_g_);
      multiply_into<A>(Lhs<A>(rows_of_g_, depth), Rhs<A>(columns_of_y_, depth), depth,
                       gradients.x.rows_from(block.rows.begin, block.rows.size()));
    }
    const MutableMatrix other = inputs_.is_symmetric ? gradients.x : gradients.y;
    if (other.data != nullptr && !block.is_diagonal) {
      if (!std::exchange(has_columns_of_x_, true))
        Rhs<A>::pack_columns(inputs_.x, rows_.begin, rows_.size(), columns_of_x_);
      const Index depth = block.rows.size(), first = (block.rows.begin - rows_.begin) / A::kNumbersPerUnit;
      Lhs<A>::pack_columns(block.view(g), columns_of_g_);
      multiply_into<A>(Lhs<A>(columns_of_g_, depth), Rhs<A>(columns_of_x_, rows_.size()).from_unit(first), depth,
                       other.rows_from(block.columns.begin, block.columns.size()));
    }
  }

  float* numbers;  // one block

 private:
  const SimilarityInputs& inputs_;
  Index depth_;
  Range rows_{}, columns_{};
  bool has_rows_of_x_ = false, has_rows_of_y_ = false, has_columns_of_x_ = false, has_columns_of_y_ = false;
  float *rows_of_x_, *rows_of_y_, *columns_of_x_ = nullptr, *columns_of_y_ = nullptr, *rows_of_g_ = nullptr,
                                  *columns_of_g_ = nullptr;
};

// Whole blocks of exponentials that the forward keeps for the backward, spread evenly over the matrix, so that every
// thread has its share. They are valid for the same grid of blocks only; the first float is the grid's fingerprint.
template <class A>
class KeptBlocks {
 public:
  KeptBlocks(Kept kept, const BlockGrid& grid, int threads)
      : data_(kept.data),
        mark_(static_cast<float>((threads * 64 + kLanes) * 16 + A::kNumbersPerUnit * 4 + A::kParts)),
        total_(grid.block_count()),
        count_(minimum(total_, maximum(0, kept.size - 16) / kBlockFloats)) {}

  // To be called before anything is kept.
  void prepare() const {
    if (count_ == 0) return;
    data_[0] = mark_;
    prefer_large_pages(data_, 4 * count_ * kBlockFloats);
  }
  bool are_there() const { return count_ > 0 && data_[0] == mark_; }

  // Where a block is kept; nullptr if it is not.
  float* of(const Block& block) const {
    const Index slot = block.number * count_ / total_;
    return (block.number + 1) * count_ / total_ == slot ? nullptr : data_ + 16 + slot * kBlockFloats;
  }

  // The rest of the memory, behind these blocks.
  Kept rest(Kept memory) const {
    if (count_ == 0) return {};
    const Index used = 16 + count_ * kBlockFloats;
    return {memory.data + used, memory.size - used};
  }

 private:
  float* data_;
  float mark_;
  Index total_, count_;
};

}  // namespace
}  // namespace mmcore

// How two numbers of the operands are multiplied: the parameter `A` of packing and of the block product.
//
//   Float32          float32 · float32 by vectors; LongFloat32 in longer chains
//   Bfloat16Pairs    bfloat16 · bfloat16 by vectors of pairs
//   BfloatParts      float32 numbers as sums of bfloat16 numbers, by tiles of the matrix unit (amx.h)
//
// All sum in float32. Packed operands consist of 32-bit units: one float32, or two bfloat16 that are neighbours along
// the depth of the product. Where a number has several parts, it has one unit for each. An arithmetic states the layout
// of its operands (operand.h): how many lanes, rows of lhs or columns of rhs, are packed side by side, and to how many
// units the depth is padded.
#pragma once

#include "amx.h"
#include "parallel.h"

namespace mmcore {
namespace {

// Products by vectors: 6×16 sums in the 16 registers of AVX2, 12×32 in the 32 of AVX-512. Beside the matrix unit,
// vectors multiply only what it cannot, and the rows divide its 32.
constexpr int kSumRows = kHasMatrixUnit ? 8 : kLanes == 16 ? 12 : 6;
// The rows and columns of products that an epilogue receives at once. Beside the matrix unit they are few, so that an
// epilogue fits between its instructions (tile_product.h).
constexpr int kTileRows = kHasMatrixUnit ? 2 : kSumRows;
constexpr int kTileVectors = 2;
constexpr int kTileColumns = kTileVectors * kLanes;

// The layout of products by vectors. They have the same bits if lhs and rhs change places. kChain is the number of
// units that are added to one sum before the next sum begins (vector_product.h); kRoundingsPerUnit says how often a sum
// is rounded, at most, while one is added.
struct ByVectors {
  static constexpr bool kUsesMatrixUnit = false;
  static constexpr Index kParts = 1, kUnitsPerStep = 1;
  static constexpr Index kLhsLanes = kSumRows, kRhsLanes = kTileColumns;

  // Of two chains. Sums of integers are not sums of float32 numbers.
  static Vec added(Vec a, Vec b) { return a + b; }
};

// float32 · float32; 16-bit numbers are widened, which is exact.
struct Float32 : ByVectors {
  using Transposed = Float32;
  static constexpr Index kNumbersPerUnit = 1;
  // Short, because only the sum rounds. Without FMA, as on SSE2, the products are rounded as well.
  static constexpr Index kChain = kLanes == 4 ? 16 : 32, kRoundingsPerUnit = 1;

  static void add_product(Vec& sum, Vec a, Vec b) { mmcore::add_product(sum, a, b); }

  // Units along a row: its own numbers.
  template <class T>
  static void units_of_row(const T* row, Index columns, float* out) {
    Index k = 0;
    for (; k + kLanes <= columns; k += kLanes) store(out + k, load_first(row + k, kLanes));
    for (; k < columns; ++k) out[k] = widen(row[k]);
  }
  // Units across the rows of one step of the depth.
  template <class T>
  static void units_of_rows(const T* row, const T*, Index columns, float* out) {
    units_of_row(row, columns, out);
  }
};

// The same in long chains, which are faster and round more: for numbers whose error is bounded and not shown.
struct LongFloat32 : Float32 {
  using Transposed = LongFloat32;
  static constexpr Index kChain = 256;
};

// bfloat16 · bfloat16 in pairs; wider numbers are rounded first.
struct Bfloat16Pairs : ByVectors {
  using Transposed = Bfloat16Pairs;
  static constexpr Index kNumbersPerUnit = 2;
  static constexpr Index kChain = 256;           // rounding the operands costs a hundred times more than a long chain
  static constexpr Index kRoundingsPerUnit = 4;  // two additions, rounded to either side

  static void add_product(Vec& sum, Vec a, Vec b) { add_pair_product(sum, a, b); }

  static std::uint32_t bits(Bfloat16 value) { return value.bits; }
  static std::uint32_t bits(Float16 value) { return bfloat16_bits(widen(value)); }
  static std::uint32_t bits(float value) { return bfloat16_bits(value); }

  static void units_of_row(const Bfloat16* row, Index columns, float* out) {
    std::memcpy(out, row, columns * sizeof(Bfloat16));
    if (columns % 2 != 0) std::memset(reinterpret_cast<char*>(out) + columns * sizeof(Bfloat16), 0, sizeof(Bfloat16));
  }

  template <class T>
  static void units_of_row(const T* row, Index columns, float* out) {
    Index k = 0;
    if constexpr (std::is_same_v<T, float>)
      for (; k + 2 * kLanes <= columns; k += 2 * kLanes)
        store(out + k / 2, neighbours_in_bfloat16(load(row + k), load(row + k + kLanes)));
    auto* units = reinterpret_cast<std::uint32_t*>(out);
    for (; k + 2 <= columns; k += 2) units[k / 2] = bits(row[k]) | bits(row[k + 1]) << 16;
    if (k < columns) units[k / 2] = bits(row[k]);
  }

  // `second` may be nullptr, for zeros.
  template <class T>
  static void units_of_rows(const T* first, const T* second, Index columns, float* out) {
    Index k = 0;
    if constexpr (std::is_same_v<T, float>)
      for (; second != nullptr && k + kLanes <= columns; k += kLanes)
        store(out + k, interleaved_in_bfloat16(load(first + k), load(second + k)));
    auto* units = reinterpret_cast<std::uint32_t*>(out);
    if (second == nullptr) {
      for (; k < columns; ++k) units[k] = bits(first[k]);
    } else {
      for (; k < columns; ++k) units[k] = bits(first[k]) | bits(second[k]) << 16;
    }
  }
};

// Numbers as sums of kCount bfloat16 numbers, of which each holds the next eight bits. Of the products of parts p and
// q, those with p + q < kOrders are summed. Three parts are a float32 and two a float16, exactly, unless a number is
// not finite, too large to be rounded, or so small that a part is denormal (choose_arithmetic.h).
// The products of parts are added one after another; if lhs and rhs change places, those of Transposed have the same
// bits.
template <int kCount, int kOrders, bool kIsTransposed = false>
struct BfloatParts {
  using Transposed = BfloatParts<kCount, kOrders, !kIsTransposed>;
  static constexpr bool kSwapsParts = kIsTransposed;
  static constexpr bool kUsesMatrixUnit = true;
  static constexpr Index kNumbersPerUnit = 2, kParts = kCount, kUnitsPerStep = 16;
  static constexpr Index kLhsLanes = 32, kRhsLanes = 32;

  static constexpr bool multiplies(int p, int q) { return p + q < kOrders; }

  // The parts of two vectors as pairs: of neighbours, (a₀, a₁), …, (b₀, b₁), …, or interleaved, (a₀, b₀), (a₁, b₁), …
  template <bool kInterleaved>
  static void pairs(Vec a, Vec b, Vec (&out)[kCount]) {
#pragma GCC unroll 3
    for (int part = 0; part < kCount; ++part) {
      const bool is_last = part == kCount - 1;
      const Vec high_a = is_last ? a : rounded_to_bfloat16(a), high_b = is_last ? b : rounded_to_bfloat16(b);
      out[part] = kInterleaved ? interleaved_in_bfloat16(high_a, high_b) : neighbours_in_bfloat16(high_a, high_b);
      a -= high_a;
      b -= high_b;
    }
  }
};

using Bfloat16Tiles = BfloatParts<1, 1>;
using Float16Tiles = BfloatParts<2, 3>;
using Float32Tiles = BfloatParts<3, 3>;
// Of float32 numbers with two parts each, as torch's precision "high" promises.
using HighFloat32Tiles = BfloatParts<2, 2>;

// Units of one part of a row of `depth` numbers.
template <class A>
constexpr Index units(Index depth) {
  return round_up((depth + A::kNumbersPerUnit - 1) / A::kNumbersPerUnit, A::kUnitsPerStep);
}

}  // namespace
}  // namespace mmcore

// Products of rows of bytes (byte_rows.h) by vectors, summed in int32: two arithmetics of the block product.
//
//   ByteQuads     units of four bytes, those of lhs raised by 128, because the instruction wants them unsigned
//   ShortPairs    units of two bytes that are widened to int16, for all other processors
//
// Sums are exact up to a depth of kLargestByteDepth. Those of ByteQuads are too large by 128·Σ_k rhs(k, c), which the
// epilogue subtracts.
#pragma once

#include "arithmetic.h"
#include "byte_vec.h"

namespace mmcore {
namespace {

constexpr Index kLargestByteDepth = 65536;  // 255·127·depth stays below 2³¹

struct ByIntegers : ByVectors {
  static constexpr Index kChain = 256;  // a slice of the depth (vector_product.h): sums of integers need no chains

  static Vec added(Vec a, Vec b) { return added_as_integers(a, b); }
};

struct ByteQuads : ByIntegers {
  using Transposed = ByteQuads;
  static constexpr Index kNumbersPerUnit = 4;
  static constexpr std::int32_t kRaise = 128;

  static void add_product(Vec& sum, Vec a, Vec b) { add_byte_products(sum, a, b); }
  static void units_of_row(const std::int8_t* row, Index columns, float* out) {
    std::memset(out, 0, units<ByteQuads>(columns) * sizeof(float));
    std::memcpy(out, row, columns);
  }
  // One vector of units.
  static Vec load_units(const std::int8_t* row) { return load(reinterpret_cast<const float*>(row)); }

  static void raise(float* packed, Index count) {
    for (Index k = 0; k < count; ++k) {
      std::uint32_t bits;
      std::memcpy(&bits, packed + k, sizeof(bits));
      bits ^= 0x80808080u;
      std::memcpy(packed + k, &bits, sizeof(bits));
    }
  }
};

struct ShortPairs : ByIntegers {
  using Transposed = ShortPairs;
  static constexpr Index kNumbersPerUnit = 2;
  static constexpr std::int32_t kRaise = 0;

  static void add_product(Vec& sum, Vec a, Vec b) { add_short_products(sum, a, b); }
  static void units_of_row(const std::int8_t* row, Index columns, float* out) {
    Index k = 0;
    for (; k + 2 * kLanes <= columns; k += 2 * kLanes) store(out + k / 2, widened_to_shorts(row + k));
    for (; k < columns; k += 2) {
      const std::int16_t pair[2] = {row[k], k + 1 < columns ? row[k + 1] : std::int8_t{0}};
      std::memcpy(out + k / 2, pair, sizeof(pair));
    }
  }
  static Vec load_units(const std::int8_t* row) { return widened_to_shorts(row); }

  static void raise(float*, Index) {}
};

}  // namespace
}  // namespace mmcore

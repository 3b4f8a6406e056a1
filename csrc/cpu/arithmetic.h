// How two numbers of the operands are multiplied: the parameter `A` of packing and of the block product.
//
// Packed operands consist of 32-bit units: one float32, or two bfloat16 that are neighbours along the depth of the
// product. So both kinds share their layouts, and a depth is counted in units. kChain is the number of units that are
// added to one sum before the next sum begins (matmul.h). It is short for float32, where only the sum rounds. For
// bfloat16 it does not matter, because rounding the operands costs a hundred times more.
#pragma once

#include "../kernels.h"
#include "parallel.h"
#include "vec.h"

namespace mmcore {
namespace {

// float32 · float32; 16-bit numbers are widened, which is exact.
struct Float32 {
  static constexpr Index kNumbersPerUnit = 1;
  // Without FMA, as on SSE2, the products are rounded as well.
  static constexpr Index kChain = kLanes == 4 ? 16 : 32;

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

// bfloat16 · bfloat16 in pairs, summed in float32; wider numbers are rounded first.
struct Bfloat16Pairs {
  static constexpr Index kNumbersPerUnit = 2;
  static constexpr Index kChain = 256;

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

template <class A>
constexpr Index units(Index depth) {
  return (depth + A::kNumbersPerUnit - 1) / A::kNumbersPerUnit;
}

// Whether products are those of Bfloat16Pairs; Float32 serves every other precision.
inline bool multiplies_pairs(Precision precision) { return kHasBfloat16Products && precision == Precision::kMedium; }

}  // namespace
}  // namespace mmcore

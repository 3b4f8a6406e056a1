// Which arithmetic multiplies the operands of a call.
//
//   precision          without a matrix unit                     with one
//   kMedium            Bfloat16Pairs, where they are fast        Bfloat16Tiles
//   kHigh              Float32                                   HighFloat32Tiles; float16 as kHighest
//   kHighest           Float32                                   Float32Tiles, Float16Tiles for float16
//
// Numbers that cannot be split into parts are multiplied as Float32, which needs no parts.
#pragma once

#include <atomic>
#include <cmath>
#include <initializer_list>

#include "../kernels.h"
#include "arithmetic.h"

namespace mmcore {
namespace {

// Sums of parts are as exact as the numbers if the largest lies between these, or if all are 0. Products of larger
// numbers with raised gradients (gradient_sums.h) may overflow. In a matrix of smaller ones, the last parts would be
// denormal, and flushed to 0.
constexpr float kLargestSplit = 0x1p60f, kSmallestSplit = 0x1p-60f;

inline bool is_split_range(double largest) {
  return largest == 0 || (largest >= kSmallestSplit && largest <= kLargestSplit);
}

// The largest magnitude of a row; a NaN counts as more than infinity.
template <class T>
inline std::uint32_t largest_bits(const T* row, Index columns) {
  BitsVec largest{};
  for (Index k = 0; k < columns; k += kLanes) {
    const BitsVec bits = reinterpret_cast<BitsVec>(load_first(row + k, columns - k)) & 0x7fffffffu;
    largest = bits > largest ? bits : largest;
  }
  std::uint32_t result = 0;
  for (int lane = 0; lane < kLanes; ++lane) result = largest[lane] > result ? largest[lane] : result;
  return result;
}

inline bool can_split(const AnyMatrix& numbers, int threads) {
  std::atomic<std::uint32_t> largest{0};
  visit_dtype(numbers, [&](auto m) {
    for_each_stripe(threads, m.rows, 1, [&](Range rows, int) {
      std::uint32_t mine = 0;
      for (Index i = rows.begin; i < rows.end; ++i) {
        const std::uint32_t bits = largest_bits(m.row(i), m.columns);
        mine = bits > mine ? bits : mine;
      }
      for (std::uint32_t before = largest; before < mine && !largest.compare_exchange_weak(before, mine);) {
      }
    });
  });
  const std::uint32_t bits = largest;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return is_split_range(value);
}

// A vector, or nullptr.
template <class T>
struct Numbers {
  const T* data;
  Index size;
};
template <class T>
inline bool can_split(const Numbers<T>& numbers) {
  double largest = 0;
  for (Index i = 0; numbers.data != nullptr && i < numbers.size; ++i) {
    const double magnitude = std::abs(static_cast<double>(numbers.data[i]));
    if (!(magnitude <= largest)) largest = magnitude;
    if (largest != largest) return false;
  }
  return is_split_range(largest);
}

// run(A{}) with the arithmetic for `precision` and numbers of `dtype`. `splits()` says whether every number of the
// call can be split; it is asked only where it matters.
template <class Splits, class Run>
decltype(auto) with_arithmetic(Precision precision, Dtype dtype, Splits splits, Run run) {
  if constexpr (kHasMatrixUnit) {
    if (precision == Precision::kMedium) return run(Bfloat16Tiles{});
    if (!splits()) return run(Float32{});
    if (dtype == Dtype::kFloat16) return run(Float16Tiles{});
    return precision == Precision::kHigh ? run(HighFloat32Tiles{}) : run(Float32Tiles{});
  } else {
    return kHasBfloat16Products && precision == Precision::kMedium ? run(Bfloat16Pairs{}) : run(Float32{});
  }
}

inline bool can_split(const SimilarityInputs& inputs, int threads) {
  return can_split(inputs.x, threads) && (inputs.is_symmetric || can_split(inputs.y, threads));
}

// The same for the features of a similarity matrix.
template <class Run>
decltype(auto) with_arithmetic(const SimilarityInputs& inputs, int threads, Run run) {
  return with_arithmetic(inputs.precision, inputs.x.dtype, [&] { return can_split(inputs, threads); }, run);
}

// And where each number of `weights` is a factor of the gradients of some logits.
template <class Run>
decltype(auto) with_arithmetic(const SimilarityInputs& inputs, std::initializer_list<Numbers<double>> weights,
                               int threads, Run run) {
  const auto splits = [&] {
    for (const Numbers<double>& part : weights)
      if (!can_split(part)) return false;
    return can_split(inputs, threads);
  };
  return with_arithmetic(inputs.precision, inputs.x.dtype, splits, run);
}

// Both matrices of a distillation have one arithmetic, which is exact enough for either.
template <class Run>
decltype(auto) with_arithmetic(const DistillationInputs& inputs, std::initializer_list<Numbers<double>> weights,
                               int threads, Run run) {
  const SimilarityInputs &student = inputs.student, &teacher = inputs.teacher;
  const Precision precision = student.precision < teacher.precision ? student.precision : teacher.precision;
  const bool has_float32 = student.x.dtype == Dtype::kFloat32 || teacher.x.dtype == Dtype::kFloat32;
  const auto splits = [&] {
    for (const Numbers<double>& part : weights)
      if (!can_split(part)) return false;
    return can_split(student, threads) && can_split(teacher, threads);
  };
  return with_arithmetic(precision, has_float32 ? Dtype::kFloat32 : Dtype::kFloat16, splits, run);
}

// `grad_output` is nullptr in the forward.
template <class Run>
decltype(auto) with_arithmetic(const ProjectionInputs& inputs, const AnyMatrix* grad_output, int threads, Run run) {
  const Index columns = inputs.x.columns;
  const auto splits = [&] {
    return can_split(inputs.x, threads) && can_split(inputs.weight, threads) &&
           can_split(Numbers<float>{inputs.norm.weight, columns}) &&
           can_split(Numbers<float>{inputs.norm.bias, columns}) &&
           (grad_output == nullptr || can_split(*grad_output, threads));
  };
  return with_arithmetic(inputs.precision, inputs.x.dtype, splits, run);
}

}  // namespace
}  // namespace mmcore

// Views of row-major matrices. The unit step is along columns; row_stride counts elements.
#pragma once

#include <cstdint>

namespace mmcore {

using Index = std::int64_t;

template <class T>
struct Matrix {
  T* data = nullptr;
  Index rows = 0;
  Index columns = 0;
  Index row_stride = 0;

  T* row(Index i) const { return data + i * row_stride; }
  Matrix rows_from(Index begin, Index count) const { return {row(begin), count, columns, row_stride}; }
  operator Matrix<const T>() const { return {data, rows, columns, row_stride}; }
};

using ConstMatrix = Matrix<const float>;
using MutableMatrix = Matrix<float>;

// Storage only; kernels widen to float32 or multiply pairs (cpu/vec.h).
struct Bfloat16 {
  std::uint16_t bits;
};
struct Float16 {
  std::uint16_t bits;
};

enum class Dtype { kFloat32, kBfloat16, kFloat16 };

// Rows of numbers in any dtype that the kernels read.
struct Features {
  const void* data = nullptr;
  Dtype dtype = Dtype::kFloat32;
  Index rows = 0;
  Index columns = 0;
  Index row_stride = 0;

  template <class T>
  Matrix<const T> as() const {
    return {static_cast<const T*>(data), rows, columns, row_stride};
  }
};

// visit(matrix) with the view of the dtype that `features` has.
template <class Visit>
decltype(auto) visit_features(const Features& features, Visit&& visit) {
  switch (features.dtype) {
    case Dtype::kBfloat16:
      return visit(features.as<Bfloat16>());
    case Dtype::kFloat16:
      return visit(features.as<Float16>());
    default:
      return visit(features.as<float>());
  }
}

}  // namespace mmcore

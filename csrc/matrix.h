// Views of row-major matrices. The unit step is along columns; row_stride counts elements.
#pragma once

#include <cstdint>
#include <type_traits>

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

// A matrix in any dtype that the kernels read and write; Pointer is void* or const void*.
template <class Pointer>
struct DtypeMatrix {
  Pointer data = nullptr;
  Dtype dtype = Dtype::kFloat32;
  Index rows = 0;
  Index columns = 0;
  Index row_stride = 0;

  template <class T>
  auto as() const {
    using Number = std::conditional_t<std::is_same_v<Pointer, void*>, T, const T>;
    return Matrix<Number>{static_cast<Number*>(data), rows, columns, row_stride};
  }
};

using AnyMatrix = DtypeMatrix<const void*>;
using MutableAnyMatrix = DtypeMatrix<void*>;

// visit(matrix) with the view of the dtype that `any` has.
template <class Pointer, class Visit>
decltype(auto) visit_dtype(const DtypeMatrix<Pointer>& any, Visit&& visit) {
  switch (any.dtype) {
    case Dtype::kBfloat16:
      return visit(any.template as<Bfloat16>());
    case Dtype::kFloat16:
      return visit(any.template as<Float16>());
    default:
      return visit(any.template as<float>());
  }
}

// The T of a view.
template <class T>
using NumberOf = std::remove_const_t<std::remove_pointer_t<decltype(T::data)>>;

}  // namespace mmcore

// A view of a row-major matrix. The unit step is along columns; row_stride counts elements.
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

}  // namespace mmcore

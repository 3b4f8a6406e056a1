// NumPy arrays as the views that kernels take.
//
// Whatever a kernel relies on is checked here, so that no call from Python can read or write out of bounds.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>

#include "../kernels.h"

namespace mmcore {

namespace py = pybind11;

// `forcecast` is absent on purpose: an array of another dtype is refused, never copied.
using Floats = py::array_t<float, 0>;
using Doubles = py::array_t<double, 0>;
using Indices = py::array_t<Index, 0>;
using Ids = py::array_t<std::int32_t, 0>;

[[noreturn]] inline void refuse(const std::string& message) { throw py::value_error(message); }

inline std::string size_text(Index size) { return size < 0 ? "any" : std::to_string(size); }

// Refuses what is no matrix of the wanted size with unit column stride; a negative size is any.
inline void check_matrix(const char* name, const py::array& array, Index rows, Index columns, bool is_written) {
  if (array.ndim() != 2) refuse(std::string(name) + " must have 2 dimensions, got " + std::to_string(array.ndim()));
  if ((rows >= 0 && array.shape(0) != rows) || (columns >= 0 && array.shape(1) != columns))
    refuse(std::string(name) + " must have shape (" + size_text(rows) + ", " + size_text(columns) + "), got (" +
           size_text(array.shape(0)) + ", " + size_text(array.shape(1)) + ")");
  if (is_written && !array.writeable()) refuse(std::string(name) + " must be writeable");
  if (array.size() == 0) return;
  if (array.shape(1) > 1 && array.strides(1) != array.itemsize())
    refuse(std::string(name) + " must have unit column stride");
  if (array.strides(0) % array.itemsize() != 0) refuse(std::string(name) + " must have a row stride of whole numbers");
}

inline Dtype dtype_of(const char* name, const py::array& array) {
  if (array.dtype().equal(py::dtype::of<float>())) return Dtype::kFloat32;
  if (array.dtype().equal(py::dtype("float16"))) return Dtype::kFloat16;
  if (array.dtype().equal(py::dtype::of<std::uint16_t>())) return Dtype::kBfloat16;
  throw py::type_error(std::string(name) + " must be of float32, float16 or uint16 (the bits of bfloat16), got " +
                       std::string(py::str(array.dtype())));
}

inline AnyMatrix any_matrix(const char* name, const py::array& array, Index rows, Index columns,
                            bool is_written = false) {
  check_matrix(name, array, rows, columns, is_written);
  return {array.data(), dtype_of(name, array), array.shape(0), array.shape(1), array.strides(0) / array.itemsize()};
}

// A matrix in the dtype of `like`.
inline AnyMatrix any_matrix_like(const AnyMatrix& like, const char* name, const py::array& array, Index rows,
                                 Index columns, bool is_written = false) {
  const AnyMatrix result = any_matrix(name, array, rows, columns, is_written);
  if (result.dtype != like.dtype) throw py::type_error(std::string(name) + " must have the dtype of x");
  return result;
}

inline MutableAnyMatrix any_output_like(const AnyMatrix& like, const char* name, const py::array& array, Index rows,
                                        Index columns) {
  const AnyMatrix result = any_matrix_like(like, name, array, rows, columns, true);
  return {const_cast<void*>(result.data), result.dtype, result.rows, result.columns, result.row_stride};
}

inline MutableMatrix output(const char* name, const Floats& array, Index rows, Index columns) {
  check_matrix(name, array, rows, columns, true);
  return {const_cast<float*>(array.data()), array.shape(0), array.shape(1), array.strides(0) / array.itemsize()};
}

template <class T>
T* vector(const char* name, const py::array_t<T, 0>& array, Index size, bool is_written = false) {
  if (array.ndim() != 1 || array.shape(0) != size)
    refuse(std::string(name) + " must have shape (" + std::to_string(size) + ",)");
  if (size > 1 && array.strides(0) != static_cast<Index>(sizeof(T))) refuse(std::string(name) + " must be contiguous");
  if (is_written && !array.writeable()) refuse(std::string(name) + " must be writeable");
  return const_cast<T*>(array.data());
}

template <class T>
T* output(const char* name, const py::array_t<T, 0>& array, Index size) {
  return vector(name, array, size, true);
}

template <class T>
T* optional_vector(const char* name, const std::optional<py::array_t<T, 0>>& array, Index size,
                   bool is_written = false) {
  return array ? vector(name, *array, size, is_written) : nullptr;
}

inline int checked_threads(int threads) {
  if (threads < 1) refuse("threads must be at least 1, got " + std::to_string(threads));
  return threads;
}

// Each adds its functions to the module.
void bind_projection(py::module_& module);
void bind_similarity(py::module_& module);

}  // namespace mmcore

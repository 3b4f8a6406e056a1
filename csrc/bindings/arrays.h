// Tensors of any library as the views that kernels take.
//
// Whatever a kernel relies on is checked here, so that no call from Python can read or write out of bounds.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "../kernels.h"
#include "dlpack.h"

namespace mmcore {

namespace py = pybind11;

[[noreturn]] inline void refuse(const std::string& message) { throw py::value_error(message); }

// A tensor that Python passed, or None.
//
// It is a DLPack capsule, or an object whose method __dlpack__ returns one. The capsule is borrowed: it keeps its name,
// so its own destructor frees it. Nobody else may consume it during the call.
class Array {
 public:
  Array() = default;
  explicit Array(py::handle source) : capsule_(py::reinterpret_borrow<py::object>(source)) {
    if (!PyCapsule_CheckExact(source.ptr()) && py::hasattr(source, "__dlpack__")) capsule_ = exported(source);
    open();
  }

  bool is_none() const { return !capsule_ || capsule_.is_none(); }
  // False where somebody has consumed the capsule since.
  bool is_valid() const { return name_ == nullptr || PyCapsule_IsValid(capsule_.ptr(), name_) != 0; }

  // The tensor, whose memory this processor can reach.
  const dlpack::DLTensor& tensor(const char* name, bool is_written) const;

 private:
  static py::object exported(py::handle source);
  void open();

  py::object capsule_;
  const char* name_ = nullptr;  // the capsule's; nullptr where there is none
  const dlpack::DLTensor* tensor_ = nullptr;
  bool is_read_only_ = false;
};

// Inputs of a kernel, and the arrays that they are views of, kept alive.
template <class Inputs>
class Held {
 public:
  Held(Inputs inputs, std::vector<Array> arrays) : inputs_(std::move(inputs)), arrays_(std::move(arrays)) {}

  const Inputs& inputs() const {
    for (const Array& array : arrays_)
      if (!array.is_valid()) refuse("the arrays of inputs must not be consumed by others");
    return inputs_;
  }

 private:
  Inputs inputs_;
  std::vector<Array> arrays_;
};

// A matrix of the wanted size with unit column stride; a negative size is any.
AnyMatrix any_matrix(const char* name, const Array& array, Index rows, Index columns, bool is_written = false);

// A matrix in the dtype of `like`.
AnyMatrix any_matrix_like(const AnyMatrix& like, const char* name, const Array& array, Index rows, Index columns,
                          bool is_written = false);
MutableAnyMatrix any_output_like(const AnyMatrix& like, const char* name, const Array& array, Index rows,
                                 Index columns);

// A matrix of float32 that is written; no data for None.
MutableMatrix optional_output(const char* name, const Array& array, Index rows, Index columns);

// The memory of a contiguous vector of `size` numbers of T. T: float, double, Index, std::int32_t, std::uint8_t.
template <class T>
T* vector(const char* name, const Array& array, Index size, bool is_written = false);

template <class T>
T* optional_vector(const char* name, const Array& array, Index size, bool is_written = false) {
  return array.is_none() ? nullptr : vector<T>(name, array, size, is_written);
}

// A vector of float32 of any size.
Kept kept_view(const Array& kept, bool is_written);

inline int checked_threads(int threads) {
  if (threads < 1) refuse("threads must be at least 1, got " + std::to_string(threads));
  return threads;
}

inline Precision precision_of(const std::string& name) {
  if (name == "highest") return Precision::kHighest;
  if (name == "high") return Precision::kHigh;
  if (name == "medium") return Precision::kMedium;
  refuse("precision must be one of 'highest', 'high', 'medium', got '" + name + "'");
}

// Each adds its functions to the module.
void bind_projection(py::module_& module);
void bind_retrieval(py::module_& module);
void bind_similarity(py::module_& module);

}  // namespace mmcore

namespace pybind11::detail {

// Takes every object: what is no array is refused where the name of the argument is known.
template <>
struct type_caster<mmcore::Array> {
  PYBIND11_TYPE_CASTER(mmcore::Array, const_name("Array"));
  bool load(handle source, bool) {
    value = mmcore::Array(source);
    return true;
  }
};

}  // namespace pybind11::detail

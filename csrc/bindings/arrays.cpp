// Checks of arrays: dtype, shape, strides, memory.
#include "arrays.h"

namespace mmcore {
namespace {

using dlpack::DLDataType;
using dlpack::DLTensor;

constexpr DLDataType kBfloat16Type{dlpack::kDLBfloat, 16, 1}, kFloat16Type{dlpack::kDLFloat, 16, 1};

template <class T>
constexpr DLDataType type_of() {
  constexpr auto kInteger = std::is_signed_v<T> ? dlpack::kDLInt : dlpack::kDLUInt;
  return {std::is_floating_point_v<T> ? dlpack::kDLFloat : kInteger, 8 * sizeof(T), 1};
}

// As torch and NumPy call it: float32.
std::string type_name(DLDataType type) {
  const char* kinds[] = {"int", "uint", "float", "handle", "bfloat", "complex", "bool"};
  if (type.code == dlpack::kDLBool) return "bool";
  const std::string kind = type.code < std::size(kinds) ? kinds[type.code] : "type" + std::to_string(type.code) + "_";
  return kind + std::to_string(type.bits) + (type.lanes == 1 ? "" : "x" + std::to_string(type.lanes));
}

[[noreturn]] void refuse_type(const char* name, const std::string& wanted, DLDataType type) {
  throw py::type_error(std::string(name) + " must be of " + wanted + ", got " + type_name(type));
}

std::string size_text(Index size) { return size < 0 ? "any" : std::to_string(size); }

std::string shape_text(const DLTensor& tensor) {
  std::string text;
  for (int k = 0; k < tensor.ndim; ++k) text += (k == 0 ? "" : ", ") + std::to_string(tensor.shape[k]);
  return "(" + text + (tensor.ndim == 1 ? ",)" : ")");
}

void* memory(const DLTensor& tensor) {
  return tensor.data == nullptr ? nullptr : static_cast<char*>(tensor.data) + tensor.byte_offset;
}

// Shape and strides of a matrix.
struct Layout {
  Index rows, columns, row_stride;
};

Layout layout_of(const char* name, const DLTensor& tensor, Index rows, Index columns) {
  if (tensor.ndim != 2) refuse(std::string(name) + " must have 2 dimensions, got " + std::to_string(tensor.ndim));
  const Index *shape = tensor.shape, *strides = tensor.strides;
  if ((rows >= 0 && shape[0] != rows) || (columns >= 0 && shape[1] != columns))
    refuse(std::string(name) + " must have shape (" + size_text(rows) + ", " + size_text(columns) + "), got " +
           shape_text(tensor));
  if (strides == nullptr || shape[0] == 0 || shape[1] == 0) return {shape[0], shape[1], shape[1]};
  if (shape[1] > 1 && strides[1] != 1) refuse(std::string(name) + " must have unit column stride");
  return {shape[0], shape[1], strides[0]};
}

}  // namespace

py::object Array::exported(py::handle source) {
  const py::object method = source.attr("__dlpack__");
  // Only the versioned capsule says that an array is read-only. Older exporters do not know the argument.
  try {
    return method(py::arg("max_version") = py::make_tuple(1, 0));
  } catch (py::error_already_set& error) {
    if (!error.matches(PyExc_TypeError)) throw;
  }
  return method();
}

void Array::open() {
  if (PyCapsule_IsValid(capsule_.ptr(), "dltensor") != 0) {
    name_ = "dltensor";
    tensor_ = &static_cast<dlpack::DLManagedTensor*>(PyCapsule_GetPointer(capsule_.ptr(), name_))->dl_tensor;
  } else if (PyCapsule_IsValid(capsule_.ptr(), "dltensor_versioned") != 0) {
    name_ = "dltensor_versioned";
    const auto* managed = static_cast<dlpack::DLManagedTensorVersioned*>(PyCapsule_GetPointer(capsule_.ptr(), name_));
    if (managed->version.major != 1) return;  // laid out in another way
    tensor_ = &managed->dl_tensor;
    is_read_only_ = (managed->flags & dlpack::kReadOnlyFlag) != 0;
  }
}

const DLTensor& Array::tensor(const char* name, bool is_written) const {
  if (tensor_ == nullptr)
    throw py::type_error(std::string(name) + " must be a DLPack capsule that is not consumed, or export one, got " +
                         (is_none() ? "None" : Py_TYPE(capsule_.ptr())->tp_name));
  const DLTensor& tensor = *tensor_;
  const std::int32_t device = tensor.device.device_type;
  if (device != dlpack::kDLCPU && device != dlpack::kDLCUDAHost && device != dlpack::kDLROCMHost)
    refuse(std::string(name) + " must be on the CPU");
  if (is_written && is_read_only_) refuse(std::string(name) + " must be writeable");
  if (tensor.ndim < 0 || (tensor.ndim > 0 && tensor.shape == nullptr)) refuse(std::string(name) + " must have a shape");
  bool is_empty = false;
  for (int k = 0; k < tensor.ndim; ++k) {
    if (tensor.shape[k] < 0) refuse(std::string(name) + " must have a shape of positive sizes");
    is_empty = is_empty || tensor.shape[k] == 0;
  }
  const auto address = reinterpret_cast<std::uintptr_t>(memory(tensor));
  if (address == 0 && !is_empty) refuse(std::string(name) + " must have memory");
  if (tensor.dtype.bits >= 8 && address % (tensor.dtype.bits / 8) != 0) refuse(std::string(name) + " must be aligned");
  return tensor;
}

AnyMatrix any_matrix(const char* name, const Array& array, Index rows, Index columns, bool is_written) {
  const DLTensor& tensor = array.tensor(name, is_written);
  const Layout layout = layout_of(name, tensor, rows, columns);
  Dtype dtype = Dtype::kFloat32;
  if (tensor.dtype == kBfloat16Type) {
    dtype = Dtype::kBfloat16;
  } else if (tensor.dtype == kFloat16Type) {
    dtype = Dtype::kFloat16;
  } else if (tensor.dtype != type_of<float>()) {
    refuse_type(name, "float32, float16 or bfloat16", tensor.dtype);
  }
  return {memory(tensor), dtype, layout.rows, layout.columns, layout.row_stride};
}

AnyMatrix any_matrix_like(const AnyMatrix& like, const char* name, const Array& array, Index rows, Index columns,
                          bool is_written) {
  const AnyMatrix result = any_matrix(name, array, rows, columns, is_written);
  if (result.dtype != like.dtype) throw py::type_error(std::string(name) + " must have the dtype of x");
  return result;
}

MutableAnyMatrix any_output_like(const AnyMatrix& like, const char* name, const Array& array, Index rows,
                                 Index columns) {
  const AnyMatrix result = any_matrix_like(like, name, array, rows, columns, true);
  return {const_cast<void*>(result.data), result.dtype, result.rows, result.columns, result.row_stride};
}

MutableMatrix optional_output(const char* name, const Array& array, Index rows, Index columns) {
  if (array.is_none()) return {};
  const DLTensor& tensor = array.tensor(name, true);
  const Layout layout = layout_of(name, tensor, rows, columns);
  if (tensor.dtype != type_of<float>()) refuse_type(name, "float32", tensor.dtype);
  return {static_cast<float*>(memory(tensor)), layout.rows, layout.columns, layout.row_stride};
}

template <class T>
T* vector(const char* name, const Array& array, Index size, bool is_written) {
  const DLTensor& tensor = array.tensor(name, is_written);
  if (tensor.dtype != type_of<T>()) refuse_type(name, type_name(type_of<T>()), tensor.dtype);
  if (tensor.ndim != 1 || tensor.shape[0] != size)
    refuse(std::string(name) + " must have shape (" + std::to_string(size) + ",), got " + shape_text(tensor));
  if (size > 1 && tensor.strides != nullptr && tensor.strides[0] != 1)
    refuse(std::string(name) + " must be contiguous");
  return static_cast<T*>(memory(tensor));
}

template float* vector<float>(const char*, const Array&, Index, bool);
template double* vector<double>(const char*, const Array&, Index, bool);
template Index* vector<Index>(const char*, const Array&, Index, bool);
template std::int32_t* vector<std::int32_t>(const char*, const Array&, Index, bool);
template std::uint8_t* vector<std::uint8_t>(const char*, const Array&, Index, bool);

Kept kept_view(const Array& kept, bool is_written) {
  const DLTensor& tensor = kept.tensor("kept", is_written);
  const Index size = tensor.ndim == 1 ? tensor.shape[0] : 0;
  return {vector<float>("kept", kept, size, is_written), size};
}

}  // namespace mmcore

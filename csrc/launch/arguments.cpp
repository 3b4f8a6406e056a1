// Reads the arguments of a launch, in the order in which Triton walks them.
#include "arguments.h"

#include <climits>
#include <cstring>

namespace mmcore::launch {

Environment environment{};

namespace {

struct Names {
  PyObject* dtype = PyUnicode_InternFromString("dtype");
  PyObject* is_cuda = PyUnicode_InternFromString("is_cuda");
  PyObject* base = PyUnicode_InternFromString("base");
  PyObject* shape = PyUnicode_InternFromString("shape");
  PyObject* strides = PyUnicode_InternFromString("strides");
  PyObject* block_shape = PyUnicode_InternFromString("block_shape");
  PyObject* layout = PyUnicode_InternFromString("layout");
  PyObject* padding = PyUnicode_InternFromString("padding");
  PyObject* rounds = PyUnicode_InternFromString("round_f32_to_tf32");
};

const Names& names() {
  static const Names all;
  return all;
}

uint64_t word_of(Kind kind, uint64_t details = 0) { return static_cast<uint64_t>(kind) | details << 8; }

uint64_t word_of(const void* object) { return reinterpret_cast<uintptr_t>(object); }

bool is_tensor(PyObject* value) {
  PyObject* type = reinterpret_cast<PyObject*>(Py_TYPE(value));
  return type == environment.tensor || type == environment.parameter;
}

bool address_of(PyObject* tensor, Address& address) {
  const Owned number(PyObject_Vectorcall(environment.data_ptr, &tensor, 1, nullptr));
  if (!number) return false;
  address = PyLong_AsUnsignedLongLong(number.get());
  return !PyErr_Occurred();
}

// A dtype's address names it: torch makes each once and keeps it.
bool dtype_of(PyObject* tensor, uint64_t& word) {
  const Owned dtype(PyObject_GetAttr(tensor, names().dtype));
  word = word_of(dtype.get());
  return static_cast<bool>(dtype);
}

// Sizes from `least` on of a tuple or a list; their number, or -1.
int read_sizes(PyObject* object, PyObject* name, long long least, uint64_t (&sizes)[kMostRank]) {
  const Owned attribute(PyObject_GetAttr(object, name));
  if (!attribute || !(PyTuple_Check(attribute.get()) || PyList_Check(attribute.get()))) return -1;
  const Py_ssize_t rank = PySequence_Fast_GET_SIZE(attribute.get());
  if (rank < 1 || rank > kMostRank) return -1;
  for (Py_ssize_t k = 0; k < rank; ++k) {
    PyObject* item = PySequence_Fast_GET_ITEM(attribute.get(), k);
    if (!PyLong_CheckExact(item)) return -1;
    const long long size = PyLong_AsLongLong(item);
    if (size < least) return -1;
    sizes[k] = static_cast<uint64_t>(size);
  }
  return static_cast<int>(rank);
}

}  // namespace

bool Arguments::add_word(uint64_t word) {
  if (word_count == kMostWords) return false;
  words[word_count++] = word;
  return true;
}

bool Arguments::add_constant(PyObject* value) {
  if (constant_count == kMostConstants) return false;
  constants[constant_count++] = value;
  return true;
}

bool Arguments::add_leaf(Kind kind, uint64_t bits) {
  if (leaf_count == kMostLeaves) return false;
  leaves[leaf_count++] = {kind, bits};
  return true;
}

bool Arguments::read(PyObject* value, const Parameter& parameter) {
  if (!parameter.is_constant) return read_value(value, parameter.is_specialized, parameter.is_aligned);
  return add_word(word_of(Kind::kConstant)) && add_constant(value) && add_leaf(Kind::kConstant, 0);
}

bool Arguments::read_option(PyObject* name, PyObject* value) {
  return add_word(word_of(Kind::kOption)) && add_constant(name) && add_constant(value);
}

bool Arguments::read_value(PyObject* value, bool is_specialized, bool is_aligned) {
  if (is_tensor(value)) return read_tensor(value, is_specialized && is_aligned);
  if (PyLong_CheckExact(value)) return read_integer(value, is_specialized, is_aligned);
  if (PyTuple_Check(value)) return read_tuple(value);
  if (value == Py_None) return add_word(word_of(Kind::kNone)) && add_leaf(Kind::kNone, 0);
  if (PyBool_Check(value)) return add_word(word_of(Kind::kBoolean)) && add_leaf(Kind::kBoolean, value == Py_True);
  if (PyFloat_CheckExact(value)) {
    uint64_t bits;
    const double number = PyFloat_AS_DOUBLE(value);
    std::memcpy(&bits, &number, sizeof bits);
    return add_word(word_of(Kind::kFloat)) && add_leaf(Kind::kFloat, bits);
  }
  PyObject* type = reinterpret_cast<PyObject*>(Py_TYPE(value));
  for (int which = 0; which < 2; ++which)
    if (type == environment.descriptors[which]) return read_descriptor(value, which);
  if (type != environment.constexpr_type) return false;
  return add_word(word_of(Kind::kConstant)) && add_constant(value) && add_leaf(Kind::kConstant, 0);
}

// As Triton's specialisation: 32 bits where they suffice, else 64, the upper half of them unsigned.
bool Arguments::read_integer(PyObject* value, bool is_specialized, bool is_aligned) {
  int overflow;
  const long long number = PyLong_AsLongLongAndOverflow(value, &overflow);
  uint64_t bits = static_cast<uint64_t>(number), width = number >= INT32_MIN && number <= INT32_MAX ? 0 : 1;
  if (overflow != 0) {
    bits = PyLong_AsUnsignedLongLong(value);
    if (PyErr_Occurred()) return false;
    width = 2;
  }
  const uint64_t is_one = is_specialized && bits == 1, is_multiple = is_specialized && is_aligned && bits % 16 == 0;
  return add_word(word_of(Kind::kInteger, width | is_one << 2 | is_multiple << 3)) && add_leaf(Kind::kInteger, bits);
}

bool Arguments::read_tensor(PyObject* value, bool is_aligned) {
  Address address;
  uint64_t dtype;
  if (!address_of(value, address) || !dtype_of(value, dtype)) return false;
  const Owned is_cuda(PyObject_GetAttr(value, names().is_cuda));
  if (!is_cuda) return false;
  const uint64_t is_multiple = is_aligned && address % 16 == 0, is_foreign = is_cuda.get() != Py_True;
  // Memory that is not the GPU's may be pinned, and then has an address there. If it has none, Triton's launcher says
  // so.
  if (is_foreign && address != 0 && driver()->pointer_attribute(&address, kDevicePointer, address) != 0) return false;
  return add_word(word_of(Kind::kPointer, is_multiple | is_foreign << 1)) && add_word(dtype) &&
         add_leaf(Kind::kPointer, address);
}

// Within a tuple Triton specialises whatever the parameter says.
bool Arguments::read_tuple(PyObject* value) {
  const Py_ssize_t size = PyTuple_GET_SIZE(value);
  if (!add_word(word_of(Kind::kTuple, static_cast<uint64_t>(size)))) return false;
  if (!add_constant(reinterpret_cast<PyObject*>(Py_TYPE(value)))) return false;
  for (Py_ssize_t k = 0; k < size; ++k)
    if (!read_value(PyTuple_GET_ITEM(value, k), true, true)) return false;
  return true;
}

bool Arguments::read_descriptor(PyObject* value, int which) {
  if (descriptor_count == kMostDescriptors) return false;
  Descriptor& descriptor = descriptors[descriptor_count];
  descriptor = {};
  const Owned base(PyObject_GetAttr(value, names().base)), padding(PyObject_GetAttr(value, names().padding));
  uint64_t dtype, box[kMostRank];
  if (!base || !padding || !is_tensor(base.get()) || !PyUnicode_Check(padding.get())) return false;
  if (!address_of(base.get(), descriptor.address) || !dtype_of(base.get(), dtype)) return false;
  descriptor.fills_with_nan = PyUnicode_CompareWithASCIIString(padding.get(), "nan") == 0;
  const int rank = descriptor.rank = read_sizes(value, names().shape, 1, descriptor.shape);
  if (rank < 0 || read_sizes(value, names().strides, 0, descriptor.strides) != rank) return false;
  if (read_sizes(value, names().block_shape, 1, box) != rank || descriptor.strides[rank - 1] != 1) return false;
  if (environment.rounds[which]) {
    const Owned rounds(PyObject_GetAttr(value, names().rounds));
    if (rounds.get() != Py_False) return false;
  }
  if (!add_word(word_of(Kind::kDescriptor, static_cast<uint64_t>(which | rank << 1))) || !add_word(dtype)) return false;
  for (int k = 0; k < rank; ++k)
    if (descriptor.shape[k] > INT32_MAX || !add_word(box[k])) return false;
  if (which == 1) {
    const Owned layout(PyObject_GetAttr(value, names().layout));  // the descriptor holds it as well
    if (!layout || !add_constant(layout.get())) return false;
  }
  return add_leaf(Kind::kDescriptor, static_cast<uint64_t>(descriptor_count++));
}

uint64_t Arguments::hash() const {
  uint64_t hash = 14695981039346656037u;  // FNV-1a, a word at a time
  for (int k = 0; k < word_count; ++k) hash = (hash ^ words[k]) * 1099511628211u;
  return hash;
}

bool is_same(PyObject* a, PyObject* b) {
  if (a == b) return true;
  if (Py_TYPE(a) != Py_TYPE(b)) return false;
  if (PyFloat_CheckExact(a)) {
    const double left = PyFloat_AS_DOUBLE(a), right = PyFloat_AS_DOUBLE(b);
    return std::memcmp(&left, &right, sizeof left) == 0;
  }
  if (!PyTuple_Check(a)) {
    const int is_equal = PyObject_RichCompareBool(a, b, Py_EQ);
    if (is_equal < 0) PyErr_Clear();
    return is_equal == 1;
  }
  const Py_ssize_t size = PyTuple_GET_SIZE(a);
  if (PyTuple_GET_SIZE(b) != size) return false;
  for (Py_ssize_t k = 0; k < size; ++k)
    if (!is_same(PyTuple_GET_ITEM(a, k), PyTuple_GET_ITEM(b, k))) return false;
  return true;
}

bool may_be_kept(PyObject* constant) {
  if (!PyTuple_Check(constant)) return !is_tensor(constant);
  for (Py_ssize_t k = 0; k < PyTuple_GET_SIZE(constant); ++k)
    if (!may_be_kept(PyTuple_GET_ITEM(constant, k))) return false;
  return true;
}

}  // namespace mmcore::launch

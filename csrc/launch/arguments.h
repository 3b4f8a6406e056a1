// The arguments of a launch, as Python passes them: what Triton compiles a kernel for, and what the kernel receives.
//
// Triton compiles a kernel anew for each dtype and alignment of a pointer, each width of an integer, integers that are
// 1 or multiples of 16, and each constant. `words` and `constants` tell at least as many calls apart: two calls with
// the same ones take the same compiled kernel.
#pragma once

#include <cstdint>

#include "driver.h"
#include "python.h"

namespace mmcore::launch {

// Whatever is longer is left to Triton's launcher.
constexpr int kMostWords = 384, kMostConstants = 128, kMostLeaves = 128, kMostDescriptors = 8, kMostRank = 5;

enum class Kind : uint8_t { kConstant, kNone, kPointer, kInteger, kFloat, kBoolean, kTuple, kDescriptor, kOption };

// One number of a call. Where `kind` is kDescriptor, `bits` counts descriptors.
struct Leaf {
  Kind kind;
  uint64_t bits;
};

// A matrix, as the copy engine is told of it.
struct Descriptor {
  Address address;
  int rank;
  bool fills_with_nan;
  uint64_t shape[kMostRank];
  uint64_t strides[kMostRank];  // in numbers

  bool operator==(const Descriptor&) const = default;
};

// What a parameter of the kernel asks of its argument.
struct Parameter {
  Owned name;
  Owned otherwise;  // its default, if it has one
  bool is_constant, is_specialized, is_aligned;
};

class Arguments {
 public:
  Arguments() {}  // leaves the arrays as they are: a launch has no time to fill them

  // All of them return false where Triton's launcher is to serve, maybe with a Python error set.
  bool read(PyObject* value, const Parameter& parameter);
  bool read_option(PyObject* name, PyObject* value);
  bool add_word(uint64_t word);

  uint64_t hash() const;

  int word_count = 0, constant_count = 0, leaf_count = 0, descriptor_count = 0;
  uint64_t words[kMostWords];
  PyObject* constants[kMostConstants];  // borrowed from the call
  Leaf leaves[kMostLeaves];
  Descriptor descriptors[kMostDescriptors];

 private:
  bool read_value(PyObject* value, bool is_specialized, bool is_aligned);
  bool read_integer(PyObject* value, bool is_specialized, bool is_aligned);
  bool read_tensor(PyObject* value, bool is_aligned);
  bool read_tuple(PyObject* value);
  bool read_descriptor(PyObject* value, int which);
  bool add_constant(PyObject* value);
  bool add_leaf(Kind kind, uint64_t bits);
};

// Whether two constants are the same to the compiler: 1, 1.0 and True are not.
bool is_same(PyObject* a, PyObject* b);

// Whether a plan may keep a constant: a tensor's memory would stay with it.
bool may_be_kept(PyObject* constant);

// Python's side of a launch: types of arguments, and whom to ask for device and stream. Every reference is kept.
struct Environment {
  PyObject *tensor, *parameter;  // torch.Tensor and torch.nn.Parameter
  PyObject* data_ptr;            // torch.Tensor.data_ptr
  PyObject* constexpr_type;
  PyObject* descriptors[2];  // Triton's type of descriptors, and Gluon's, which have a layout
  PyObject *current_device, *current_stream;
  PyObject* runtime;     // triton.knobs.runtime
  PyObject* hook_chain;  // triton.knobs.HookChain
  int mends_small_maps;  // whether this Triton mends maps of small matrices (plan.cpp)
  bool rounds[2];        // whether descriptors of the type can round to tensor float 32
};

extern Environment environment;

}  // namespace mmcore::launch

// A compiled kernel that is ready to be launched: its handle, its shape, and where its parameters come from.
#pragma once

#include <string>
#include <vector>

#include "arguments.h"

namespace mmcore::launch {

// How the copy engine cuts a matrix, as the kernel was compiled.
struct Box {
  int swizzle, element_bytes, element_type, rank;
  uint32_t sizes[kMostRank];
};

// How a number of the call becomes a parameter. Parameters of a width below 64 bits are read from the lower bytes.
enum class Pack : uint8_t { kBits, kFloat32, kDescriptor };

struct Field {
  Pack pack;
  int leaf;
};

class Plan {
 public:
  explicit Plan(const Arguments& arguments);

  // Reads what launch_plan.py says of a compiled kernel; false, maybe with a Python error set, where no plan serves it.
  bool prepare(const Arguments& arguments, PyObject* compiled, PyObject* description);

  bool serves(const Arguments& arguments, uint64_t hash) const;

  // False with a Python error set.
  bool launch(const Arguments& arguments, const unsigned (&grid)[3], void* stream);

  // Null where Triton's launcher is to serve these arguments.
  PyObject* compiled() const { return compiled_.get(); }

 private:
  struct Parameters;

  struct Map {
    Descriptor descriptor;
    TensorMap map;
  };

  bool pack(const Arguments& arguments, Parameters& parameters);
  bool add_field(const Arguments& arguments, int leaf, PyObject* code);
  bool add_box(const Arguments& arguments, int leaf, PyObject* code);
  const TensorMap* map_of(const Descriptor& descriptor, int which);
  bool succeeded(Result result, const char* action) const;

  uint64_t hash_;
  std::vector<uint64_t> words_;
  std::vector<Owned> constants_;
  Owned compiled_;
  void* function_ = nullptr;
  unsigned shared_bytes_ = 0, threads_ = 0, cluster_ = 1;
  std::string name_;
  std::vector<Field> fields_;
  std::vector<Box> boxes_;
  std::vector<Map> maps_;  // the last one of each box
};

}  // namespace mmcore::launch

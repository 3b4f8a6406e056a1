// A kernel of Python's, with a plan for each way in which Triton compiled it.
#pragma once

#include <memory>
#include <vector>

#include "plan.h"

namespace mmcore::launch {

// The arguments of a Python call, as vectorcall passes them.
struct Call {
  PyObject* const* values;
  Py_ssize_t positional;
  PyObject* names;  // of the values that follow, or null

  Py_ssize_t named() const { return names == nullptr ? 0 : PyTuple_GET_SIZE(names); }
};

class Kernel {
 public:
  // `parameters`: a tuple (name, default or nothing at all, is constant, is specialized, is aligned) for each.
  bool configure(PyObject* parameters, PyObject* by_triton, PyObject* describe, PyObject* hooks);

  // What Triton's launcher would return: the compiled kernel. Null with a Python error set.
  PyObject* launch(PyObject* grid, const Call& call);

  unsigned long long planned() const { return planned_; }
  size_t plans() const { return plans_.size(); }

 private:
  bool read(const Call& call, Arguments& arguments, long& device) const;
  bool bind(const Call& call, PyObject** values, Arguments& arguments) const;
  int index_of(PyObject* name) const;
  Plan* find(const Arguments& arguments) const;
  PyObject* launch_by_triton(PyObject* grid, const Call& call) const;
  PyObject* record(PyObject* grid, const Call& call, const Arguments& arguments);

  std::vector<Parameter> parameters_;
  Owned by_triton_, describe_, hooks_;
  std::vector<std::unique_ptr<Plan>> plans_;  // none is ever removed, so that pointers to them stay valid
  unsigned long long planned_ = 0;
};

}  // namespace mmcore::launch

// Finds the plan of a launch, or lets Triton launch and makes a plan of what it compiled.
#include "kernel.h"

#include <algorithm>

namespace mmcore::launch {
namespace {

constexpr size_t kMostValues = 96;  // parameters of a kernel

struct Names {
  PyObject* enter = PyUnicode_InternFromString("launch_enter_hook");
  PyObject* exit = PyUnicode_InternFromString("launch_exit_hook");
  PyObject* inspect = PyUnicode_InternFromString("add_stages_inspection_hook");
  PyObject* debug = PyUnicode_InternFromString("debug");
  PyObject* calls = PyUnicode_InternFromString("calls");
};

const Names& names() {
  static const Names all;
  return all;
}

bool is_empty_list(PyObject* list) { return list != nullptr && PyList_CheckExact(list) && PyList_GET_SIZE(list) == 0; }

bool has_hook(PyObject* name) {
  const Owned hook(PyObject_GetAttr(environment.runtime, name));
  if (hook.get() == Py_None) return false;
  if (!hook || reinterpret_cast<PyObject*>(Py_TYPE(hook.get())) != environment.hook_chain) return true;
  const Owned calls(PyObject_GetAttr(hook.get(), names().calls));
  return !is_empty_list(calls.get());
}

bool has_value(PyObject* name, PyObject* value) {
  const Owned found(PyObject_GetAttr(environment.runtime, name));
  return found.get() == value;
}

// Whether somebody asked Triton to be told of launches, or to compile otherwise than when the plans were made.
bool is_watched() {
  return has_hook(names().enter) || has_hook(names().exit) || !has_value(names().debug, Py_False) ||
         !has_value(names().inspect, Py_None);
}

// One to three numbers; false where Triton's launcher is to make sense of the grid.
bool read_grid(PyObject* grid, unsigned (&sizes)[3]) {
  if (!PyTuple_CheckExact(grid) && !PyList_CheckExact(grid)) return false;
  const Py_ssize_t count = PySequence_Fast_GET_SIZE(grid);
  if (count < 1 || count > 3) return false;
  sizes[1] = sizes[2] = 1;
  for (Py_ssize_t k = 0; k < count; ++k) {
    PyObject* item = PySequence_Fast_GET_ITEM(grid, k);
    if (!PyLong_CheckExact(item)) return false;
    const long long size = PyLong_AsLongLong(item);
    if (size < 0 || size > INT32_MAX) return false;
    sizes[k] = static_cast<unsigned>(size);
  }
  return true;
}

bool read_device(long& device) {
  const Owned number(PyObject_CallNoArgs(environment.current_device));
  if (!number) return false;
  device = PyLong_AsLong(number.get());
  return !PyErr_Occurred();
}

bool read_stream(long device, void*& stream) {
  const Owned argument(PyLong_FromLong(device));
  if (!argument) return false;
  const Owned number(PyObject_CallOneArg(environment.current_stream, argument.get()));
  if (!number) return false;
  stream = PyLong_AsVoidPtr(number.get());
  return !PyErr_Occurred();
}

}  // namespace

bool Kernel::configure(PyObject* parameters, PyObject* by_triton, PyObject* describe, PyObject* hooks) {
  by_triton_ = Owned::another(by_triton);
  describe_ = Owned::another(describe);
  hooks_ = Owned::another(hooks);
  for (Py_ssize_t k = 0; k < PyTuple_GET_SIZE(parameters); ++k) {
    PyObject *name, *defaults;
    int is_constant, is_specialized, is_aligned;
    if (!PyArg_ParseTuple(PyTuple_GET_ITEM(parameters, k), "UO!ppp", &name, &PyTuple_Type, &defaults, &is_constant,
                          &is_specialized, &is_aligned))
      return false;
    PyObject* otherwise = PyTuple_GET_SIZE(defaults) == 0 ? nullptr : PyTuple_GET_ITEM(defaults, 0);
    Py_INCREF(name);
    PyUnicode_InternInPlace(&name);
    parameters_.push_back(
        {Owned(name), Owned::another(otherwise), is_constant != 0, is_specialized != 0, is_aligned != 0});
  }
  return true;
}

// Names are interned nearly always, and then the same name is the same object.
int Kernel::index_of(PyObject* name) const {
  for (size_t k = 0; k < parameters_.size(); ++k)
    if (parameters_[k].name.get() == name) return static_cast<int>(k);
  if (PyUnicode_CHECK_INTERNED(name)) return -1;
  for (size_t k = 0; k < parameters_.size(); ++k)
    if (PyUnicode_Compare(parameters_[k].name.get(), name) == 0) return static_cast<int>(k);
  return -1;
}

// Values by parameter; what is no parameter is an option of the compiler.
bool Kernel::bind(const Call& call, PyObject** values, Arguments& arguments) const {
  const size_t count = parameters_.size();
  if (count > kMostValues || static_cast<size_t>(call.positional) > count) return false;
  std::fill_n(std::copy_n(call.values, call.positional, values), count - call.positional, nullptr);
  for (Py_ssize_t k = 0; k < call.named(); ++k) {
    PyObject *name = PyTuple_GET_ITEM(call.names, k), *value = call.values[call.positional + k];
    const int index = index_of(name);
    if (index < 0 ? !arguments.read_option(name, value) : values[index] != nullptr) return false;
    if (index >= 0) values[index] = value;
  }
  for (size_t k = 0; k < count; ++k) {
    if (values[k] == nullptr) values[k] = parameters_[k].otherwise.get();
    if (values[k] == nullptr) return false;
  }
  return true;
}

bool Kernel::read(const Call& call, Arguments& arguments, long& device) const {
  void* context = nullptr;
  PyObject* values[kMostValues];
  if (driver()->current_context(&context) != 0 || context == nullptr || !read_device(device)) return false;
  if (!arguments.add_word(reinterpret_cast<uintptr_t>(context))) return false;
  if (!arguments.add_word(static_cast<uint64_t>(device)) || !bind(call, values, arguments)) return false;
  for (size_t k = 0; k < parameters_.size(); ++k)
    if (!arguments.read(values[k], parameters_[k])) return false;
  return true;
}

Plan* Kernel::find(const Arguments& arguments) const {
  const uint64_t hash = arguments.hash();
  for (size_t k = 0; k < plans_.size(); ++k)  // comparing may run Python, which may add a plan
    if (plans_[k]->serves(arguments, hash)) return plans_[k].get();
  return nullptr;
}

PyObject* Kernel::launch_by_triton(PyObject* grid, const Call& call) const {
  std::vector<PyObject*> values{grid};
  values.insert(values.end(), call.values, call.values + call.positional + call.named());
  const size_t positional = static_cast<size_t>(call.positional) + 1;
  return PyObject_Vectorcall(by_triton_.get(), values.data(), positional, call.names);
}

PyObject* Kernel::record(PyObject* grid, const Call& call, const Arguments& arguments) {
  Owned compiled(launch_by_triton(grid, call));
  if (!compiled) return nullptr;
  if (!std::all_of(arguments.constants, arguments.constants + arguments.constant_count, may_be_kept))
    return compiled.release();
  auto plan = std::make_unique<Plan>(arguments);
  const Owned description(PyObject_CallOneArg(describe_.get(), compiled.get()));
  if (description && description.get() != Py_None) plan->prepare(arguments, compiled.get(), description.get());
  PyErr_Clear();  // a Triton that describes its kernels otherwise launches them itself
  plans_.push_back(std::move(plan));
  return compiled.release();
}

PyObject* Kernel::launch(PyObject* grid, const Call& call) {
  Arguments arguments;
  unsigned sizes[3];
  long device = 0;
  void* stream = nullptr;
  const bool is_configured = environment.runtime != nullptr && driver() != nullptr;
  const bool is_readable = is_configured && !is_watched() && is_empty_list(hooks_.get()) && read_grid(grid, sizes) &&
                           read(call, arguments, device);
  if (!is_readable) {
    PyErr_Clear();
    return launch_by_triton(grid, call);
  }
  Plan* plan = find(arguments);
  if (plan == nullptr) return record(grid, call, arguments);
  if (plan->compiled() == nullptr) return launch_by_triton(grid, call);
  const bool is_empty = sizes[0] == 0 || sizes[1] == 0 || sizes[2] == 0;
  if (!is_empty && (!read_stream(device, stream) || !plan->launch(arguments, sizes, stream))) return nullptr;
  ++planned_;
  Py_INCREF(plan->compiled());
  return plan->compiled();
}

}  // namespace mmcore::launch

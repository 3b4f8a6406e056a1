// The module mmcore._launch: the types Kernel and Launch, and `configure`. Nothing here knows torch or CUDA at build
// time.
#include <cstddef>
#include <new>

#include "kernel.h"
// Of Python before 3.12: the types of members.
#include <structmember.h>

namespace mmcore::launch {
namespace {

struct KernelObject {
  PyObject_HEAD;
  Kernel kernel;
};

// kernel[grid], which is called with the arguments of the launch.
struct LaunchObject {
  PyObject_HEAD;
  vectorcallfunc call;
  KernelObject* kernel;
  PyObject* grid;
};

PyTypeObject* launch_type = nullptr;

PyObject* call_launch(PyObject* self, PyObject* const* values, size_t count, PyObject* names) {
  auto* launch = reinterpret_cast<LaunchObject*>(self);
  return launch->kernel->kernel.launch(launch->grid, {values, PyVectorcall_NARGS(count), names});
}

void free_launch(PyObject* self) {
  auto* launch = reinterpret_cast<LaunchObject*>(self);
  PyTypeObject* type = Py_TYPE(self);
  Py_XDECREF(reinterpret_cast<PyObject*>(launch->kernel));
  Py_XDECREF(launch->grid);
  type->tp_free(self);
  Py_DECREF(type);
}

PyObject* bind(PyObject* self, PyObject* grid) {
  PyObject* object = launch_type->tp_alloc(launch_type, 0);
  if (object == nullptr) return nullptr;
  auto* launch = reinterpret_cast<LaunchObject*>(object);
  Py_INCREF(self);
  Py_INCREF(grid);
  launch->call = call_launch;
  launch->kernel = reinterpret_cast<KernelObject*>(self);
  launch->grid = grid;
  return object;
}

PyObject* new_kernel(PyTypeObject* type, PyObject* arguments, PyObject*) {
  PyObject *parameters, *by_triton, *describe, *hooks;
  if (!PyArg_ParseTuple(arguments, "O!OOO", &PyTuple_Type, &parameters, &by_triton, &describe, &hooks)) return nullptr;
  Owned self(type->tp_alloc(type, 0));
  if (!self) return nullptr;
  Kernel* kernel = new (&reinterpret_cast<KernelObject*>(self.get())->kernel) Kernel;
  return kernel->configure(parameters, by_triton, describe, hooks) ? self.release() : nullptr;
}

void free_kernel(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  reinterpret_cast<KernelObject*>(self)->kernel.~Kernel();
  type->tp_free(self);
  Py_DECREF(type);
}

PyObject* planned(PyObject* self, void*) {
  return PyLong_FromUnsignedLongLong(reinterpret_cast<KernelObject*>(self)->kernel.planned());
}

PyObject* plans(PyObject* self, void*) {
  return PyLong_FromSize_t(reinterpret_cast<KernelObject*>(self)->kernel.plans());
}

// What Python's side of a launch is; true where there is a driver to launch with.
PyObject* configure(PyObject*, PyObject* arguments) {
  Environment& to = environment;
  int of_triton, of_gluon;
  if (!PyArg_ParseTuple(arguments, "OOOOOOOOOOppp", &to.tensor, &to.parameter, &to.data_ptr, &to.constexpr_type,
                        &to.descriptors[0], &to.descriptors[1], &to.current_device, &to.current_stream, &to.runtime,
                        &to.hook_chain, &of_triton, &of_gluon, &to.mends_small_maps))
    return nullptr;
  to.rounds[0] = of_triton != 0;
  to.rounds[1] = of_gluon != 0;
  for (PyObject* each : {to.tensor, to.parameter, to.data_ptr, to.constexpr_type, to.descriptors[0], to.descriptors[1],
                         to.current_device, to.current_stream, to.runtime, to.hook_chain})
    Py_INCREF(each);
  return PyBool_FromLong(driver() != nullptr);
}

PyMethodDef kernel_methods[] = {{"bind", bind, METH_O, "The launch on a grid."}, {nullptr, nullptr, 0, nullptr}};

PyGetSetDef kernel_values[] = {{"planned", planned, nullptr, "How many launches went from C++.", nullptr},
                               {"plans", plans, nullptr, "How many kinds of calls are known.", nullptr},
                               {nullptr, nullptr, nullptr, nullptr, nullptr}};

PyMemberDef launch_members[] = {{"__vectorcalloffset__", T_PYSSIZET, offsetof(LaunchObject, call), READONLY, nullptr},
                                {nullptr, 0, 0, 0, nullptr}};

PyType_Slot kernel_slots[] = {{Py_tp_new, reinterpret_cast<void*>(new_kernel)},
                              {Py_tp_dealloc, reinterpret_cast<void*>(free_kernel)},
                              {Py_tp_methods, kernel_methods},
                              {Py_tp_getset, kernel_values},
                              {0, nullptr}};

PyType_Slot launch_slots[] = {{Py_tp_dealloc, reinterpret_cast<void*>(free_launch)},
                              {Py_tp_call, reinterpret_cast<void*>(PyVectorcall_Call)},
                              {Py_tp_members, launch_members},
                              {0, nullptr}};

PyType_Spec kernel_spec{"mmcore._launch.Kernel", sizeof(KernelObject), 0, Py_TPFLAGS_DEFAULT, kernel_slots};

PyType_Spec launch_spec{"mmcore._launch.Launch", sizeof(LaunchObject), 0,
                        Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_DISALLOW_INSTANTIATION,
                        launch_slots};

PyMethodDef module_methods[] = {{"configure", configure, METH_VARARGS, "Names the types and functions of a launch."},
                                {nullptr, nullptr, 0, nullptr}};

PyModuleDef module_definition{PyModuleDef_HEAD_INIT,
                              "mmcore._launch",
                              "Launches of compiled kernels; mmcore/backends/triton/launch_plan.py uses it.",
                              -1,
                              module_methods,
                              nullptr,
                              nullptr,
                              nullptr,
                              nullptr};

}  // namespace
}  // namespace mmcore::launch

PyMODINIT_FUNC PyInit__launch() {
  using namespace mmcore::launch;
  Owned module(PyModule_Create(&module_definition)), kernel(PyType_FromSpec(&kernel_spec));
  launch_type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&launch_spec));
  if (!module || !kernel || launch_type == nullptr) return nullptr;
  if (PyModule_AddObjectRef(module.get(), "Kernel", kernel.get()) < 0) return nullptr;
  return module.release();
}

// Opens libcuda.so.1, once in a process.
#include "driver.h"

#include <dlfcn.h>

namespace mmcore::launch {
namespace {

template <class Function>
bool find(void* library, const char* name, Function*& function) {
  function = reinterpret_cast<Function*>(dlsym(library, name));
  return function != nullptr;
}

bool open(Driver& driver) {
  void* library = dlopen("libcuda.so.1", RTLD_LAZY);
  return library != nullptr && find(library, "cuLaunchKernelEx", driver.launch) &&
         find(library, "cuTensorMapEncodeTiled", driver.encode) &&
         find(library, "cuPointerGetAttribute", driver.pointer_attribute) &&
         find(library, "cuCtxGetCurrent", driver.current_context) &&
         find(library, "cuGetErrorName", driver.error_name) && find(library, "cuDriverGetVersion", driver.version);
}

}  // namespace

const Driver* driver() {
  static Driver functions{};
  static const bool is_there = open(functions);
  return is_there ? &functions : nullptr;
}

}  // namespace mmcore::launch

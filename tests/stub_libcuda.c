// A libcuda whose every function succeeds and does nothing: it stands for the driver of a Hopper GPU,
// so that the host's part of a launch runs, and can be timed, on a machine without a GPU.
//
//     cc -O2 -shared -fPIC -Wl,-soname,libcuda.so.1 tests/stub_libcuda.c -o libcuda.so.1
//
// It has what Triton's launcher asks for. Tensors may be on the CPU: addresses are passed on as they are.
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef int Result;  // 0 is success
typedef void* Handle;

// Every context, module and function.
static int something;

Result cuInit(unsigned flags) { return 0; }

Result cuDriverGetVersion(int* version) {
  *version = 13000;
  return 0;
}

// The device.

Result cuDeviceGet(int* device, int index) {
  *device = index;
  return 0;
}

Result cuDeviceGetCount(int* count) {
  *count = 1;
  return 0;
}

Result cuDeviceGetAttribute(int* value, int attribute, int device) {
  switch (attribute) {
    case 8: *value = 49152; break;    // shared memory of a block
    case 10: *value = 32; break;      // threads of a warp
    case 12: *value = 65536; break;   // registers of a block
    case 16: *value = 132; break;     // multiprocessors
    case 75: *value = 9; break;       // compute capability, major
    case 76: *value = 0; break;       // and minor
    case 82: *value = 65536; break;   // registers of a multiprocessor
    case 97: *value = 232448; break;  // shared memory that a block may opt in to
    default: *value = 1;
  }
  return 0;
}

Result cuCtxGetCurrent(Handle* context) {
  *context = &something;
  return 0;
}

Result cuCtxSetCurrent(Handle context) { return 0; }

Result cuCtxGetDevice(int* device) {
  *device = 0;
  return 0;
}

Result cuCtxGetLimit(size_t* value, int limit) {
  *value = 0;
  return 0;
}

Result cuCtxSetLimit(int limit, size_t value) { return 0; }

Result cuDevicePrimaryCtxRetain(Handle* context, int device) {
  *context = &something;
  return 0;
}

// Modules and functions.

Result cuModuleLoadData(Handle* module, const void* image) {
  *module = &something;
  return 0;
}

Result cuModuleUnload(Handle module) { return 0; }

Result cuModuleGetFunction(Handle* function, Handle module, const char* name) {
  *function = &something;
  return 0;
}

Result cuFuncGetAttribute(int* value, int attribute, Handle function) {
  *value = attribute == 0 ? 1024 : 0;  // 0: threads of a block
  return 0;
}

Result cuFuncSetAttribute(Handle function, int attribute, int value) { return 0; }

Result cuFuncSetCacheConfig(Handle function, int config) { return 0; }

Result cuOccupancyMaxActiveClusters(int* count, Handle function, const void* config) {
  *count = 1;
  return 0;
}

// A launch and its arguments.

Result cuLaunchKernelEx(const void* config, Handle function, void** arguments, void** extra) {
  return 0;
}

Result cuStreamIsCapturing(Handle stream, int* status) {
  *status = 0;
  return 0;
}

Result cuPointerGetAttribute(void* value, int attribute, uint64_t address) {
  *(uint64_t*)value = address;
  return 0;
}

Result cuPointerGetAttributes(unsigned count, int* attributes, void** values, uint64_t address) {
  return 0;
}

Result cuTensorMapEncodeTiled(
    void* map, int type, unsigned rank, void* address, const uint64_t* sizes, const uint64_t* strides,
    const uint32_t* box, const uint32_t* element_strides, int interleave, int swizzle, int promotion,
    int fill) {
  memset(map, 0, 128);
  return 0;
}

Result cuTensorMapEncodeIm2col(void) { return 0; }

Result cuGetErrorString(Result error, const char** text) {
  *text = "of a libcuda that does nothing";
  return 0;
}

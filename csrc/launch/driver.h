// The few functions of the CUDA driver that a launch takes, found in libcuda.so.1 at run time.
//
// They are declared here as the driver's public interface has them, so that building takes no CUDA toolkit.
#pragma once

#include <cstdint>

namespace mmcore::launch {

using Result = int;  // CUresult: 0 is success
using Address = uint64_t;

// CUtensorMap: what the copy engine knows of a matrix and of the boxes that it copies.
struct alignas(64) TensorMap {
  uint64_t words[16];
};

// CUlaunchAttribute, of the two kinds that a launch of clusters has.
struct alignas(8) Attribute {
  unsigned kind;
  unsigned padding;
  unsigned value[16];
};

// CUlaunchConfig.
struct Config {
  unsigned grid[3], block[3];
  unsigned shared_bytes;
  void* stream;
  const Attribute* attributes;
  unsigned attribute_count;
};

// CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION; ..._SCHEDULING_POLICY_PREFERENCE, and its value "spread".
constexpr unsigned kClusterSize = 4, kClusterPolicy = 5, kSpread = 1;

// CU_POINTER_ATTRIBUTE_DEVICE_POINTER: the address by which kernels reach the memory at a host's address.
constexpr int kDevicePointer = 3;
// Arguments of `encode` that Triton passes for every descriptor: no interleaving, promotion to 128 bytes in L2.
constexpr int kNoInterleave = 0, kPromoteTo128Bytes = 2;

struct Driver {
  Result (*launch)(const Config*, void* function, void** parameters, void** extra);
  Result (*encode)(TensorMap*, int element_type, uint32_t rank, void* address, const uint64_t* sizes,
                   const uint64_t* strides, const uint32_t* box, const uint32_t* element_strides, int interleave,
                   int swizzle, int promotion, int fill);
  Result (*pointer_attribute)(void* value, int attribute, Address);
  Result (*current_context)(void**);
  Result (*error_name)(Result, const char**);
  Result (*version)(int*);
};

// Null where libcuda.so.1 or one of its functions is missing.
const Driver* driver();

}  // namespace mmcore::launch

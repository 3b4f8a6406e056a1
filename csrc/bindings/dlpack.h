// The part of DLPack's C interface that the bindings read: how another library describes a tensor in memory.
//
// Layouts and names are those of dlpack.h, version 1 (https://github.com/dmlc/dlpack). An exporter hands out a Python
// capsule. The capsule called "dltensor" holds a DLManagedTensor, the one called "dltensor_versioned" a
// DLManagedTensorVersioned.
#pragma once

#include <cstdint>

namespace mmcore::dlpack {

// The devices that these bindings accept.
enum DLDeviceType : std::int32_t { kDLCPU = 1, kDLCUDAHost = 3, kDLROCMHost = 11 };

struct DLDevice {
  std::int32_t device_type;
  std::int32_t device_id;
};

enum DLDataTypeCode : std::uint8_t {
  kDLInt = 0,
  kDLUInt = 1,
  kDLFloat = 2,
  kDLBfloat = 4,
  kDLComplex = 5,
  kDLBool = 6
};

struct DLDataType {
  std::uint8_t code;
  std::uint8_t bits;
  std::uint16_t lanes;

  bool operator==(const DLDataType&) const = default;
};

struct DLTensor {
  void* data;
  DLDevice device;
  std::int32_t ndim;
  DLDataType dtype;
  std::int64_t* shape;
  std::int64_t* strides;  // in numbers, not bytes; nullptr: dense, row by row
  std::uint64_t byte_offset;
};

struct DLManagedTensor {
  DLTensor dl_tensor;
  void* manager_ctx;
  void (*deleter)(DLManagedTensor* self);
};

struct DLPackVersion {
  std::uint32_t major;
  std::uint32_t minor;
};

constexpr std::uint64_t kReadOnlyFlag = 1;  // DLPACK_FLAG_BITMASK_READ_ONLY

struct DLManagedTensorVersioned {
  DLPackVersion version;
  void* manager_ctx;
  void (*deleter)(DLManagedTensorVersioned* self);
  std::uint64_t flags;
  DLTensor dl_tensor;
};

}  // namespace mmcore::dlpack

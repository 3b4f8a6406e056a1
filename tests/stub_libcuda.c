// A libcuda without a GPU: every function succeeds and does nothing, so that the host's side of launches runs anywhere.
//
// While it records, it writes a line for each launch (kernel, grid, block, shared memory, stream, attributes, the bytes
// of every parameter) and one for each tensor map that is encoded. How many bytes a parameter has is read from the
// compiled kernel. tests/stub_gpu.py builds it and calls what begins with stub_.
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int Result;
typedef void* Pointer;

enum { MOST_PARAMETERS = 256, MOST_BYTES = 1 << 22 };

typedef struct {
  char name[256];
  int count, sizes[MOST_PARAMETERS];
} Function;

typedef struct {
  unsigned grid[3], block[3], shared;
  Pointer stream, attributes;
  unsigned attribute_count;
} Config;

static long launches;
static int records, length, result_of_launches, version = 13000, contexts[2], current_context;
static char text[MOST_BYTES];

void stub_record(int on) { records = on, length = 0, text[0] = 0; }
const char* stub_text(void) { return text; }
long stub_launches(void) { return launches; }
void stub_let_launches_return(int result) { result_of_launches = result; }
void stub_set_version(int number) { version = number; }
void stub_set_context(int which) { current_context = which; }

static void say(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  if (length < MOST_BYTES - 4096) length += vsnprintf(text + length, 4096, format, arguments);
  va_end(arguments);
}

static void say_bytes(const void* bytes, int count) {
  for (int k = 0; k < count; ++k) say("%02x", ((const unsigned char*)bytes)[k]);
  say(" ");
}

// A section of an ELF file by its name; its size, or 0.
static uint64_t find_section(const unsigned char* image, const char* name, const unsigned char** begin) {
  uint64_t table = *(const uint64_t*)(image + 40), offset, size;
  uint16_t bytes = *(const uint16_t*)(image + 58), count = *(const uint16_t*)(image + 60);
  const unsigned char* headers = image + table;
  const unsigned char* names = headers + (uint64_t)bytes * *(const uint16_t*)(image + 62);
  for (int k = 0; k < count; ++k) {
    const unsigned char* header = headers + (uint64_t)bytes * k;
    offset = *(const uint64_t*)(names + 24) + *(const uint32_t*)header;
    if (strcmp((const char*)image + offset, name) != 0) continue;
    *begin = image + *(const uint64_t*)(header + 24), size = *(const uint64_t*)(header + 32);
    return size;
  }
  return 0;
}

// Attribute 0x17 of a kernel says a parameter's place among the others and, in its last 14 bits, its bytes.
static void read_sizes(const unsigned char* image, Function* function) {
  char section[300];
  const unsigned char* at;
  snprintf(section, sizeof section, ".nv.info.%s", function->name);
  uint64_t size = memcmp(image, "\177ELF", 4) == 0 ? find_section(image, section, &at) : 0;
  for (uint64_t k = 0; k < size;) {
    int is_long = at[k] == 4, bytes = is_long ? *(const uint16_t*)(at + k + 2) : 0;
    if (at[k + 1] == 0x17) {
      int place = *(const uint16_t*)(at + k + 8);
      function->sizes[place] = (int)(*(const uint32_t*)(at + k + 12) >> 18);
      if (place >= function->count) function->count = place + 1;
    }
    k += 4 + (uint64_t)bytes;
  }
}

Result cuModuleLoadData(Pointer* module, const void* image) { return *module = (Pointer)image, 0; }
Result cuModuleGetFunction(Pointer* handle, Pointer module, const char* name) {
  Function* function = calloc(1, sizeof(Function));
  snprintf(function->name, sizeof function->name, "%s", name);
  read_sizes(module, function);
  return *handle = function, 0;
}

Result cuLaunchKernelEx(const Config* config, Pointer handle, void** parameters, void** extra) {
  const Function* function = handle;
  (void)extra;
  ++launches;
  if (!records) return result_of_launches;
  const unsigned *grid = config->grid, *block = config->block;
  say("launch %s at %p grid %u %u %u block %u %u %u shared %u stream %p attributes ", function->name, handle, grid[0],
      grid[1], grid[2], block[0], block[1], block[2], config->shared, config->stream);
  for (unsigned k = 0; k < config->attribute_count; ++k) say_bytes((const char*)config->attributes + 72 * k, 24);
  say("parameters ");
  for (int k = 0; k < function->count; ++k) say_bytes(parameters[k], function->sizes[k]);
  say("\n");
  return result_of_launches;
}

// The map is a digest of what it was made from; all the bits are set that a launcher may clear.
Result cuTensorMapEncodeTiled(Pointer map, int type, unsigned rank, Pointer address, const uint64_t* sizes,
                              const uint64_t* strides, const unsigned* box, const unsigned* element_strides,
                              int interleave, int swizzle, int promotion, int fill) {
  char line[1024];
  int end = snprintf(line, sizeof line, "encode type %d rank %u address %p", type, rank, address);
  for (unsigned k = 0; k < rank; ++k)
    end += snprintf(line + end, sizeof line - end, " size %lu box %u step %u", sizes[k], box[k], element_strides[k]);
  for (unsigned k = 0; k + 1 < rank; ++k) end += snprintf(line + end, sizeof line - end, " stride %lu", strides[k]);
  end += snprintf(line + end, sizeof line - end, " options %d %d %d %d", interleave, swizzle, promotion, fill);
  uint64_t digest = 14695981039346656037u, *words = map;
  for (int k = 0; k < end; ++k) digest = (digest ^ (unsigned char)line[k]) * 1099511628211u;
  for (int k = 0; k < 16; ++k) words[k] = (digest *= 1099511628211u) | 1u << 21;
  if (records) say("%s\n", line);
  return 0;
}

// Of a Hopper GPU: shared memory, multiprocessors, compute capability, registers, threads of a warp.
Result cuDeviceGetAttribute(int* value, int attribute, int device) {
  static const int values[][2] = {{97, 232448}, {8, 49152},  {16, 132},    {75, 9}, {76, 0},
                                  {12, 65536},  {82, 65536}, {81, 233472}, {10, 32}};
  (void)device;
  *value = 1;
  for (unsigned k = 0; k < sizeof values / sizeof *values; ++k)
    if (values[k][0] == attribute) *value = values[k][1];
  return 0;
}

Result cuFuncGetAttribute(int* value, int attribute, Pointer function) {
  (void)function;
  return *value = attribute == 0 ? 1024 : 0, 0;  // threads of a block
}

Result cuPointerGetAttribute(void* value, int attribute, uint64_t address) {
  (void)attribute;
  return *(uint64_t*)value = address, 0;
}

Result cuGetErrorName(Result result, const char** name) {
  return *name = result == 719 ? "CUDA_ERROR_LAUNCH_FAILED" : "CUDA_ERROR_OF_THE_STUB", 0;
}

Result cuGetErrorString(Result result, const char** name) { return cuGetErrorName(result, name); }
Result cuInit(unsigned flags) { return (void)flags, 0; }
Result cuDriverGetVersion(int* number) { return *number = version, 0; }
Result cuDeviceGetCount(int* count) { return *count = 1, 0; }
Result cuDeviceGet(int* device, int which) { return *device = which, 0; }
Result cuCtxGetCurrent(Pointer* current) { return *current = &contexts[current_context], 0; }
Result cuCtxGetDevice(int* device) { return *device = 0, 0; }
Result cuCtxSetCurrent(Pointer current) { return (void)current, 0; }
Result cuCtxGetLimit(size_t* value, int limit) { return (void)limit, *value = 0, 0; }
Result cuCtxSetLimit(int limit, size_t value) { return (void)limit, (void)value, 0; }
Result cuDevicePrimaryCtxRetain(Pointer* current, int device) { return (void)device, cuCtxGetCurrent(current); }
Result cuFuncSetAttribute(Pointer function, int attribute, int value) {
  return (void)function, (void)attribute, (void)value, 0;
}
Result cuFuncSetCacheConfig(Pointer function, int kind) { return (void)function, (void)kind, 0; }
Result cuModuleUnload(Pointer module) { return (void)module, 0; }
Result cuOccupancyMaxActiveClusters(int* count, Pointer function, const void* config) {
  return (void)function, (void)config, *count = 1, 0;
}
Result cuStreamIsCapturing(Pointer stream, int* is_capturing) { return (void)stream, *is_capturing = 0, 0; }
Result cuTensorMapEncodeIm2col(void) { return 0; }

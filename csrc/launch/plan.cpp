// Packs the parameters of a compiled kernel, and launches it.
#include "plan.h"

#include <algorithm>
#include <cstring>

namespace mmcore::launch {
namespace {

// A descriptor gives its map, and each size and stride; Triton adds two pointers to memory that no plan needs.
constexpr int kMostParameters = kMostLeaves + kMostDescriptors * 2 * kMostRank + 2;
constexpr int kThreadsOfAWarp = 32;
// Up to driver 13.1, maps of matrices below this must not have bit 21 of their second word; CUTLASS clears it likewise.
constexpr int kLastToBeMended = 13010;
constexpr uint64_t kSmallBytes = 128 * 1024, kMended = uint64_t{1} << 21;

bool is_small(const Descriptor& descriptor, uint64_t element_bytes) {
  uint64_t last = 0;
  for (int k = 0; k < descriptor.rank; ++k) last += (descriptor.shape[k] - 1) * descriptor.strides[k] * element_bytes;
  return last + 1 < kSmallBytes;
}

bool is_old() {
  int version = 0;
  return driver()->version(&version) == 0 && version <= kLastToBeMended;
}

// The driver counts dimensions from the innermost.
Result encode(const Descriptor& from, const Box& box, TensorMap* map) {
  uint64_t sizes[kMostRank] = {}, strides[kMostRank] = {};
  uint32_t sides[kMostRank], ones[kMostRank];
  const int rank = from.rank;
  const uint64_t bytes = static_cast<uint64_t>(box.element_bytes);
  for (int k = 0; k < rank; ++k) {
    sizes[k] = from.shape[rank - 1 - k];
    sides[k] = box.sizes[rank - 1 - k];
    ones[k] = 1;
    if (k + 1 < rank) strides[k] = from.strides[rank - 2 - k] * bytes;
  }
  strides[rank - 1] = sizes[rank - 1] * (rank == 1 ? bytes : strides[rank - 2]);
  const Result result =
      driver()->encode(map, box.element_type, static_cast<uint32_t>(rank), reinterpret_cast<void*>(from.address), sizes,
                       strides, sides, ones, kNoInterleave, box.swizzle, kPromoteTo128Bytes, from.fills_with_nan);
  if (environment.mends_small_maps && is_old() && is_small(from, bytes)) map->words[1] &= ~kMended;
  return result;
}

// The bits of a float64, as those of a float32.
uint64_t rounded(uint64_t bits) {
  double number;
  std::memcpy(&number, &bits, sizeof number);
  const float single = static_cast<float>(number);
  uint32_t lower;
  std::memcpy(&lower, &single, sizeof lower);
  return lower;
}

bool is_one_of(PyObject* code, std::initializer_list<const char*> names) {
  return std::any_of(names.begin(), names.end(),
                     [&](const char* name) { return PyUnicode_CompareWithASCIIString(code, name) == 0; });
}

}  // namespace

Plan::Plan(const Arguments& arguments)
    : hash_(arguments.hash()), words_(arguments.words, arguments.words + arguments.word_count) {
  for (int k = 0; k < arguments.constant_count; ++k) constants_.push_back(Owned::another(arguments.constants[k]));
}

bool Plan::prepare(const Arguments& arguments, PyObject* compiled, PyObject* description) {
  PyObject* codes;
  const char* name;
  unsigned long long function;
  unsigned warps;
  if (!PyArg_ParseTuple(description, "KIIIsO!", &function, &shared_bytes_, &warps, &cluster_, &name, &PyTuple_Type,
                        &codes))
    return false;
  if (PyTuple_GET_SIZE(codes) != arguments.leaf_count) return false;
  for (int leaf = 0; leaf < arguments.leaf_count; ++leaf)
    if (!add_field(arguments, leaf, PyTuple_GET_ITEM(codes, leaf))) return false;
  function_ = reinterpret_cast<void*>(function);
  threads_ = kThreadsOfAWarp * warps;
  name_ = name;
  maps_.resize(boxes_.size());
  compiled_ = Owned::another(compiled);
  return true;
}

// `code` is Triton's name of the parameter's type, or of a descriptor how it is cut.
bool Plan::add_field(const Arguments& arguments, int leaf, PyObject* code) {
  if (PyTuple_Check(code)) return add_box(arguments, leaf, code);
  if (!PyUnicode_Check(code)) return false;
  if (is_one_of(code, {"constexpr"})) return true;
  const Kind kind = arguments.leaves[leaf].kind;
  const bool is_number = kind == Kind::kInteger || kind == Kind::kBoolean;
  if (PyUnicode_ReadChar(code, 0) == '*') {
    if (kind != Kind::kPointer) return false;
    fields_.push_back({Pack::kBits, leaf});
  } else if (is_one_of(code, {"i1", "i8", "i16", "i32", "i64", "u1", "u8", "u16", "u32", "u64"})) {
    if (!is_number) return false;
    fields_.push_back({Pack::kBits, leaf});
  } else if (kind != Kind::kFloat) {
    return false;
  } else if (is_one_of(code, {"fp32", "f32"})) {
    fields_.push_back({Pack::kFloat32, leaf});
  } else if (is_one_of(code, {"fp64"})) {
    fields_.push_back({Pack::kBits, leaf});
  } else {
    return false;
  }
  return true;
}

bool Plan::add_box(const Arguments& arguments, int leaf, PyObject* code) {
  Box box{};
  PyObject* sizes;
  if (arguments.leaves[leaf].kind != Kind::kDescriptor) return false;
  if (!PyArg_ParseTuple(code, "iiiO!", &box.swizzle, &box.element_bytes, &box.element_type, &PyTuple_Type, &sizes))
    return false;
  box.rank = arguments.descriptors[arguments.leaves[leaf].bits].rank;
  if (PyTuple_GET_SIZE(sizes) != box.rank) return false;
  for (int k = 0; k < box.rank; ++k) {
    const unsigned long size = PyLong_AsUnsignedLong(PyTuple_GET_ITEM(sizes, k));
    if (PyErr_Occurred()) return false;
    box.sizes[k] = static_cast<uint32_t>(size);
  }
  boxes_.push_back(box);
  fields_.push_back({Pack::kDescriptor, leaf});
  return true;
}

bool Plan::serves(const Arguments& arguments, uint64_t hash) const {
  if (hash != hash_ || static_cast<size_t>(arguments.word_count) != words_.size()) return false;
  if (static_cast<size_t>(arguments.constant_count) != constants_.size()) return false;
  if (!std::equal(words_.begin(), words_.end(), arguments.words)) return false;
  for (size_t k = 0; k < constants_.size(); ++k)
    if (!is_same(constants_[k].get(), arguments.constants[k])) return false;
  return true;
}

// Addresses seldom change from step to step: the allocator hands out the same memory again.
const TensorMap* Plan::map_of(const Descriptor& descriptor, int which) {
  Map& map = maps_[which];
  if (map.descriptor == descriptor) return &map.map;
  map.descriptor = {};
  if (!succeeded(encode(descriptor, boxes_[which], &map.map), "describing a matrix to")) return nullptr;
  map.descriptor = descriptor;
  return &map.map;
}

bool Plan::succeeded(Result result, const char* action) const {
  if (result == 0) return true;
  const char* name = nullptr;
  if (driver()->error_name(result, &name) != 0 || name == nullptr) name = "an unknown error";
  PyErr_Format(PyExc_RuntimeError, "%s the kernel %s failed: %s (%d)", action, name_.c_str(), name, result);
  return false;
}

// What the driver is given. It is on the stack of the thread that launches: another may launch the same plan meanwhile.
struct Plan::Parameters {
  Parameters() {}  // leaves the arrays as they are

  void add(uint64_t bits) {
    slots[count] = bits;
    pointers[count] = &slots[count];
    ++count;
  }

  int count = 0, map_count = 0;
  uint64_t slots[kMostParameters];
  TensorMap maps[kMostDescriptors];
  void* pointers[kMostParameters];
};

bool Plan::pack(const Arguments& arguments, Parameters& parameters) {
  for (const Field& field : fields_) {
    const uint64_t bits = arguments.leaves[field.leaf].bits;
    if (field.pack != Pack::kDescriptor) {
      parameters.add(field.pack == Pack::kFloat32 ? rounded(bits) : bits);
      continue;
    }
    const Descriptor& descriptor = arguments.descriptors[bits];
    const int which = parameters.map_count++;
    const TensorMap* map = map_of(descriptor, which);
    if (map == nullptr) return false;
    parameters.maps[which] = *map;
    parameters.pointers[parameters.count++] = &parameters.maps[which];
    for (int k = 0; k < descriptor.rank; ++k) parameters.add(descriptor.shape[k]);
    for (int k = 0; k < descriptor.rank; ++k) parameters.add(descriptor.strides[k]);
  }
  parameters.add(0);
  parameters.add(0);
  return true;
}

bool Plan::launch(const Arguments& arguments, const unsigned (&grid)[3], void* stream) {
  Parameters parameters;
  if (!pack(arguments, parameters)) return false;
  const Attribute attributes[2] = {{kClusterSize, 0, {cluster_, 1, 1}}, {kClusterPolicy, 0, {kSpread}}};
  const unsigned attribute_count = cluster_ == 1 ? 0 : 2;
  const Config config{
      {grid[0] * cluster_, grid[1], grid[2]}, {threads_, 1, 1}, shared_bytes_, stream, attributes, attribute_count};
  // The driver waits here while its queue is full, maybe for a host function that needs the GIL.
  PyThreadState* const thread = PyEval_SaveThread();
  const Result result = driver()->launch(&config, function_, parameters.pointers, nullptr);
  PyEval_RestoreThread(thread);
  return succeeded(result, "launching");
}

}  // namespace mmcore::launch

// Temporary memory of the kernels: one region per thread, in large pages where the system grants them.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <new>

#include "parallel.h"

namespace mmcore {
namespace {

constexpr Index kLargePage = 2 << 20;

// Asks for large pages where whole ones fit: a page fault for every small page takes long. The system may refuse.
inline void prefer_large_pages(float* data, Index bytes) {
  const auto begin = reinterpret_cast<std::uintptr_t>(data), end = begin + bytes;
  const std::uintptr_t first = (begin + kLargePage - 1) / kLargePage * kLargePage;
  if (first < end) madvise(reinterpret_cast<void*>(first), (end - first) / kLargePage * kLargePage, MADV_HUGEPAGE);
}

// Uninitialised memory, one region per thread that begins at a cache line. It is allocated before the threads start,
// because an exception must not leave a parallel region.
class Scratch {
 public:
  Scratch(Index floats_per_thread, int threads) : floats_per_thread_(round_up(floats_per_thread, 16)) {
    const Index bytes = floats_per_thread_ * threads * static_cast<Index>(sizeof(float));
    const Index alignment = bytes < kLargePage ? 64 : kLargePage;
    // At least one byte: for 0 bytes aligned_alloc may return null, which means "out of memory" below.
    data_ = static_cast<float*>(std::aligned_alloc(alignment, round_up(maximum(1, bytes), alignment)));
    if (data_ == nullptr) throw std::bad_alloc();
    prefer_large_pages(data_, bytes);
  }
  ~Scratch() { std::free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  float* of_thread(int thread) const { return data_ + thread * floats_per_thread_; }

 private:
  Index floats_per_thread_;
  float* data_;
};

// Hands out consecutive pieces of one thread's region, each of which begins at a cache line.
class Carver {
 public:
  explicit Carver(float* data) : next_(data) {}
  float* take(Index floats) {
    float* piece = next_;
    next_ += round_up(floats, 16);
    return piece;
  }

 private:
  float* next_;
};

}  // namespace
}  // namespace mmcore

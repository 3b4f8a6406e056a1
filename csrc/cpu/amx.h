// The processor's matrix unit, AMX: the only file that knows its instructions.
//
// A tile is 16 rows of 64 bytes: 16×16 sums, or an operand of 16×16 pairs of bfloat16. One instruction computes
//
//   sums(r, c) += Σ_k low(lhs(r, k))·low(rhs(k, c)) + Σ_k high(lhs(r, k))·high(rhs(k, c)),  k < 16
//
// The two sums over k are chains of FMAs that begin at zero; they are added to each other and then to the sum that is
// there. Everything is rounded to nearest; denormal numbers are read and written as zero.
//
// There are eight tiles, and a program names them by number. Strides are in floats. MMCORE_EMULATE_AMX compiles the
// same interface to vectors, with the same bits.
#pragma once

#include "vec.h"

namespace mmcore {
namespace {

constexpr Index kTileUnits = 256;  // 32-bit numbers or pairs in a tile

#if defined(MMCORE_EMULATE_AMX) || defined(__AMX_TILE__)
#define MMCORE_MATRIX_UNIT
constexpr bool kHasMatrixUnit = true;

// Denormal numbers count as zero in this thread while the object lives. As operands of FMAs they are slow, and the
// matrix unit ignores them anyway.
class FlushedDenormals {
 public:
  FlushedDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  ~FlushedDenormals() { _mm_setcsr(before_); }
  FlushedDenormals(const FlushedDenormals&) = delete;
  FlushedDenormals& operator=(const FlushedDenormals&) = delete;

 private:
  unsigned before_;
};

#ifdef MMCORE_EMULATE_AMX

struct MatrixUnit {
  // Every thread that multiplies tiles does so while it owns one of these.
  struct Region {
    FlushedDenormals flushed;
  };

  template <int kTile>
  static void clear() {
    std::memset(tiles[kTile], 0, sizeof(tiles[kTile]));
  }
  template <int kTile>
  static void load(const float* from, Index stride) {
    for (int r = 0; r < 16; ++r) store(tiles[kTile] + r * 16, mmcore::load(from + r * stride));
  }
  template <int kTile>
  static void load_once(const float* from, Index stride) {
    load<kTile>(from, stride);
  }
  template <int kTile>
  static void store_sums(float* to, Index stride) {
    for (int r = 0; r < 16; ++r) store(to + r * stride, mmcore::load(tiles[kTile] + r * 16));
  }
  template <int kSums, int kLhs, int kRhs>
  static void multiply() {
    const BitsVec high = BitsVec{} + 0xffff0000u;
    for (int r = 0; r < 16; ++r) {
      Vec even{}, odd{};
      for (int k = 0; k < 16; ++k) {
        const BitsVec a = reinterpret_cast<BitsVec>(broadcast_bits(tiles[kLhs] + r * 16 + k)),
                      b = reinterpret_cast<BitsVec>(mmcore::load(tiles[kRhs] + k * 16));
        even = multiply_add(reinterpret_cast<Vec>(a << 16), reinterpret_cast<Vec>(b << 16), even);
        odd = multiply_add(reinterpret_cast<Vec>(a & high), reinterpret_cast<Vec>(b & high), odd);
      }
      float* sums = tiles[kSums] + r * 16;
      store(sums, mmcore::load(sums) + (even + odd));
    }
  }

 private:
  alignas(64) static inline thread_local float tiles[8][kTileUnits];
};

#else

// Spelled out, because GCC 12's own functions tell the compiler too little about the memory they read: it may delete or
// move the stores before them.
struct MatrixUnit {
  class Region {
   public:
    Region() {
      struct alignas(64) {
        unsigned char palette = 1, start_row = 0, reserved[14] = {};
        unsigned short bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
        unsigned char rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
      } shapes;
      asm volatile("ldtilecfg %0" ::"m"(shapes) : "memory");
    }
    ~Region() { asm volatile("tilerelease" ::: "memory"); }
    Region(const Region&) = delete;
    Region& operator=(const Region&) = delete;

   private:
    FlushedDenormals flushed_;
  };

  template <int kTile>
  static void clear() {
    asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
  }
  template <int kTile>
  static void load(const float* from, Index stride) {
    asm volatile("tileloadd (%0,%1,4), %%tmm%c2" ::"r"(from), "r"(stride), "i"(kTile) : "memory");
  }
  // Of memory that is not read again soon.
  template <int kTile>
  static void load_once(const float* from, Index stride) {
    asm volatile("tileloaddt1 (%0,%1,4), %%tmm%c2" ::"r"(from), "r"(stride), "i"(kTile) : "memory");
  }
  template <int kTile>
  static void store_sums(float* to, Index stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,4)" ::"r"(to), "r"(stride), "i"(kTile) : "memory");
  }
  template <int kSums, int kLhs, int kRhs>
  static void multiply() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSums), "i"(kLhs), "i"(kRhs));
  }
};

#endif
#else
constexpr bool kHasMatrixUnit = false;
#endif

}  // namespace
}  // namespace mmcore

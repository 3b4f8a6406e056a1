// Products of bytes, summed in int32. A Vec holds them as the units of the block product (arithmetic.h).
#pragma once

#include "vec.h"

namespace mmcore {
namespace {

// Whether the build may name the instruction for four bytes a lane. Processors with AVX-512 have it or not:
// AVX512-VNNI.
#if defined(__AVX512F__) && MMCORE_LANES == 16
constexpr bool kCanHaveByteProducts = true;
inline bool has_byte_products() { return __builtin_cpu_supports("avx512vnni"); }
#else
constexpr bool kCanHaveByteProducts = false;
inline bool has_byte_products() { return false; }
#endif

inline Vec added_as_integers(Vec a, Vec b) {
  return reinterpret_cast<Vec>(reinterpret_cast<BitsVec>(a) + reinterpret_cast<BitsVec>(b));
}

// sum += Σ a·b over the four bytes of a lane, those of a unsigned.
inline void add_byte_products(Vec& sum, Vec a, Vec b) {
#if defined(__AVX512F__) && MMCORE_LANES == 16
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
#else
  (void)sum, (void)a, (void)b;
#endif
}

// sum += Σ a·b over the two int16 numbers of a lane.
inline void add_short_products(Vec& sum, Vec a, Vec b) {
#if defined(__AVX512BW__) && MMCORE_LANES == 16
  const __m512i products = _mm512_madd_epi16(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b));
#elif defined(__AVX2__) && MMCORE_LANES == 8
  const __m256i products = _mm256_madd_epi16(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b));
#elif defined(__SSE2__) && MMCORE_LANES == 4
  const __m128i products = _mm_madd_epi16(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b));
#else
  const IntVec p = reinterpret_cast<IntVec>(a), q = reinterpret_cast<IntVec>(b);
  const IntVec products = (p << 16 >> 16) * (q << 16 >> 16) + (p >> 16) * (q >> 16);
#endif
  sum = added_as_integers(sum, reinterpret_cast<Vec>(products));
}

// 2·kLanes bytes as int16 numbers.
inline Vec widened_to_shorts(const std::int8_t* from) {
  using Bytes = std::int8_t __attribute__((vector_size(2 * kLanes)));
  using Shorts = std::int16_t __attribute__((vector_size(4 * kLanes)));
  Bytes bytes;
  std::memcpy(&bytes, from, sizeof(bytes));
  return reinterpret_cast<Vec>(__builtin_convertvector(bytes, Shorts));
}

// The first `count` lanes, which fit into bytes.
inline void store_bytes(std::int8_t* to, IntVec v, Index count) {
  using Bytes = std::int8_t __attribute__((vector_size(kLanes)));
  const Bytes bytes = __builtin_convertvector(v, Bytes);
  std::memcpy(to, &bytes, count < kLanes ? count : kLanes);
}

inline std::int32_t sum(IntVec v) {
  std::int32_t result = 0;
  for (int lane = 0; lane < kLanes; ++lane) result += v[lane];
  return result;
}

}  // namespace
}  // namespace mmcore

// Vectors of float32 and the few functions that every kernel shares. The build sets kLanes for each instruction set.
//
// Written with the compiler's vector extensions, and with intrinsics only where these do not suffice: one source serves
// SSE2, AVX2 and AVX-512, and wide vectors can be tested on narrow machines. -ffp-contract=fast makes a * b + c an FMA.
#pragma once

#ifdef __SSE2__
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

#include "../matrix.h"

namespace mmcore {
namespace {

constexpr int kLanes = MMCORE_LANES;

using Vec = float __attribute__((vector_size(kLanes * sizeof(float))));
using IntVec = std::int32_t __attribute__((vector_size(kLanes * sizeof(float))));

using BitsVec = std::uint32_t __attribute__((vector_size(kLanes * sizeof(float))));
using HalfVec = std::uint16_t __attribute__((vector_size(kLanes * sizeof(std::uint16_t))));

// Whether the build may multiply pairs of bfloat16: by their own instruction, or emulated for the tests.
#ifdef MMCORE_BFLOAT16_PRODUCTS
constexpr bool kHasBfloat16Products = true;
#else
constexpr bool kHasBfloat16Products = false;
#endif

constexpr float kInfinity = std::numeric_limits<float>::infinity();

inline Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof(v)); }

// The first `count` lanes from memory, zeros behind them; reads nothing beyond.
inline Vec load_first(const float* p, Index count) {
  Vec v{};
  if (count >= kLanes) return load(p);
  std::memcpy(&v, p, count * sizeof(float));
  return v;
}

inline void store_first(float* p, Vec v, Index count) {
  if (count >= kLanes) return store(p, v);
  std::memcpy(p, &v, count * sizeof(float));
}

inline IntVec load(const std::int32_t* p) {
  IntVec v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

inline Vec broadcast(float value) { return value - Vec{}; }

// Every lane the 32 bits of `*unit`, which need not be a float.
inline Vec broadcast_bits(const float* unit) {
  std::uint32_t bits;
  std::memcpy(&bits, unit, sizeof(bits));
  return reinterpret_cast<Vec>(bits - BitsVec{});
}

inline bool any(IntVec mask) {
#if defined(__AVX512F__) && MMCORE_LANES == 16
  return _mm512_test_epi32_mask(reinterpret_cast<__m512i>(mask), reinterpret_cast<__m512i>(mask)) != 0;
#elif defined(__AVX2__) && MMCORE_LANES == 8
  return _mm256_movemask_ps(reinterpret_cast<__m256>(mask)) != 0;
#else
  std::int32_t bits = 0;
  for (int lane = 0; lane < kLanes; ++lane) bits |= mask[lane];
  return bits != 0;
#endif
}

// Bit l says that lane l of a is not below that of b, or that one of them is NaN.
inline std::uint32_t not_below(Vec a, Vec b) {
#if defined(__AVX512F__) && MMCORE_LANES == 16
  return _mm512_cmp_ps_mask(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), _CMP_NLT_UQ);
#elif defined(__AVX__) && MMCORE_LANES == 8
  return _mm256_movemask_ps(_mm256_cmp_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b), _CMP_NLT_UQ));
#elif defined(__SSE2__) && MMCORE_LANES == 4
  return _mm_movemask_ps(_mm_cmpnlt_ps(reinterpret_cast<__m128>(a), reinterpret_cast<__m128>(b)));
#else
  std::uint32_t bits = 0;
  for (int lane = 0; lane < kLanes; ++lane) bits |= static_cast<std::uint32_t>(!(a[lane] < b[lane])) << lane;
  return bits;
#endif
}

// a · b + c, rounded once; without FMA once to float64 and once to float32. Used where the rounding of the
// product would count, or where a forward and its backward have to compute the same bits.
inline Vec multiply_add(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__) && MMCORE_LANES == 16
  return reinterpret_cast<Vec>(
      _mm512_fmadd_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(c)));
#elif defined(__FMA__) && MMCORE_LANES == 8
  return reinterpret_cast<Vec>(
      _mm256_fmadd_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b), reinterpret_cast<__m256>(c)));
#else
  using Double = double __attribute__((vector_size(kLanes * sizeof(double))));
  const auto wide = [](Vec v) { return __builtin_convertvector(v, Double); };
  return __builtin_convertvector(wide(a) * wide(b) + wide(c), Vec);
#endif
}

// sum += a · b, in place. Spelled out: left to itself GCC 12 picks FMA forms that move sums
// between registers, and in an unrolled loop spills them, or reloads an operand for every use.
inline void add_product(Vec& sum, Vec a, Vec b) {
#if defined(__AVX512F__) && MMCORE_LANES == 16
  asm("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
#elif defined(__FMA__) && MMCORE_LANES == 8
  asm("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
#else
  sum += a * b;
#endif
}

// sum += low(a)·low(b) + high(a)·high(b), each lane holding two bfloat16 numbers.
inline void add_pair_product(Vec& sum, Vec a, Vec b) {
#if defined(__AVX512BF16__) && MMCORE_LANES == 16
  asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
#else
  const BitsVec bits_a = reinterpret_cast<BitsVec>(a), bits_b = reinterpret_cast<BitsVec>(b);
  const BitsVec high = BitsVec{} + 0xffff0000u;
  sum += reinterpret_cast<Vec>(bits_a & high) * reinterpret_cast<Vec>(bits_b & high);
  sum += reinterpret_cast<Vec>(bits_a << 16) * reinterpret_cast<Vec>(bits_b << 16);
#endif
}

// Added in pairs, which rounds less than a chain of additions.
inline float sum(Vec v) {
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int lane = 0; lane < half; ++lane) v[lane] += v[lane + half];
  return v[0];
}

// One step of a transposition: exchanges the off-diagonal blocks of kStep lanes of two rows.
template <int kStep, int... kLane>
inline void exchange(Vec& a, Vec& b, std::integer_sequence<int, kLane...>) {
  const Vec first = __builtin_shufflevector(a, b, (kLane & kStep ? kLanes + kLane - kStep : kLane)...);
  b = __builtin_shufflevector(a, b, (kLane & kStep ? kLanes + kLane : kLane + kStep)...);
  a = first;
}

// Rows become columns.
template <int kStep = 1>
inline void transpose(Vec (&rows)[kLanes]) {
  if constexpr (kStep < kLanes) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i)
      if ((i & kStep) == 0) exchange<kStep>(rows[i], rows[i + kStep], std::make_integer_sequence<int, kLanes>());
    transpose<2 * kStep>(rows);
  }
}

// Lanes below `count` of `v`, `other` in the rest.
inline Vec first_lanes(Vec v, Index count, Vec other) {
  IntVec lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = i;
  return lane < static_cast<std::int32_t>(count) ? v : other;
}

// ---- 16-bit storage

inline float widen(float value) { return value; }
inline float widen(Bfloat16 value) {
  const std::uint32_t bits = static_cast<std::uint32_t>(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}
inline float widen(Float16 value) {
  // The exponent's bias moves from 15 to 127. Subnormal numbers are multiples of 2⁻²⁴.
  const std::uint32_t magnitude = value.bits & 0x7fff;
  const float subnormal = static_cast<float>(magnitude) * 0x1p-24f;
  std::uint32_t bits;
  std::memcpy(&bits, &subnormal, sizeof(bits));
  if (magnitude >= 0x400) bits = (magnitude << 13) + (112u << 23);
  if (magnitude >= 0x7c00) bits |= 0x7f800000u;  // inf and NaN
  bits |= static_cast<std::uint32_t>(value.bits & 0x8000) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}

template <class T>
inline BitsVec load_first_bits(const T* p, Index count) {
  HalfVec bits{};
  if (count >= kLanes) {
    std::memcpy(&bits, p, sizeof(bits));
  } else {
    std::memcpy(&bits, p, count * sizeof(T));
  }
  return __builtin_convertvector(bits, BitsVec);
}
inline Vec load_first(const Bfloat16* p, Index count) { return reinterpret_cast<Vec>(load_first_bits(p, count) << 16); }
inline Vec load_first(const Float16* p, Index count) {  // as `widen`
  const BitsVec bits = load_first_bits(p, count), magnitude = bits & 0x7fffu;
  const Vec subnormal = __builtin_convertvector(reinterpret_cast<IntVec>(magnitude), Vec) * 0x1p-24f;
  BitsVec result = magnitude < 0x400u ? reinterpret_cast<BitsVec>(subnormal) : (magnitude << 13) + (112u << 23);
  result = magnitude >= 0x7c00u ? result | 0x7f800000u : result;
  return reinterpret_cast<Vec>(result | (bits & 0x8000u) << 16);
}

// To nearest, ties to even; a NaN stays one. The pointer names the dtype.
inline BitsVec rounded_bits(Vec v, const Bfloat16*) {
  const BitsVec bits = reinterpret_cast<BitsVec>(v), rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  return v != v ? BitsVec{} + 0x7fc0u : rounded;
}
inline BitsVec rounded_bits(Vec v, const Float16*) {
  const BitsVec bits = reinterpret_cast<BitsVec>(v), magnitude = bits & 0x7fffffffu;
  // The exponent's bias moves from 127 to 15; too large a number overflows into that of infinity.
  const BitsVec normal = (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  // Subnormal: the last digit of 0.5 is that of the result, 2⁻²⁴.
  const BitsVec subnormal = reinterpret_cast<BitsVec>(reinterpret_cast<Vec>(magnitude) + 0.5f) - 0x3f000000u;
  BitsVec result = magnitude < (113u << 23) ? subnormal : normal;
  result = magnitude >= (143u << 23) ? BitsVec{} + 0x7c00u : result;
  result = v != v ? BitsVec{} + 0x7e00u : result;
  return result | (bits >> 16 & 0x8000u);
}
template <class T>
inline void store_first(T* p, Vec v, Index count) {
  const HalfVec bits = __builtin_convertvector(rounded_bits(v, p), HalfVec);
  if (count >= kLanes) {
    std::memcpy(p, &bits, sizeof(bits));
  } else {
    std::memcpy(p, &bits, count * sizeof(T));
  }
}

// As above.
inline std::uint32_t bfloat16_bits(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const std::uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  return value != value ? 0x7fc0u : rounded;
}

// Finite numbers to the nearest bfloat16 numbers, as float32.
inline Vec rounded_to_bfloat16(Vec v) {
  const BitsVec bits = reinterpret_cast<BitsVec>(v);
  return reinterpret_cast<Vec>((bits + 0x7fffu + (bits >> 16 & 1u)) & 0xffff0000u);
}

// Two vectors as one of bfloat16 pairs: (a₀, a₁), (a₂, a₃), …, (b₀, b₁), …
inline Vec neighbours_in_bfloat16(Vec a, Vec b) {
#if defined(__AVX512BF16__) && MMCORE_LANES == 16
  return reinterpret_cast<Vec>(_mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(a)));
#else
  BitsVec pairs;
  for (int lane = 0; lane < kLanes; ++lane) {
    const Vec& from = 2 * lane < kLanes ? a : b;
    const int first = 2 * lane % kLanes;
    pairs[lane] = bfloat16_bits(from[first]) | bfloat16_bits(from[first + 1]) << 16;
  }
  return reinterpret_cast<Vec>(pairs);
#endif
}

// Two vectors as one of bfloat16 pairs: (a₀, b₀), (a₁, b₁), …
inline Vec interleaved_in_bfloat16(Vec a, Vec b) {
#if defined(__AVX512BF16__) && MMCORE_LANES == 16
  alignas(64) static constexpr std::uint16_t kOrder[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                           21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                           11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const Vec both = reinterpret_cast<Vec>(_mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(a)));
  return reinterpret_cast<Vec>(_mm512_permutexvar_epi16(_mm512_load_si512(kOrder), reinterpret_cast<__m512i>(both)));
#else
  BitsVec pairs;
  for (int lane = 0; lane < kLanes; ++lane) pairs[lane] = bfloat16_bits(a[lane]) | bfloat16_bits(b[lane]) << 16;
  return reinterpret_cast<Vec>(pairs);
#endif
}

}  // namespace
}  // namespace mmcore

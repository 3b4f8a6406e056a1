// Vectors of float64, of the width that the compiler's target has, and the arithmetic that exact scores need.
#pragma once

#include "vec.h"

namespace mmcore {
namespace {

// As many as one register holds, so that `as_rounded` can name it.
#if defined(__AVX512F__)
constexpr int kDoubles = 8;
#elif defined(__AVX__)
constexpr int kDoubles = 4;
#else
constexpr int kDoubles = 2;
#endif
using DoubleVec = double __attribute__((vector_size(kDoubles * sizeof(double))));

inline DoubleVec load_doubles(const float* p) {
  using Floats = float __attribute__((vector_size(kDoubles * sizeof(float))));
  Floats v;
  std::memcpy(&v, p, sizeof(v));
  return __builtin_convertvector(v, DoubleVec);
}

// The value itself. The compiler cannot see through it, so that a product is rounded before it is added. Without this,
// -ffp-contract=fast would make one FMA of both where the target has FMA, and the bits would depend on the target.
inline DoubleVec as_rounded(DoubleVec v) {
#if defined(__AVX512F__)
  asm("" : "+v"(v));
#else
  asm("" : "+x"(v));
#endif
  return v;
}
inline double as_rounded(double v) {
  asm("" : "+x"(v));
  return v;
}

// While the object lives, this thread computes as a thread begins: denormal numbers count, results are rounded to
// nearest. A caller may have chosen otherwise, and so do the regions of the matrix unit.
class KeptDenormals {
 public:
#ifdef __SSE2__
  KeptDenormals() : before_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
  ~KeptDenormals() { _mm_setcsr(before_); }
  KeptDenormals(const KeptDenormals&) = delete;
  KeptDenormals& operator=(const KeptDenormals&) = delete;

 private:
  unsigned before_;
#endif
};

}  // namespace
}  // namespace mmcore

// The block product: the multiply-add core under every kernel.
//
//   out(r, c) = or += Σ_k lhs(r, k) · rhs(k, c)
//
// Operands are packed (operand.h) for the arithmetic A (arithmetic.h). It decides which of two products computes:
// vector_product.h or tile_product.h.
//
// Never stored: more of a product than the caller's block or matrix.
// Loop order: that of the product that computes.
// Precision: float32 sums; how exact each product is, A decides.
#pragma once

#include "vector_product.h"
#ifdef MMCORE_MATRIX_UNIT
#include "tile_product.h"
#endif

namespace mmcore {
namespace {

// What a thread needs while it multiplies.
template <class A>
struct Multiplying {
  Multiplying() {}
};

#ifdef MMCORE_MATRIX_UNIT
template <class A>
  requires(A::kUsesMatrixUnit)
struct Multiplying<A> {
  MatrixUnit::Region region;
};
#endif

// block = base + the product of a block of at most kBlock × kBlock for any depth (rows kBlockStride apart, kBlockFloats
// in all, which leaves room for whole tiles); no base means zeros. epilogue(row, column) follows the kTileRows ×
// kTileColumns products there, after they are finished.
template <class A, class Epilogue>
inline void multiply_block(Lhs<A> lhs, Rhs<A> rhs, Index rows, Index columns, Index depth, float* block,
                           Epilogue&& epilogue, const float* base = nullptr) {
  if constexpr (A::kUsesMatrixUnit) {
    multiply_block_by_tiles<A>(lhs, rhs, rows, columns, depth, block, epilogue, base);
  } else {
    multiply_block_by_vectors<A>(lhs, rhs, rows, columns, depth, block, epilogue, base);
  }
}

// target += the product, for any size and depth.
template <class A>
inline void multiply_into(Lhs<A> lhs, Rhs<A> rhs, Index depth, MutableMatrix target) {
  if constexpr (A::kUsesMatrixUnit) {
    multiply_into_by_tiles<A>(lhs, rhs, depth, target);
  } else {
    multiply_into_by_vectors<A>(lhs, rhs, depth, target);
  }
}

}  // namespace
}  // namespace mmcore

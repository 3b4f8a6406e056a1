// How a search is done: which first pass, how many queries at a time, and what each thread takes.
//
//                              few queries      full                        fast
//   matrix unit                rows             tiles, as exact as given    tiles of bfloat16
//   byte products (VNNI)       rows             float32, pairs of bfloat16  bytes; for large k pairs of bfloat16
//   neither                    rows             float32, pairs of bfloat16  that of the fewest operations
//
// "auto" is the fast one where it pays. A gallery that is prepared as bytes is read as bytes. Bounds of bytes are four
// times as wide as those of bfloat16: for large k, more candidates would have to be scored than they save.
#pragma once

#include "topk_bytes_pass.h"
#include "topk_few_pass.h"
#include "topk_rows_pass.h"

namespace mmcore {
namespace {

// Up to this k bytes are faster than pairs of bfloat16.
constexpr Index kMostItemsByBytes = 32;
// The bags of all threads take at most this much memory, if one group of queries does.
constexpr Index kMostBagFloats = 6 << 20;

// Queries of a chunk: their bags, and their packed rows, stay in the last cache.
constexpr Index kQueriesAtATime = (kHasMatrixUnit ? 4 : 8) * kBlock;

enum class PassKind { kExact, kRows, kRounded, kBytes };

inline PassKind pass_of(const TopkInputs& inputs) {
  const Index depth = inputs.queries.columns;
  const bool is_few = inputs.queries.rows <= kFewQueries, is_prepared = inputs.prepared.bytes != nullptr,
             is_bfloat16 = inputs.queries.dtype == Dtype::kBfloat16, fits_bytes = depth <= kLargestByteDepth;
  // Nearly everything would be scored in float64 anyway, or bounds would be too wide.
  if (inputs.k >= inputs.gallery.rows / 4 || depth > (1 << 20)) return PassKind::kExact;
  if (inputs.first_pass == FirstPass::kFull) return PassKind::kRows;
  if (inputs.first_pass == FirstPass::kInt8) return fits_bytes ? PassKind::kBytes : PassKind::kRows;
  if (is_prepared && fits_bytes && (is_few || inputs.k <= kMostItemsByBytes)) return PassKind::kBytes;
  if (is_few) return PassKind::kRows;
  if (!kHasMatrixUnit && has_byte_products() && fits_bytes && inputs.k <= kMostItemsByBytes) return PassKind::kBytes;
  return (kHasMatrixUnit || kHasBfloat16Products) && !is_bfloat16 ? PassKind::kRounded : PassKind::kRows;
}

// run(pass) with the pass of a kind, which sets the terms of the queries.
template <class Run>
void with_rows_pass(const Search& search, int threads, Run run) {
  const Dtype dtype = search.inputs.queries.dtype;
  constexpr Multiplied kHow = Multiplied::kAsGiven;
  if constexpr (kHasMatrixUnit) {
    if (dtype == Dtype::kFloat32) return run(RowsPass<Float32Tiles, kHow>(search, threads));
    if (dtype == Dtype::kFloat16) return run(RowsPass<Float16Tiles, kHow>(search, threads));
    return run(RowsPass<Bfloat16Tiles, kHow>(search, threads));
  } else {
    if constexpr (kHasBfloat16Products)
      if (dtype == Dtype::kBfloat16) return run(RowsPass<Bfloat16Pairs, kHow>(search, threads));
    return run(RowsPass<LongFloat32, kHow>(search, threads));
  }
}
template <class Run>
void with_rounded_pass(const Search& search, int threads, Run run) {
  using A = std::conditional_t<kHasMatrixUnit, Bfloat16Tiles, Bfloat16Pairs>;
  if constexpr (kHasMatrixUnit || kHasBfloat16Products) run(RowsPass<A, Multiplied::kAsBfloat16>(search, threads));
}
template <class Run>
void with_bytes_pass(const Search& search, bool is_few, int threads, Run run) {
  const auto with_arithmetic = [&]<class A>(A) {
    if (is_few) {
      run(FewBytesPass<A>(search));
    } else {
      run(BytesPass<A>(search, threads));
    }
  };
  if constexpr (kCanHaveByteProducts)
    if (has_byte_products()) return with_arithmetic(ByteQuads{});
  with_arithmetic(ShortPairs{});
}

struct TopkPlan {
  TopkPlan(const TopkInputs& inputs, int threads)
      : threads(threads), is_few(inputs.queries.rows <= kFewQueries), kind(pass_of(inputs)) {
    const Index items = inputs.gallery.rows;
    is_by_queries = !is_few && items < 2 * kBlock * threads;
    const Index most = is_by_queries ? items : ceiling(items, threads) + kTileColumns;
    kept = minimum(inputs.k, most);
    capacity = kind == PassKind::kExact ? 1 : bag_capacity(inputs.k, kind == PassKind::kBytes, most);
    const Index copies = is_by_queries ? 1 : threads,
                affordable = kMostBagFloats / (copies * Bags::floats(1, kept, capacity)),
                wanted = kQueriesAtATime * (is_by_queries ? threads : 1);
    chunk = maximum(kStripeRows, minimum(wanted, affordable) / kStripeRows * kStripeRows);
  }

  // What part `part` of `threads` takes: queries of a chunk, and items.
  Range rows(Index queries, int part) const {
    return is_by_queries ? stripe(queries, kStripeRows, part, threads) : Range{0, queries};
  }
  Index most_rows(Index queries) const {
    return is_by_queries ? round_up(ceiling(queries, threads), kStripeRows) : queries;
  }
  Range columns(Index items, int part) const {
    return is_by_queries ? Range{0, items} : stripe(items, kTileColumns, part, threads);
  }

  int threads;
  bool is_few, is_by_queries = false;
  PassKind kind;
  Index kept = 0, capacity = 0;  // exact items and candidates of a query in one part
  Index chunk = 0;               // queries at a time
};

}  // namespace
}  // namespace mmcore

// The k best items of each query, by float64 scores and the order (−score, index).
//
//   score(i, j) = ⟨x_i, y_j⟩, the cosine, or −‖x_i − y_j‖², + bias_j        (score.h: to the bit)
//   found(i) = the first k of all j, of the chunk and of what earlier chunks have found
//
// Never stored: the scores. A first pass computes numbers in float32, in bfloat16 or by bytes, block by block, and its
// epilogue keeps, in bags of bounded size, what their error bounds cannot exclude. Those few are scored in float64.
// Loop order: chunks of queries; in a chunk each thread takes a stripe of the gallery, or of the queries where the
// gallery is small, packs each block of the gallery once, and multiplies it with all blocks of queries.
// Precision: float64 scores decide. Bounds hold for every input (bounds.h, topk_terms.h), so that the result depends
// neither on the first pass nor on chunks, threads or the instruction set.
#pragma once

#include "topk_chunk.h"

namespace mmcore {
namespace {

void topk(const TopkInputs& inputs, const FoundItems& best, const FoundItems& found, int threads) {
  const TopkPlan plan(inputs, threads);
  for (Index begin = 0; begin < inputs.queries.rows; begin += plan.chunk) {
    const Range queries{begin, minimum(begin + plan.chunk, inputs.queries.rows)};
    QueryTerms terms(queries.size());
    const Search search(inputs, queries, terms);
    TopkChunk(search, plan, best, found).run();
  }
}

}  // namespace
}  // namespace mmcore

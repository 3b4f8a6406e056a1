// Products of prefixes that the forward keeps for the backward, as many as fit into the workspace.
//
// The longest prefix is kept first. Products of a prefix are those of the shorter one before it and more, so the
// backward multiplies again only from the shortest prefix up to the first that was kept.
#pragma once

#include <vector>

#include "similarity_blocks.h"

namespace mmcore {
namespace {

template <class A>
class KeptPrefixes {
 public:
  KeptPrefixes(Kept memory, const BlockGrid& grid, std::size_t count, int threads) {
    for (std::size_t k = 0; k < count; ++k) {
      from_longest_.emplace_back(memory, grid, threads);
      memory = from_longest_.back().rest(memory);
    }
  }

  // To be called before anything is kept.
  void prepare() const {
    for (const KeptBlocks<A>& blocks : from_longest_) blocks.prepare();
  }

  // Where the products of prefix k are kept; nullptr if they are not.
  float* of(std::size_t k, const Block& block) const {
    const KeptBlocks<A>& blocks = from_longest_[from_longest_.size() - 1 - k];
    return blocks.are_there() ? blocks.of(block) : nullptr;
  }

 private:
  std::vector<KeptBlocks<A>> from_longest_;
};

}  // namespace
}  // namespace mmcore

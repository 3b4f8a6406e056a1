// Products of the longest prefixes that a forward leaves for its backward.
//
// Never stored: products of the shorter ones, whose segments cost less to multiply again than to write and to read. The
// longest comes first, so that where a block of one prefix is kept, those of all longer ones are.
#pragma once

#include <vector>

#include "similarity_blocks.h"

namespace mmcore {
namespace {

template <class A>
class KeptPrefixes {
 public:
  // Of the `longest` of `count` prefixes, as far as the memory reaches.
  KeptPrefixes(Kept memory, const BlockGrid& grid, std::size_t count, std::size_t longest, int threads)
      : count_(count) {
    for (std::size_t kept = 0; kept < longest; ++kept) {
      from_longest_.emplace_back(memory, grid, threads);
      memory = from_longest_.back().rest(memory);
    }
  }

  // Before anything is kept.
  void prepare() const {
    for (const KeptBlocks<A>& blocks : from_longest_) blocks.prepare();
  }
  bool are_there() const { return !from_longest_.empty() && from_longest_[0].are_there(); }

  // Where the products of prefix k are kept; nullptr if they are not.
  float* of(std::size_t k, const Block& block) const {
    const std::size_t longer = count_ - 1 - k;
    return longer < from_longest_.size() ? from_longest_[longer].of(block) : nullptr;
  }
  // Where the first prefix from k on that is kept has its place, so that sums over segments grow there.
  float* next(std::size_t k, const Block& block) const {
    float* place = nullptr;
    for (; place == nullptr && k < count_; ++k) place = of(k, block);
    return place;
  }

 private:
  std::size_t count_;
  std::vector<KeptBlocks<A>> from_longest_;
};

}  // namespace
}  // namespace mmcore

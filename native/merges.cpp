#include "merges.h"

#include <bit>
#include <cstddef>

namespace outpace {

namespace {

// Code points begin..end of a text without the one at `skip` (-1: none).
struct Part {
  const Text& text;
  int64_t begin, end, skip;

  int64_t length() const { return end - begin - (skip >= 0 ? 1 : 0); }
};

uint64_t hash_of(const Part& part) {
  uint64_t hash = 0x9E3779B97F4A7C15u;
  for (int64_t i = part.begin; i < part.end; ++i) {
    if (i != part.skip) hash = (hash ^ part.text[i]) * 0xD6E8FEB86659FD93u, hash ^= hash >> 32;
  }
  return hash;
}

bool equal(const Part& part, const Text& token) {
  if (part.length() != token.length) return false;
  for (int64_t i = part.begin, k = 0; i < part.end; ++i) {
    if (i != part.skip && part.text[i] != token[k++]) return false;
  }
  return true;
}

// Tokens by their text: open addressing, at most half full.
class Table {
 public:
  explicit Table(const std::vector<Text>& tokens)
      : tokens_(tokens), mask_(std::bit_ceil(2 * tokens.size() + 2) - 1), slots_(mask_ + 1) {
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      const uint64_t hash = hash_of({tokens[i], 0, tokens[i].length, -1});
      uint64_t at = hash & mask_;
      while (slots_[at].token != 0) at = (at + 1) & mask_;
      slots_[at] = {static_cast<uint32_t>(hash >> 32), static_cast<uint32_t>(i + 1)};
    }
  }

  bool has(const Part& part) const {
    const uint64_t hash = hash_of(part);
    for (uint64_t at = hash & mask_; slots_[at].token != 0; at = (at + 1) & mask_) {
      if (slots_[at].tag == static_cast<uint32_t>(hash >> 32) && equal(part, tokens_[slots_[at].token - 1]))
        return true;
    }
    return false;
  }

 private:
  struct Slot {
    uint32_t tag = 0;    // the hash's upper half
    uint32_t token = 0;  // its index + 1; 0: the slot is empty
  };

  const std::vector<Text>& tokens_;
  uint64_t mask_;
  std::vector<Slot> slots_;
};

}  // namespace

int64_t first_bad_merge(const std::vector<Text>& tokens, const std::vector<Text>& merges) {
  const Table table(tokens);
  for (std::size_t i = 0; i < merges.size(); ++i) {
    const Text& merge = merges[i];
    int64_t space = 1;
    while (space < merge.length && merge[space] != ' ') ++space;
    if (space >= merge.length || !table.has({merge, 0, space, -1}) ||
        !table.has({merge, space + 1, merge.length, -1}) || !table.has({merge, 0, merge.length, space}))
      return static_cast<int64_t>(i);
  }
  return -1;
}

}  // namespace outpace

// A log of tokens that finds where the end of a text occurred before: the memory of look-up drafting.
//
// Hash chains as in an LZ77 compressor: for each of a few lengths n, the places whose last n tokens have the
// same hash are linked, the newest first. A look-up walks the chains, the longest n first, a bounded number
// of places each, and compares backwards; so it costs microseconds whatever the size. Memory: 4 bytes for the
// token and 4 for each n, and 8 for each n in the table of chain heads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace outpace {

// Ends a document: no match reaches across, and nothing is proposed beyond.
constexpr int32_t kBorder = -1;

// Where a context's last `length` tokens end in the log.
struct TokenMatch {
  int64_t position;
  int64_t length;
};

class TokenIndex {
 public:
  static constexpr int64_t kLongest = 64;  // tokens that are compared

  // Keeps at least the newest `capacity` tokens (at least 1); `orders` are the lengths n, ascending.
  TokenIndex(int64_t capacity, std::vector<int32_t> orders);

  void append(const int32_t* token_ids, int64_t count);

  // Tokens ever appended; those that are still kept have the positions begin() .. size() - 1.
  int64_t size() const { return size_; }
  int64_t begin() const { return size_ > ring_size() ? size_ - ring_size() : 0; }
  int32_t at(int64_t position) const { return tokens_[slot(position)]; }

  // The places where the context's end occurs, the longest match first, the newest first among equals; at
  // most `most` of them. Those that end at or after `before` do not count: nothing follows them.
  void find(const int32_t* context, int64_t length, int64_t before, size_t most,
            std::vector<TokenMatch>& found) const;

 private:
  struct Chain {
    int32_t order;
    std::vector<int64_t> heads;   // [ring size] position + 1 of the newest with this hash; 0: none
    std::vector<uint32_t> links;  // [ring size] distance to the one before it; 0: none
  };

  int64_t ring_size() const { return static_cast<int64_t>(tokens_.size()); }
  size_t slot(int64_t position) const { return static_cast<size_t>(position) & (tokens_.size() - 1); }
  void put(int32_t token_id);
  void grow();
  // Of the `order` tokens that end at `last`, going backwards; false where a border is among them.
  template <class At>
  bool hash(int32_t order, At at, uint64_t& value) const;
  int64_t match_length(const int32_t* context, int64_t length, int64_t position) const;

  const int64_t capacity_;
  int64_t size_ = 0;
  std::vector<int32_t> tokens_;  // a ring; a power of two
  std::vector<Chain> chains_;    // the longest order first
};

}  // namespace outpace

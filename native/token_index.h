// A log of tokens that finds where the end of a text occurred before: the memory of look-up drafting.
//
// Hash chains as in an LZ77 compressor: for each of a few lengths n, the places whose last n tokens have the
// same hash are linked, the newest first. A look-up walks the chains, the longest n first, a bounded number
// of places each, and compares backwards; so it costs microseconds whatever the size. Memory: for each slot
// of the ring 4 bytes for the token and 4 for each n, and 8 for each n in the table of chain heads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

namespace outpace {

// Ends a document: no match reaches across, and nothing is proposed beyond.
constexpr int32_t kBorder = -1;

// Where a context's last `length` tokens end in the log.
struct TokenMatch {
  int64_t position;
  int64_t length;
};

// Changes lock the index for as long as they take. Who looks up beside a thread that changes it holds it
// meanwhile; a look-up must not wait for as long as a change may take, so it tries and goes without.
class TokenIndex {
 public:
  static constexpr int64_t kLongest = 64;  // tokens that are compared

  // Keeps at least the newest `capacity` tokens (at least 1); `orders` are the lengths n, ascending.
  TokenIndex(int64_t capacity, std::vector<int32_t> orders);

  void append(const int32_t* token_ids, int64_t count);
  // From now on; what is beyond it is forgotten at once, and its memory freed.
  void set_capacity(int64_t capacity);

  // Nothing changes while the lock lives. `try_hold`: it may not own it.
  std::unique_lock<std::mutex> hold() const { return std::unique_lock(changing_); }
  std::unique_lock<std::mutex> try_hold() const { return {changing_, std::try_to_lock}; }

  // Tokens ever appended; those that are still kept have the positions begin() .. size() - 1.
  int64_t size() const { return size_; }
  int64_t begin() const { return size_ - first_ > ring_size() ? size_ - ring_size() : first_; }
  int64_t num_kept() const { return size_ - begin(); }
  int32_t at(int64_t position) const { return tokens_[slot(position)]; }
  // What it has room for before it grows or forgets, and what that takes.
  int64_t ring_size() const { return static_cast<int64_t>(tokens_.size()); }
  int64_t num_bytes() const;

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

  size_t slot(int64_t position) const { return static_cast<size_t>(position) & (tokens_.size() - 1); }
  void put(int32_t token_id);
  void rebuild(size_t ring_size);
  // Of the `order` tokens that end at `last`, going backwards; false where a border is among them.
  template <class At>
  bool hash(int32_t order, At at, uint64_t& value) const;
  int64_t match_length(const int32_t* context, int64_t length, int64_t position) const;

  mutable std::mutex changing_;
  int64_t capacity_;
  int64_t size_ = 0;
  int64_t first_ = 0;            // position of the oldest token that was put into this ring
  std::vector<int32_t> tokens_;  // a ring; a power of two
  std::vector<Chain> chains_;    // the longest order first
};

}  // namespace outpace

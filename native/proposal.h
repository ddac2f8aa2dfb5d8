// What a look-up proposes: guesses at what follows a text, merged into a tree whose first path is the
// likeliest.
#pragma once

#include <cstdint>
#include <vector>

#include "token_index.h"

namespace outpace {

// Parallel arrays as in outpace.draft.proposer.Proposal; `parents` precede their children, -1 is the text's
// end.
struct TokenProposal {
  std::vector<int32_t> token_ids, parents, classes;

  bool empty() const { return token_ids.empty(); }
  bool is_chain() const;
  int64_t size() const { return static_cast<int64_t>(token_ids.size()); }
  void clear();
  // The child of `parent` with this token, or -1.
  int32_t child(int32_t parent, int32_t token_id) const;
  int32_t add(int32_t parent, int32_t token_id, int32_t class_index);
};

// Lengths in degrees that grow with them: 1, 2, 3, 4-5, 6-7, 8-11, 12-15, 16-23, 24-31, 32-47, 48 and more.
constexpr int32_t kLengthDegrees = 11;
int32_t length_degree(int64_t length);

// What followed the matches of a context, as classes of length_degree x kAgreements.
constexpr int32_t kAgreements = 4;  // one of few, at least half, all of several, nobody to compare with
class SuffixGuess {
 public:
  // Proposes up to `most` tokens to follow the context, whose end is the log's own where `own` is set.
  void propose(const TokenIndex& index, const int32_t* context, int64_t length, bool own, int64_t most,
               TokenProposal& out);

 private:
  void put_agreed_first(const TokenIndex& index);
  void merge(const TokenIndex& index, const TokenMatch& match, bool own, int64_t limit, int64_t most,
             bool trunk, TokenProposal& out);
  void classify(TokenProposal& out) const;

  std::vector<TokenMatch> matches_;
  std::vector<int64_t> lengths_;   // of each node: tokens that agree up to it
  std::vector<int32_t> supports_;  // of each node: matches that went through it
};

}  // namespace outpace

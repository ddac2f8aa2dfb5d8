// Follows a source text while an output rewrites it, and finds its place again after each change.
//
// While the output repeats the source, the source is what comes next. Where the output leaves it, there are a
// few simple ways to go on, which are proposed at once, as a tree: the last tokens occur again further on
// (something was left out), as many tokens were replaced as came (a substitution), or none were (an
// insertion). Which of them holds is known a token later. Where none of them does for long, the place is
// lost, and found again by the first few tokens that output and source have in common.
#pragma once

#include <cstdint>
#include <vector>

#include "proposal.h"
#include "token_index.h"

namespace outpace {

class EditCursor {
 public:
  // Degrees of the run that the output has followed the source; then, for each of 4 distances since it left
  // it, the ways to go on.
  static constexpr int32_t kRunDegrees = 12, kDistances = 4, kWays = 5;
  static constexpr int32_t kClasses = kRunDegrees + kDistances * kWays;

  // `source`: what the output is expected to resemble, followed from its start on. `is_prompt`: that is not
  // known yet; it is followed from where the output first repeats it.
  EditCursor(std::vector<int32_t> source, bool is_prompt);

  // Proposes up to `most` tokens to follow `text`, prompt and output so far, of which the output begins at
  // `output`. The text may only have grown since the last call.
  void propose(const int32_t* text, int64_t length, int64_t output, int64_t most, TokenProposal& out);

 private:
  struct Place {
    int64_t next;  // position in the source
    int32_t way;
  };

  void follow(int32_t token_id);
  void search(const int32_t* text, int64_t length, int64_t output);
  void find_places();
  bool occurs_at(int64_t position, int64_t count) const;
  void lay(int64_t position, int64_t limit, int64_t most, int32_t first_class, int64_t run,
           TokenProposal& out);
  int64_t size() const { return static_cast<int64_t>(source_.size()); }

  const std::vector<int32_t> source_;
  TokenIndex index_;
  const int64_t relocating_;      // tokens in common by which a lost place is found again
  int64_t seen_ = -1;             // tokens of the text
  int64_t next_ = -1;             // position in the source that is expected next; -1: no place is known
  int64_t left_ = -1;             // where a place was last known
  int64_t run_ = 0;               // tokens that the output has followed the source
  std::vector<int32_t> strayed_;  // output since it left the source at next_
  std::vector<Place> places_;     // where it may go on, the likeliest first
  std::vector<TokenMatch> matches_;
};

}  // namespace outpace

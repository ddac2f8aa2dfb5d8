#include "proposal.h"

#include <algorithm>
#include <iterator>

namespace outpace {

namespace {
constexpr size_t kMostMatches = 8;
constexpr int64_t kBranchTokens = 4;  // of a path that leaves the first one
constexpr int64_t kLongMatch = 16;    // so long a match counts beside a longer one
constexpr int64_t kLengthEdges[kLengthDegrees] = {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48};
}  // namespace

int32_t length_degree(int64_t length) {
  const auto* end = std::upper_bound(std::begin(kLengthEdges), std::end(kLengthEdges), length);
  return std::max(0, static_cast<int32_t>(end - std::begin(kLengthEdges)) - 1);
}

bool TokenProposal::is_chain() const {
  for (size_t i = 0; i < parents.size(); ++i) {
    if (parents[i] != static_cast<int32_t>(i) - 1) return false;
  }
  return true;
}

void TokenProposal::clear() {
  token_ids.clear();
  parents.clear();
  classes.clear();
}

int32_t TokenProposal::child(int32_t parent, int32_t token_id) const {
  for (size_t i = static_cast<size_t>(parent + 1); i < token_ids.size(); ++i) {
    if (parents[i] == parent && token_ids[i] == token_id) return static_cast<int32_t>(i);
  }
  return -1;
}

int32_t TokenProposal::add(int32_t parent, int32_t token_id, int32_t class_index) {
  token_ids.push_back(token_id);
  parents.push_back(parent);
  classes.push_back(class_index);
  return static_cast<int32_t>(token_ids.size()) - 1;
}

void SuffixGuess::propose(const TokenIndex& index, const int32_t* context, int64_t length, bool own,
                          int64_t most, TokenProposal& out) {
  out.clear();
  lengths_.clear();
  supports_.clear();
  index.find(context, length, own ? index.size() - 1 : index.size(), kMostMatches, matches_);
  if (matches_.empty() || most < 1) return;
  const int64_t longest = matches_.front().length;
  const int64_t shortest = std::min(longest, std::max<int64_t>(2, longest / 2));
  const auto counts = [&](const TokenMatch& m) { return m.length >= shortest || m.length >= kLongMatch; };
  const bool alone = std::count_if(matches_.begin(), matches_.end(), counts) == 1;
  const int64_t limit = alone ? most : std::max<int64_t>(kBranchTokens, most - 2 * kBranchTokens);
  if (!alone) put_agreed_first(index);
  bool trunk = true;
  for (const TokenMatch& m : matches_) {
    if (!counts(m)) continue;
    merge(index, m, own, limit, most, trunk, out);
    trunk = out.empty();
  }
  if (limit < most && out.is_chain())
    merge(index, matches_.front(), own, most, most, true, out);  // all agree
  classify(out);
}

// Of the matches as long as the longest, or a token shorter, the newest of those that most agree with on the
// next token goes before all others: what followed often is likelier than what followed last.
void SuffixGuess::put_agreed_first(const TokenIndex& index) {
  const int64_t shortest = std::max<int64_t>(2, matches_.front().length - 1);
  const auto end = std::find_if(matches_.begin(), matches_.end(),
                                [&](const TokenMatch& m) { return m.length < shortest; });
  const auto next = [&](const TokenMatch& m) {
    return m.position + 1 < index.size() ? index.at(m.position + 1) : kBorder;
  };
  auto first = matches_.begin();
  int64_t most = 1;
  for (auto it = matches_.begin(); it != end; ++it) {
    const int32_t token_id = next(*it);
    const auto same =
        std::count_if(matches_.begin(), end, [&](const TokenMatch& m) { return next(m) == token_id; });
    if (token_id == kBorder || same <= most) continue;
    most = same;
    first = it;
  }
  std::rotate(matches_.begin(), first, first + 1);
}

// Lays a match's continuation over the tree: as far as it agrees it supports what is there, then it branches.
void SuffixGuess::merge(const TokenIndex& index, const TokenMatch& match, bool own, int64_t limit,
                        int64_t most, bool trunk, TokenProposal& out) {
  int32_t node = -1;
  int64_t added = 0;
  const int64_t period = index.size() - 1 - match.position;
  for (int64_t depth = 0; depth < limit && (own || depth < period); ++depth) {
    // A text that repeats its own end goes on repeating it.
    const int32_t token_id = index.at(match.position + 1 + depth % period);
    if (token_id == kBorder) return;
    int32_t next = out.child(node, token_id);
    if (next < 0) {
      if (out.size() >= most || (!trunk && added >= kBranchTokens)) return;
      next = out.add(node, token_id, 0);
      lengths_.push_back(match.length + depth);
      supports_.push_back(0);
      ++added;
    }
    ++supports_[static_cast<size_t>(next)];
    node = next;
  }
}

void SuffixGuess::classify(TokenProposal& out) const {
  for (size_t i = 0; i < out.token_ids.size(); ++i) {
    int32_t all = 0;  // matches that reached this place
    for (size_t k = 0; k < out.parents.size(); ++k) {
      if (out.parents[k] == out.parents[i]) all += supports_[k];
    }
    const int32_t own = supports_[i];
    const int32_t agreement = all == 1 ? 3 : own == all ? 2 : 2 * own >= all ? 1 : 0;
    out.classes[i] = length_degree(lengths_[i]) * kAgreements + agreement;
  }
}

}  // namespace outpace

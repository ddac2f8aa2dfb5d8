#include "edit_cursor.h"

#include <algorithm>
#include <cstdlib>
#include <iterator>

namespace outpace {

namespace {

constexpr int32_t kSure = 8;    // tokens that output and source have in common at a new place
constexpr int32_t kLikely = 4;  // the same of a prediction whose place is lost: it is expected to go on
constexpr size_t kMostMatches = 8;
constexpr int64_t kFarthest = 24;  // tokens off the source after which the place is given up
constexpr int64_t kWindow = 256;   // tokens of the source ahead in which an output's end is looked for
constexpr int64_t kNear = 24;      // the same for a single token, which occurs anywhere
constexpr int64_t kBack = 32;      // and behind
constexpr size_t kMostPlaces = 4;
constexpr int64_t kBranchTokens = 6;  // of all places but the first
constexpr int64_t kRunEdges[EditCursor::kRunDegrees] = {0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48};

// Ways to go on after the output has left the source; the first three by how many of its last tokens occur.
enum Way : int32_t { three_occur, two_occur, one_occurs, substituted, inserted };

int32_t run_class(int64_t run) {
  const auto* end = std::upper_bound(std::begin(kRunEdges), std::end(kRunEdges), run);
  return static_cast<int32_t>(end - std::begin(kRunEdges)) - 1;
}

}  // namespace

EditCursor::EditCursor(std::vector<int32_t> source, bool is_prompt)
    : source_(std::move(source)),
      index_(size(), is_prompt ? std::vector<int32_t>{kSure} : std::vector<int32_t>{kLikely, kSure}),
      relocating_(is_prompt ? kSure : kLikely) {
  index_.append(source_.data(), size());
  if (!is_prompt && !source_.empty()) next_ = 0;
}

void EditCursor::propose(const int32_t* text, int64_t length, int64_t output, int64_t most,
                         TokenProposal& out) {
  out.clear();
  for (int64_t i = std::max(seen_, output); i < length; ++i) follow(text[i]);
  seen_ = length;
  if (next_ < 0 || !strayed_.empty()) search(text, length, output);
  if (next_ < 0) return;
  if (strayed_.empty()) {
    lay(next_, most, most, run_class(run_), run_, out);
    return;
  }
  const auto distance = std::min<int32_t>(static_cast<int32_t>(strayed_.size()), kDistances) - 1;
  for (const Place& place : places_) {
    const bool first = &place == &places_.front();
    const int64_t limit = first ? std::max(kBranchTokens, most - kBranchTokens) : kBranchTokens;
    lay(place.next, limit, most, kRunDegrees + distance * kWays + place.way, 1, out);
  }
}

// Takes one token of the output.
void EditCursor::follow(int32_t token_id) {
  if (next_ < 0) return;
  if (strayed_.empty()) {
    if (next_ < size() && source_[static_cast<size_t>(next_)] == token_id) {
      ++next_;
      ++run_;
    } else {
      strayed_.push_back(token_id);
      find_places();
    }
    return;
  }
  for (const Place& place : places_) {
    if (place.next >= size() || source_[static_cast<size_t>(place.next)] != token_id) continue;
    next_ = place.next + 1;
    run_ = place.way == three_occur ? 4 : place.way == two_occur ? 3 : place.way == one_occurs ? 2 : 1;
    strayed_.clear();
    return;
  }
  strayed_.push_back(token_id);
  if (static_cast<int64_t>(strayed_.size()) > kFarthest) {
    left_ = next_;
    next_ = -1;
    strayed_.clear();
    return;
  }
  find_places();
}

// Where the output's end occurs in the source, the output goes on from there; of several such places, from
// the one nearest to where it was.
void EditCursor::search(const int32_t* text, int64_t length, int64_t output) {
  if (source_.empty()) return;
  const int64_t context = std::min(length - output, TokenIndex::kLongest);
  index_.find(text + length - context, context, index_.size(), kMostMatches, matches_);
  const int64_t least = next_ < 0 ? relocating_ : kSure;
  if (matches_.empty() || matches_.front().length < least) return;
  const int64_t left = next_ < 0 ? left_ : next_;
  const TokenMatch* best = &matches_.front();  // the longest, the newest of them
  for (const TokenMatch& m : matches_) {
    if (left < 0 || m.length < best->length) break;
    if (std::abs(m.position + 1 - left) < std::abs(best->position + 1 - left)) best = &m;
  }
  next_ = best->position + 1;
  run_ = best->length;
  strayed_.clear();
}

// Whether the last `count` tokens of the output end at this position of the source.
bool EditCursor::occurs_at(int64_t position, int64_t count) const {
  if (position - count + 1 < 0) return false;
  return std::equal(strayed_.end() - count, strayed_.end(), source_.begin() + position - count + 1);
}

void EditCursor::find_places() {
  places_.clear();
  const auto strayed = static_cast<int64_t>(strayed_.size());
  const auto offer = [&](int64_t next, int32_t way) {
    const bool known =
        std::any_of(places_.begin(), places_.end(), [&](const Place& p) { return p.next == next; });
    if (!known && next < size() && places_.size() < kMostPlaces) places_.push_back({next, way});
  };
  for (int64_t count = std::min<int64_t>(3, strayed); count > 0; --count) {
    const int64_t begin = count > 1 ? std::max<int64_t>(0, next_ - kBack) : next_;
    const int64_t end = std::min(size(), next_ + (count > 1 ? kWindow : kNear));
    int64_t nearest = -1;
    for (int64_t position = begin; position < end; ++position) {
      if (nearest >= 0 && position - next_ >= std::abs(nearest - next_)) break;  // they only get farther
      if (occurs_at(position, count)) nearest = position;
    }
    if (nearest >= 0) offer(nearest + 1, static_cast<int32_t>(3 - count));
  }
  offer(next_ + strayed, substituted);
  offer(next_, inserted);
}

// Lays the source from `position` on over the tree; its first token has a class of its own, the others that
// of the run they would make.
void EditCursor::lay(int64_t position, int64_t limit, int64_t most, int32_t first_class, int64_t run,
                     TokenProposal& out) {
  int32_t node = -1;
  for (int64_t depth = 0; depth < limit && position + depth < size(); ++depth) {
    const int32_t token_id = source_[static_cast<size_t>(position + depth)];
    int32_t next = out.child(node, token_id);
    if (next < 0) {
      if (out.size() >= most) return;
      next = out.add(node, token_id, depth == 0 ? first_class : run_class(run + depth));
    }
    node = next;
  }
}

}  // namespace outpace

// The token index against a search by hand, and what is proposed of its matches.
#include "token_index.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <string>
#include <thread>

#include "check.h"
#include "proposal.h"

namespace {

using outpace::kBorder;
using outpace::TokenIndex;
using outpace::TokenMatch;
using outpace::TokenProposal;

std::vector<int32_t> random_text(check::Random& random, int64_t length, int64_t vocabulary) {
  std::vector<int32_t> text;
  while (static_cast<int64_t>(text.size()) < length) {
    if (!text.empty() && random.below(4) == 0) {  // repeat something
      const auto from = static_cast<size_t>(random.below(static_cast<int64_t>(text.size())));
      const auto count = static_cast<size_t>(random.between(1, 40));
      for (size_t i = from; i < text.size() && i < from + count; ++i) text.push_back(text[i]);
    } else {
      text.push_back(static_cast<int32_t>(random.below(vocabulary)));
    }
  }
  text.resize(static_cast<size_t>(length));
  return text;
}

// Tokens, at most 64, that end at `position` of the text as the context ends.
int64_t common(const std::vector<int32_t>& text, int64_t position, const int32_t* context, int64_t length) {
  int64_t equal = 0;
  while (equal < std::min(length, TokenIndex::kLongest) && position - equal >= 0 &&
         text[static_cast<size_t>(position - equal)] == context[length - 1 - equal] &&
         text[static_cast<size_t>(position - equal)] != kBorder) {
    ++equal;
  }
  return equal;
}

const std::vector<int32_t> kOrders{2, 4, 8};

}  // namespace

TEST(the_longest_match_is_found) {
  check::Random random{1};
  int64_t compared = 0;
  for (int round = 0; round < 40; ++round) {
    const std::vector<int32_t> text = random_text(random, random.between(10, 3000), 60);
    TokenIndex index(1 << 20, kOrders);
    index.append(text.data(), static_cast<int64_t>(text.size()));
    const auto size = static_cast<int64_t>(text.size());
    std::vector<TokenMatch> found;
    index.find(text.data(), size, size - 1, 8, found);
    int64_t longest = 0, places = 0;  // where the last eight tokens occur
    for (int64_t p = 0; p < size - 1; ++p) {
      const int64_t equal = common(text, p, text.data(), size);
      longest = std::max(longest, equal);
      places += equal >= 8 ? 1 : 0;
    }
    if (longest < 2) {
      CHECK(found.empty(), "%lld matches where there is none", static_cast<long long>(found.size()));
      continue;
    }
    CHECK(!found.empty(), "a match of %lld is not found", static_cast<long long>(longest));
    for (const TokenMatch& m : found) {
      CHECK(m.length == common(text, m.position, text.data(), size), "a match of another length");
      CHECK(m.position < size - 1, "the end matches itself");
    }
    for (size_t i = 1; i < found.size(); ++i) {
      CHECK(found[i - 1].length > found[i].length ||
                (found[i - 1].length == found[i].length && found[i - 1].position > found[i].position),
            "out of order");
    }
    // Where there are more places than are looked at, the longest may be an older one.
    if (longest >= 8 && places <= 32 && !found.empty()) {
      ++compared;
      CHECK(found.front().length == longest, "%lld instead of %lld",
            static_cast<long long>(found.front().length), static_cast<long long>(longest));
    }
  }
  CHECK(compared > 5, "%lld texts with long repetitions", static_cast<long long>(compared));
}

TEST(old_tokens_go_and_nothing_of_them_is_found) {
  TokenIndex index(1500, kOrders);  // a ring of 2048
  check::Random random{2};
  std::vector<int32_t> text = random_text(random, 20000, 1 << 20);
  index.append(text.data(), static_cast<int64_t>(text.size()));
  CHECK(index.size() == 20000, "size");
  CHECK(index.size() - index.begin() == 2048, "%lld are kept",
        static_cast<long long>(index.size() - index.begin()));
  std::vector<TokenMatch> found;
  for (int64_t end = 100; end < 20000; end += 97) {
    index.find(text.data(), end, index.size(), 8, found);
    for (const TokenMatch& m : found) {
      CHECK(m.position - m.length + 1 >= index.begin() && m.position < index.size(), "beyond the ring");
      CHECK(m.length == std::min(common(text, m.position, text.data(), end), m.position - index.begin() + 1),
            "a wrong length");
    }
    const bool kept = end - 1 - 8 >= index.begin() && end < index.size();
    if (kept) CHECK(!found.empty(), "the newest is not found");
  }
}

TEST(a_smaller_capacity_keeps_the_newest_and_frees_the_rest) {
  check::Random random{4};
  const std::vector<int32_t> text = random_text(random, 40000, 1 << 20);
  std::vector<TokenMatch> found;
  const auto finds = [&](const TokenIndex& index, int64_t end) {
    index.find(text.data(), end, index.size(), 8, found);
    return std::any_of(found.begin(), found.end(),
                       [&](const TokenMatch& m) { return m.position == end - 1 && m.length >= 8; });
  };
  TokenIndex index(1 << 15, kOrders);
  index.append(text.data(), 20000);
  CHECK(index.ring_size() == 1 << 15 && index.num_bytes() == 40 << 15, "%lld bytes",
        static_cast<long long>(index.num_bytes()));
  index.set_capacity(4096);
  CHECK(index.size() == 20000 && index.num_kept() == 4096 && index.num_bytes() == 40 << 12, "%lld bytes",
        static_cast<long long>(index.num_bytes()));
  CHECK(finds(index, 19000) && !finds(index, 15000), "the newest alone are kept");
  index.append(text.data() + 20000, 6000);  // more than the ring
  CHECK(index.ring_size() == 4096 && finds(index, 25000) && !finds(index, 21000), "it wraps");
  index.set_capacity(1 << 14);
  CHECK(index.ring_size() == 4096 && finds(index, 25000), "it grows only as it must");
  index.append(text.data() + 26000, 10000);
  CHECK(index.ring_size() == 1 << 14 && index.num_kept() == 14096, "%lld are kept",
        static_cast<long long>(index.num_kept()));
  CHECK(finds(index, 23000) && finds(index, 35000) && !finds(index, 21000), "what was kept stays");
  index.set_capacity(1);
  CHECK(index.num_kept() == 1024 && finds(index, 35900), "the least that there is");
}

TEST(look_ups_beside_a_thread_that_appends) {
  check::Random random{6};
  const std::vector<int32_t> text = random_text(random, 60000, 500);
  TokenIndex index(1 << 14, kOrders);
  std::atomic<bool> done{false};
  std::thread writer([&] {
    for (size_t at = 0; at < text.size(); at += 300) {
      index.append(text.data() + at, 300);
      if (at % 12000 == 0) index.set_capacity(at % 24000 == 0 ? 1 << 12 : 1 << 14);
      std::this_thread::yield();
    }
    done = true;
  });
  outpace::SuffixGuess guess;
  TokenProposal out;
  std::vector<TokenMatch> found;
  int64_t wrong = 0, looked = 0;
  for (int64_t end = 64; !done || looked == 0; end = end % 59000 + 64) {
    const auto held = index.try_hold();
    if (!held.owns_lock()) continue;
    ++looked;
    guess.propose(index, text.data(), end, false, 16, out);
    index.find(text.data(), end, index.size(), 8, found);
    for (const TokenMatch& m : found) {
      const int64_t most =
          std::min(common(text, m.position, text.data(), end), m.position - index.begin() + 1);
      wrong += m.length == most ? 0 : 1;
    }
  }
  writer.join();
  CHECK(wrong == 0, "%lld wrong matches in %lld look-ups", static_cast<long long>(wrong),
        static_cast<long long>(looked));
}

TEST(no_match_crosses_a_border) {
  const std::vector<int32_t> text{1, 2, 3, 4, kBorder, 5, 6, 7, 8, kBorder};
  TokenIndex index(64, {2});
  index.append(text.data(), static_cast<int64_t>(text.size()));
  std::vector<TokenMatch> found;
  const int32_t across[] = {3, 4, 5, 6};
  index.find(across, 4, index.size(), 8, found);
  CHECK(found.size() == 1 && found[0].length == 2 && found[0].position == 6, "5 6 alone");
  const int32_t border[] = {4, kBorder};
  index.find(border, 2, index.size(), 8, found);
  CHECK(found.empty(), "a border is no token");
  outpace::SuffixGuess guess;
  TokenProposal out;
  const int32_t end[] = {2, 3};
  guess.propose(index, end, 2, false, 10, out);
  CHECK(out.token_ids == std::vector<int32_t>{4}, "nothing is proposed beyond the border");
}

TEST(what_followed_is_proposed) {
  const std::vector<int32_t> text{1, 2, 3, 4, 5, 6, 1, 2, 3};
  TokenIndex index(1 << 20, kOrders);
  index.append(text.data(), static_cast<int64_t>(text.size()));
  outpace::SuffixGuess guess;
  TokenProposal out;
  guess.propose(index, text.data(), static_cast<int64_t>(text.size()), true, 5, out);
  CHECK((out.token_ids == std::vector<int32_t>{4, 5, 6, 1, 2}), "the continuation");
  CHECK(out.is_chain(), "a chain");
  guess.propose(index, text.data(), static_cast<int64_t>(text.size()), true, 2, out);
  CHECK((out.token_ids == std::vector<int32_t>{4, 5}), "as many as are wanted");
  guess.propose(index, text.data(), static_cast<int64_t>(text.size()), true, 0, out);
  CHECK(out.empty(), "none is wanted");
}

TEST(continuations_that_differ_branch) {
  // 7 8 was followed by 1, by 2 and again by 1: the newest, which most agree with, goes first.
  const std::vector<int32_t> text{7, 8, 1, 50, 7, 8, 2, 60, 7, 8, 1, 70, 7, 8};
  TokenIndex index(1 << 20, kOrders);
  index.append(text.data(), static_cast<int64_t>(text.size()));
  outpace::SuffixGuess guess;
  TokenProposal out;
  guess.propose(index, text.data(), static_cast<int64_t>(text.size()), true, 20, out);
  CHECK(!out.is_chain(), "a tree");
  CHECK(out.token_ids[0] == 1 && out.token_ids[1] == 70, "the newest first");
  CHECK(out.child(-1, 2) > 0 && out.child(0, 50) > 0, "the others branch off");
}

TEST(what_followed_often_goes_before_what_followed_last) {
  std::vector<int32_t> text;
  const auto say = [&](std::initializer_list<int32_t> tokens) {
    for (const int32_t token_id : tokens) text.push_back(token_id);
  };
  const auto first = [&](bool own, std::initializer_list<int32_t> end) {
    TokenIndex index(1 << 20, kOrders);
    index.append(text.data(), static_cast<int64_t>(text.size()));
    if (own) index.append(std::data(end), static_cast<int64_t>(end.size()));
    if (!own) index.append(&kBorder, 1);
    outpace::SuffixGuess guess;
    TokenProposal out;
    guess.propose(index, std::data(end), static_cast<int64_t>(end.size()), own, 8, out);
    return out.empty() ? -1 : out.token_ids[0];
  };
  say({7, 8, 1, 50, 7, 8, 1, 51, 7, 8, 1, 52, 7, 8, 2, 60});
  CHECK(first(true, {7, 8}) == 1 && first(false, {7, 8}) == 1, "1 three times, 2 last");
  say({7, 8, 2, 61, 7, 8, 2, 62});
  CHECK(first(true, {7, 8}) == 2 && first(false, {7, 8}) == 2, "as often, and last");
  say({3, 4, 7, 8, 5, 63, 7, 8, 2, 64});
  CHECK(first(true, {3, 4, 7, 8}) == 5 && first(false, {3, 4, 7, 8}) == 5, "more in common");
  say({7, 8, kBorder, 7, 8, kBorder, 7, 8, kBorder, 7, 8, kBorder, 7, 8, kBorder});
  CHECK(first(false, {7, 8}) == 2, "a text's end is no guess");
}

TEST(trees_are_sound) {
  check::Random random{3};
  int64_t branching = 0;
  for (int round = 0; round < 3000; ++round) {
    const std::vector<int32_t> text = random_text(random, random.between(2, 200), random.between(1, 12));
    TokenIndex index(1 << 20, kOrders);
    index.append(text.data(), static_cast<int64_t>(text.size()));
    outpace::SuffixGuess guess;
    TokenProposal out;
    const int64_t most = random.between(0, 40);
    guess.propose(index, text.data(), static_cast<int64_t>(text.size()), random.below(2) == 0, most, out);
    CHECK(out.size() <= most, "too many");
    CHECK(out.parents.size() == out.token_ids.size() && out.classes.size() == out.token_ids.size(), "arrays");
    std::map<std::pair<int32_t, int32_t>, int> places;
    for (size_t i = 0; i < out.token_ids.size(); ++i) {
      CHECK(out.parents[i] >= -1 && out.parents[i] < static_cast<int32_t>(i),
            "a parent that does not precede");
      const auto place = std::make_pair(out.parents[i], out.token_ids[i]);
      CHECK(++places[place] == 1, "equal guesses at one place");
      CHECK(out.classes[i] >= 0 && out.classes[i] < outpace::kLengthDegrees * outpace::kAgreements, "class");
    }
    branching += out.is_chain() ? 0 : 1;
  }
  CHECK(branching > 300, "%lld trees", static_cast<long long>(branching));
}

TEST(one_token_a_million_times_is_quick) {
  TokenIndex index(1 << 18, kOrders);
  const std::vector<int32_t> text(1000000, 7);
  index.append(text.data(), static_cast<int64_t>(text.size()));
  outpace::SuffixGuess guess;
  TokenProposal out;
  for (int i = 0; i < 1000; ++i) guess.propose(index, text.data(), 64, true, 16, out);
  CHECK(out.size() == 16, "%lld", static_cast<long long>(out.size()));
}

TEST(degrees_of_length) {
  CHECK(outpace::length_degree(0) == 0 && outpace::length_degree(1) == 0 && outpace::length_degree(2) == 1,
        "");
  CHECK(outpace::length_degree(5) == 3 && outpace::length_degree(6) == 4);
  CHECK(outpace::length_degree(48) == 10 && outpace::length_degree(1000) == 10);
}

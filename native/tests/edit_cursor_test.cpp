// The cursor follows texts that are edited at random.
#include "edit_cursor.h"

#include <algorithm>

#include "check.h"

namespace {

using outpace::EditCursor;
using outpace::TokenProposal;

std::vector<int32_t> numbers(int32_t count, int32_t first = 1000) {
  std::vector<int32_t> out(static_cast<size_t>(count));
  for (int32_t i = 0; i < count; ++i) out[static_cast<size_t>(i)] = first + i;
  return out;
}

// How many of the next tokens the proposal has along some path.
int64_t accepted(const TokenProposal& p, const std::vector<int32_t>& truth, size_t from) {
  int32_t node = -1;
  int64_t count = 0;
  while (from < truth.size() && (node = p.child(node, truth[from])) >= 0) {
    ++from;
    ++count;
  }
  return count;
}

// Steps that it takes to emit `output` after `prompt`, each taking what was proposed right and a token more.
int64_t steps(EditCursor& cursor, const std::vector<int32_t>& prompt, const std::vector<int32_t>& output,
              int64_t most = 16) {
  std::vector<int32_t> text(prompt);
  text.push_back(output[0]);
  size_t done = 1;
  int64_t count = 0;
  TokenProposal p;
  while (done < output.size()) {
    cursor.propose(text.data(), static_cast<int64_t>(text.size()), static_cast<int64_t>(prompt.size()), most,
                   p);
    CHECK(p.size() <= most, "too many");
    for (size_t i = 0; i < p.token_ids.size(); ++i) {
      CHECK(p.parents[i] >= -1 && p.parents[i] < static_cast<int32_t>(i), "a parent that does not precede");
      CHECK(p.classes[i] >= 0 && p.classes[i] < EditCursor::kClasses, "class");
      CHECK(p.child(p.parents[i], p.token_ids[i]) == static_cast<int32_t>(i), "equal guesses at one place");
    }
    const auto got = static_cast<size_t>(accepted(p, output, done)) + 1;
    const size_t end = std::min(output.size(), done + got);
    text.insert(text.end(), output.begin() + static_cast<int64_t>(done),
                output.begin() + static_cast<int64_t>(end));
    done = end;
    ++count;
  }
  return count;
}

}  // namespace

TEST(a_copy_is_proposed_whole) {
  const std::vector<int32_t> source = numbers(320), prompt{1, 2, 3};
  EditCursor cursor(source, false);
  CHECK(steps(cursor, prompt, source) <= 320 / 17 + 2);
}

TEST(each_kind_of_change_costs_few_steps) {
  const std::vector<int32_t> source = numbers(200), prompt{1, 2, 3};
  const auto plain = [&] {
    EditCursor cursor(source, false);
    return steps(cursor, prompt, source);
  }();
  const auto changed = [&](int64_t erase, int32_t insert) {
    std::vector<int32_t> output(source);
    output.erase(output.begin() + 100, output.begin() + 100 + erase);
    const std::vector<int32_t> fresh = numbers(insert, 5000);
    output.insert(output.begin() + 100, fresh.begin(), fresh.end());
    EditCursor cursor(source, false);
    return steps(cursor, prompt, output);
  };
  for (const int64_t erase : {0, 1, 2, 3, 7, 20}) {
    for (const int32_t insert : {0, 1, 2, 3, 5}) {
      const int64_t took = changed(erase, insert);
      // Each new token takes a step of its own, and finding the place again at most three.
      CHECK(took <= plain + insert + 4, "-%lld +%d: %lld steps, %lld without a change",
            static_cast<long long>(erase), insert, static_cast<long long>(took),
            static_cast<long long>(plain));
    }
  }
}

TEST(a_place_that_was_lost_is_found_again) {
  const std::vector<int32_t> source = numbers(1000), prompt{1, 2, 3};
  const auto took = [&](int64_t at, int64_t erase, int32_t insert) {
    std::vector<int32_t> output(source);
    output.erase(output.begin() + at, output.begin() + at + erase);
    const std::vector<int32_t> fresh = numbers(insert, 5000);
    output.insert(output.begin() + at, fresh.begin(), fresh.end());
    EditCursor cursor(source, false);
    return steps(cursor, prompt, output);
  };
  const int64_t plain = took(0, 0, 0);
  struct Change {
    int64_t at, erase;
    int32_t insert;
  };
  for (const auto& [at, erase, insert] : {Change{500, 0, 40}, Change{0, 0, 60}, Change{0, 30, 60},
                                          Change{500, 300, 0}, Change{500, 300, 40}, Change{500, 0, 300}}) {
    const int64_t count = took(at, erase, insert);
    // Each new token takes a step of its own, and finding the place again at most eight.
    CHECK(count <= plain + insert + 8, "at %lld -%lld +%d: %lld steps, %lld without a change",
          static_cast<long long>(at), static_cast<long long>(erase), insert, static_cast<long long>(count),
          static_cast<long long>(plain));
  }
}

TEST(of_places_alike_the_nearest_is_taken) {
  // Ten functions that begin alike. The output has the first four; before the fifth come forty new tokens.
  const std::vector<int32_t> head = numbers(6, 100), fresh = numbers(40, 5000);
  std::vector<int32_t> source;
  for (int32_t i = 0; i < 10; ++i) {
    const std::vector<int32_t> body = numbers(50, 1000 + 100 * i);
    source.insert(source.end(), head.begin(), head.end());
    source.insert(source.end(), body.begin(), body.end());
  }
  std::vector<int32_t> output(source.begin(), source.begin() + 4 * 56);
  output.insert(output.end(), fresh.begin(), fresh.end());
  output.insert(output.end(), head.begin(), head.begin() + 4);
  EditCursor cursor(source, false);
  TokenProposal p;
  cursor.propose(output.data(), static_cast<int64_t>(output.size()), 0, 16, p);
  CHECK(p.size() == 16 && p.token_ids[2] == 1400, "%d follows", p.empty() ? -1 : p.token_ids[2]);
}

TEST(random_edits_of_a_text_with_repetitions) {
  check::Random random{5};
  for (int round = 0; round < 60; ++round) {
    std::vector<int32_t> source;
    for (int i = 0; i < 600; ++i) {
      source.push_back(random.below(3) == 0 ? static_cast<int32_t>(random.below(12))
                                            : static_cast<int32_t>(random.below(2000)));
    }
    std::vector<int32_t> output;
    int64_t edits = 0;
    for (size_t i = 0; i < source.size(); ++i) {
      switch (random.below(80)) {
        case 0:
          output.push_back(static_cast<int32_t>(random.below(2000)));  // instead
          ++edits;
          break;
        case 1:
          ++edits;  // left out
          break;
        case 2:
          output.push_back(static_cast<int32_t>(random.below(2000)));  // before
          output.push_back(source[i]);
          ++edits;
          break;
        default:
          output.push_back(source[i]);
      }
    }
    EditCursor predicted(source, false);
    const int64_t took = steps(predicted, {1, 2, 3}, output);
    const int64_t bound = static_cast<int64_t>(output.size()) / 17 + 5 * edits + 8;
    CHECK(took <= bound, "%lld steps for %lld edits", static_cast<long long>(took),
          static_cast<long long>(edits));
    std::vector<int32_t> prompt(source);
    prompt.push_back(1);
    EditCursor found(prompt, true);  // the place in the prompt is found after a few tokens
    const int64_t searched = steps(found, prompt, output);
    CHECK(searched <= bound + 12, "%lld steps for %lld edits in a prompt", static_cast<long long>(searched),
          static_cast<long long>(edits));
  }
}

TEST(an_output_that_goes_its_own_way_is_left_alone) {
  EditCursor cursor(numbers(300), false);
  const std::vector<int32_t> output = numbers(200, 9000);
  std::vector<int32_t> text{1, 2, 3};
  TokenProposal p;
  int64_t late = 0;
  for (size_t i = 0; i < output.size(); ++i) {
    text.push_back(output[i]);
    cursor.propose(text.data(), static_cast<int64_t>(text.size()), 3, 16, p);
    if (i > 30) late += p.size();
  }
  CHECK(late == 0, "%lld tokens proposed", static_cast<long long>(late));
}

TEST(nothing_to_follow) {
  TokenProposal p;
  const int32_t text[] = {1, 2, 3};
  for (const bool is_prompt : {false, true}) {
    EditCursor cursor({}, is_prompt);
    cursor.propose(text, 3, 1, 16, p);
    CHECK(p.empty(), "of nothing nothing follows");
  }
  EditCursor one({1}, false);
  one.propose(text, 1, 1, 16, p);
  CHECK(p.size() == 1, "its only token");
  one.propose(text, 3, 1, 16, p);
  CHECK(p.size() <= 1);
}

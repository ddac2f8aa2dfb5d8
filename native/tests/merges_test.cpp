// Merges against their vocabulary: what is found whatever the width of a text's code points, and what is not.
#include "merges.h"

#include <algorithm>
#include <string>
#include <vector>

#include "check.h"

namespace {

using outpace::first_bad_merge;
using outpace::Text;

template <class Char>
Text text(const std::basic_string<Char>& s) {
  return {s.data(), static_cast<int64_t>(s.size()), sizeof(Char)};
}

// The same strings, each as narrow as it can be: as Python keeps them.
struct Strings {
  std::vector<std::string> one;
  std::vector<std::u16string> two;
  std::vector<std::u32string> four;
  std::vector<Text> texts;

  explicit Strings(const std::vector<std::u32string>& all) {
    one.reserve(all.size()), two.reserve(all.size()), four.reserve(all.size());
    for (const std::u32string& s : all) {
      char32_t highest = 0;
      for (const char32_t c : s) highest = std::max(highest, c);
      if (highest < 256) {
        one.emplace_back(s.begin(), s.end());
        texts.push_back(text(one.back()));
      } else if (highest < 65536) {
        two.emplace_back(s.begin(), s.end());
        texts.push_back(text(two.back()));
      } else {
        four.push_back(s);
        texts.push_back(text(four.back()));
      }
    }
  }
};

int64_t bad(const std::vector<std::u32string>& tokens, const std::vector<std::u32string>& merges) {
  return first_bad_merge(Strings(tokens).texts, Strings(merges).texts);
}

const std::vector<std::u32string> kTokens = {U"a",       U"b",          U"ab",          U"\u0120",
                                             U"\u0120a", U"\U0001f986", U"a\U0001f986", U" ",
                                             U" a",      U"\u00e9",     U"\u00e9a"};

TEST(halves_and_wholes_are_found_at_any_width) {
  CHECK(bad(kTokens, {U"a b", U"\u0120 a", U"a \U0001f986", U"\u00e9 a", U"  a"}) == -1);
  CHECK(bad(kTokens, {}) == -1);
}

TEST(the_first_of_the_bad_ones_is_named) {
  for (const char32_t* merge : {U"", U" ", U"a", U"a ", U" a", U"b a", U"x a", U"a x", U"a  b", U"a\u0120 a",
                                U"\U0001f986 a", U"ab ", U"a b "}) {
    CHECK(bad(kTokens, {U"a b", merge, U"zz zz"}) == 1);
  }
  CHECK(bad({}, {U"a b"}) == 0);
}

TEST(many_tokens_with_much_in_common) {
  std::vector<std::u32string> tokens, merges;
  for (char32_t c = 0; c < 5000; ++c) {
    tokens.push_back({U'a', 0x4e00 + c});
    tokens.push_back({0x4e00 + c});
    merges.push_back({U'a', U' ', 0x4e00 + c});
  }
  CHECK(bad(tokens, merges) == 0);  // "a" alone is no token
  tokens.push_back(U"a");
  CHECK(bad(tokens, merges) == -1);
  tokens[2 * 4321] = U"other";
  CHECK(bad(tokens, merges) == 4321);
}

}  // namespace

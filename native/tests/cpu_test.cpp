// Which tier runs: the fastest that the machine has, or the one that was asked for, or a refusal by name.
//
// OUTPACE_EXPECTED_TIER names the one that auto must pick: set where a test emulates a certain processor.
#include "api.h"
#include "check.h"
#include "tiers.h"

namespace {

TEST(every_available_tier_is_the_one_of_its_name) {
  const std::vector<std::string> names = outpace::available_tiers();
  CHECK(!names.empty() && names.back() == "portable");
  for (const std::string& name : names) {
    CHECK(outpace::select_kernels(name).name == name, "%s for %s", outpace::select_kernels(name).name,
          name.c_str());
  }
}

TEST(auto_is_the_first) {
  const std::string first = outpace::available_tiers().front(), got = outpace::select_kernels("auto").name;
  CHECK(got == first);
  const char* expected = std::getenv("OUTPACE_EXPECTED_TIER");
  CHECK(expected == nullptr || got == expected, "auto picks %s, not %s", got.c_str(), expected);
}

TEST(other_names_are_refused_with_a_list) {
  for (const char* name : {"", "Portable", "neon9", "avx2 "}) {
    std::string message;
    try {
      outpace::select_kernels(name);
    } catch (const outpace::Error& error) {
      message = error.what();
    }
    CHECK(message.starts_with("isa '" + std::string(name) + "'"), "%s", message.c_str());
    for (const std::string& tier : outpace::available_tiers())
      CHECK(message.find(tier) != std::string::npos, "%s", message.c_str());
  }
}

}  // namespace

// A small test harness: tests register themselves, checks count, random numbers repeat.
#pragma once

#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace check {

struct Test {
  const char* name;
  void (*run)();
};
inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}
struct Register {
  Register(const char* name, void (*run)()) { tests().push_back({name, run}); }
};
inline int64_t num_checks = 0, num_failures = 0;
// Of all recorded results: the same on every machine, as long as each is recorded once and not for each tier.
inline uint64_t digest = 0xcbf29ce484222325u;

inline void expect(bool ok, const char* file, int line, const char* what, const char* format = nullptr, ...) {
  ++num_checks;
  if (ok || ++num_failures > 20) return;
  std::printf("%s:%d: failed: %s", file, line, what);
  va_list values;
  va_start(values, format);
  std::printf("  ");
  if (format != nullptr) std::vprintf(format, values);
  va_end(values);
  std::printf("\n");
}

#define CHECK(condition, ...) \
  check::expect(static_cast<bool>(condition), __FILE__, __LINE__, #condition __VA_OPT__(, ) __VA_ARGS__)

// FNV-1a over 32-bit words.
template <class T>
void record(const T* values, size_t n) {
  static_assert(sizeof(T) == 4);
  for (size_t i = 0; i < n; ++i) {
    uint32_t word;
    std::memcpy(&word, values + i, 4);
    digest = (digest ^ word) * 0x100000001b3u;
  }
}

template <class T>
bool same_bits(const T* a, const T* b, size_t n) {
  return std::memcmp(a, b, n * sizeof(T)) == 0;
}

// A whole run leaves its digest in the file that OUTPACE_DIGEST names, or compares it with the one in the
// file that OUTPACE_EXPECTED_DIGEST names: another architecture's.
inline void keep_digest() {
  char line[17];
  std::snprintf(line, sizeof line, "%016llx", static_cast<unsigned long long>(digest));
  if (const char* path = std::getenv("OUTPACE_DIGEST")) {
    std::FILE* file = std::fopen(path, "w");
    CHECK(file != nullptr && std::fputs(line, file) >= 0 && std::fclose(file) == 0, "cannot write %s", path);
  }
  if (const char* path = std::getenv("OUTPACE_EXPECTED_DIGEST")) {
    std::FILE* file = std::fopen(path, "r");
    char expected[17] = "";
    CHECK(file != nullptr && std::fgets(expected, sizeof expected, file) != nullptr, "no digest in %s", path);
    CHECK(std::strcmp(line, expected) == 0, "digest %s, in %s %s", line, path, expected);
    if (file != nullptr) std::fclose(file);
  }
}

// splitmix64.
struct Random {
  uint64_t state;
  uint64_t bits() {
    uint64_t z = state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
  }
  int64_t below(int64_t n) { return static_cast<int64_t>(bits() % static_cast<uint64_t>(n)); }
  int64_t between(int64_t low, int64_t high) { return low + below(high - low + 1); }
  float uniform() { return static_cast<float>(bits() >> 40) * 0x1p-24f; }  // [0, 1)
  float normal() {
    float s = -6.0f;
    for (int i = 0; i < 12; ++i) s += uniform();
    return s;
  }
};

}  // namespace check

#define TEST(name)                                           \
  static void name();                                        \
  static const check::Register register_##name(#name, name); \
  static void name()

int main(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);  // a test that is ended from outside has said how far it came
  for (const check::Test& test : check::tests()) {
    if (argc > 1 && std::strstr(test.name, argv[1]) == nullptr) continue;
    const int64_t before = check::num_failures;
    test.run();
    std::printf("%-44s %s\n", test.name, check::num_failures == before ? "ok" : "FAILED");
  }
  if (argc == 1) check::keep_digest();
  std::printf("%lld checks, %lld failures, digest %016llx\n", static_cast<long long>(check::num_checks),
              static_cast<long long>(check::num_failures), static_cast<unsigned long long>(check::digest));
  return check::num_failures == 0 && check::num_checks > 0 ? 0 : 1;
}

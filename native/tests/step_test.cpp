// Model::step through api.h: a hot step allocates nothing, and a batch that breaks the contract is refused.
#include <sys/resource.h>
#include <sys/time.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <new>
#include <string>

#include "api.h"
#include "check.h"
#include "tiny_model.h"

namespace {
std::atomic<int64_t> num_allocations{0};

void* allocate(size_t bytes, size_t alignment) {
  ++num_allocations;
  void* p = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  if (p == nullptr) throw std::bad_alloc();
  return p;
}
}  // namespace

void* operator new(size_t bytes) { return allocate(bytes, alignof(std::max_align_t)); }
void* operator new(size_t bytes, std::align_val_t to) { return allocate(bytes, static_cast<size_t>(to)); }
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, size_t) noexcept { std::free(p); }
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, size_t, std::align_val_t) noexcept { std::free(p); }

namespace {

using outpace::Model;
using outpace::Options;

Options options(int num_threads, outpace::KVFormat kv_format = outpace::KVFormat::int8) {
  Options o;
  o.num_threads = num_threads;
  o.kv_format = kv_format;
  o.num_blocks = tiny::kBlocks;
  o.max_rows = 64;
  return o;
}

std::vector<int32_t> tokens(int64_t n, int64_t seed) {
  check::Random random{static_cast<uint64_t>(seed)};
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < n; ++i) ids.push_back(static_cast<int32_t>(random.below(500)));
  return ids;
}

TEST(a_hot_step_allocates_nothing) {
  const outpace::ModelSpec spec = tiny::spec();
  const tiny::File file(spec);
  for (const int threads : {1, 2}) {
    for (const auto kv_format : {outpace::KVFormat::int8, outpace::KVFormat::f16}) {
      Model model(spec, file.tensors(), options(threads, kv_format), nullptr);
      tiny::Batch prompt;
      prompt.add(tokens(60, 1), 0);
      prompt.link();
      model.step(prompt.batch, prompt.output);
      const std::vector<int32_t> history = tokens(60, 1);
      for (const bool sampled : {false, true}) {  // one request of one row, and one with drafts
        tiny::Batch decode;
        decode.add(tokens(1, 2), 60);
        decode.add(tokens(5, 3), 9, 4, 4);
        for (outpace::Sampling& s : decode.sampling) {
          if (sampled) s = {7, 0.9f, 0.9f, 0.01f, 1.1f, 0.1f, 0.1f, 40, -1, 60, 0};
        }
        decode.batch.history.assign(2, {history.data(), static_cast<int64_t>(history.size())});
        decode.link();
        // Which thread samples is chance: each must have had its turn.
        for (int i = 0; i < 200; ++i) model.step(decode.batch, decode.output);
        const int64_t before = num_allocations;
        for (int i = 0; i < 100; ++i) model.step(decode.batch, decode.output);
        const auto made = static_cast<int>(num_allocations - before);
        CHECK(made == 0, "%d allocations in 100 steps, %d threads, sampled: %d", made, threads, sampled);
        CHECK(decode.out_token_ids[0] >= 0 && decode.out_accepted[1] >= 0);
      }
    }
  }
}

}  // namespace

// Model::step through api.h: a hot step allocates nothing and calls no system, and a batch that breaks the
// contract is refused.
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>

#include "api.h"
#include "check.h"
#include "child.h"
#include "counted_allocations.h"
#include "tiny_model.h"

#if defined(__linux__) && !defined(OUTPACE_SANITIZED) && !defined(OUTPACE_EMULATED)
#define OUTPACE_COUNTS_SYSTEM_CALLS 1
#include "counted_system_calls.h"
#endif

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

// A request of one row and one with drafts, after a prompt that the model has read; all that a step needs.
struct HotStep {
  Model model;
  const std::vector<int32_t> history = tokens(60, 1);
  tiny::Batch decode;

  HotStep(const outpace::ModelSpec& spec, const tiny::File& file, const Options& o, bool sampled)
      : model(spec, file.tensors(), o, nullptr) {
    tiny::Batch prompt;
    prompt.add(history, 0);
    prompt.link();
    model.step(prompt.batch, prompt.output);
    decode.add(tokens(1, 2), 60);
    decode.add(tokens(5, 3), 9, 4, 4);
    for (outpace::Sampling& s : decode.sampling) {
      if (sampled) s = {7, 0.9f, 0.9f, 0.01f, 1.1f, 0.1f, 0.1f, 40, -1, 60, 0};
    }
    decode.batch.history.assign(2, {history.data(), static_cast<int64_t>(history.size())});
    decode.link();
  }

  void run(int count) {
    for (int i = 0; i < count; ++i) model.step(decode.batch, decode.output);
  }
  // Which thread samples is chance, and each allocates once: all have when 100 steps are clean. What the
  // last 100 allocated.
  int64_t warm_up() {
    int64_t made = -1;
    for (int round = 0; round < 30 && made != 0; ++round) {
      const int64_t before = num_allocations;
      run(100);
      made = num_allocations - before;
    }
    return made;
  }
};

struct HotCase {
  int threads;
  outpace::KVFormat kv_format;
  bool sampled;
};
std::vector<HotCase> hot_cases() {
  std::vector<HotCase> all;
  for (const int threads : {1, 2}) {
    for (const auto kv_format : {outpace::KVFormat::int8, outpace::KVFormat::f16}) {
      for (const bool sampled : {false, true}) all.push_back({threads, kv_format, sampled});
    }
  }
  return all;
}

TEST(a_hot_step_allocates_nothing) {
  const outpace::ModelSpec spec = tiny::spec();
  const tiny::File file(spec);
  for (const HotCase& c : hot_cases()) {
    HotStep step(spec, file, options(c.threads, c.kv_format), c.sampled);
    const int64_t made = step.warm_up();
    CHECK(made == 0, "%d allocations in 100 steps, %d threads, sampled: %d", static_cast<int>(made),
          c.threads, c.sampled);
    CHECK(step.decode.out_token_ids[0] >= 0 && step.decode.out_accepted[1] >= 0);
  }
}

// Allocations of 239 steps with what HotStep's do not have: integers, drafts that branch, and a context that
// grows over a chunk of attention (128 tokens) and into new blocks.
int64_t allocations_of_growth(const outpace::ModelSpec& spec, const tiny::File& file, const HotCase& c) {
  Options o = options(c.threads, c.kv_format);
  o.weight_format = outpace::WeightFormat::q4_0;
  Model model(spec, file.tensors(), o, nullptr);
  tiny::Batch decode;
  decode.add(tokens(9, 3), 0, 8);
  if (c.sampled) decode.sampling[0] = {7, 0.9f, 0.9f, 0.01f, 1.1f, 0.1f, 0.1f, 40, -1, 60, 0};
  const std::vector<int32_t> history = tokens(1, 4), parents = {0, -1, 0, 1, -1, 0, 3, 3, 4};
  decode.batch.history.assign(1, {history.data(), 1});
  decode.batch.draft_parents = parents.data();
  decode.link();
  const auto step_at = [&](int32_t position) {
    decode.num_computed[0] = position;
    model.step(decode.batch, decode.output);
  };
  for (int round = 0; round < 200; ++round) step_at(0);
  const int64_t before = num_allocations;
  for (int32_t position = 1; position < 240; ++position) step_at(position);
  CHECK(decode.out_accepted[0] >= 0);
  return num_allocations - before;
}

TEST(a_growing_context_allocates_nothing) {
  const outpace::ModelSpec spec = tiny::spec();
  const tiny::File file(spec);
  for (const HotCase& c : hot_cases()) {
    // A thread that has not sampled before allocates once, and on a busy machine one may come late. What
    // growth asks for, every model asks for.
    int64_t made = -1;
    for (int attempt = 0; attempt < 5 && made != 0; ++attempt) made = allocations_of_growth(spec, file, c);
    CHECK(made == 0, "%d allocations in 239 steps, %d threads, sampled: %d", static_cast<int>(made),
          c.threads, c.sampled);
  }
}

#if defined(OUTPACE_COUNTS_SYSTEM_CALLS)
struct SystemCalls {
  bool counted;
  int64_t number, last;
};

// Of 1,000 steps, in a child: what is refused stays refused.
SystemCalls system_calls_of(const outpace::ModelSpec& spec, const tiny::File& file, const HotCase& c) {
  void* shared =
      mmap(nullptr, sizeof(SystemCalls), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  auto* found = new (shared) SystemCalls{false, -1, -1};
  const int status = exit_status([&] {
    // Never destroyed: its threads could not end.
    auto& step = *new HotStep(spec, file, options(c.threads, c.kv_format), c.sampled);
    step.warm_up();
    found->counted = refuse_system_calls(c.threads > 1);
    if (found->counted) step.run(1000);
    *found = {found->counted, num_system_calls, last_system_call};
    return 0;
  });
  CHECK(status == 0, "the child ended with %d", status);
  const SystemCalls result = *found;
  munmap(shared, sizeof(SystemCalls));
  return result;
}

TEST(a_hot_step_calls_no_system) {
  const outpace::ModelSpec spec = tiny::spec();
  const tiny::File file(spec);
  for (const HotCase& c : hot_cases()) {
    const SystemCalls calls = system_calls_of(spec, file, c);
    if (!calls.counted) {
      std::printf("SKIPPED: this system does not let a process refuse its own calls\n");
      return;
    }
    CHECK(calls.number == 0,
          "%d system calls in 1000 steps, the last with number %d; %d threads, sampled: %d",
          static_cast<int>(calls.number), static_cast<int>(calls.last), c.threads, c.sampled);
  }
}
#endif

// A batch of three requests that is right: a prompt's chunk, a row, a row with drafts.
tiny::Batch right_batch() {
  tiny::Batch b;
  b.add(tokens(7, 4), 33);
  b.add(tokens(1, 5), 0, 0, 3);
  b.add(tokens(4, 6), 60, 3, 5);
  b.link();
  return b;
}

bool refused(Model& model, tiny::Batch& b) {
  try {
    model.step(b.batch, b.output);
  } catch (const outpace::Error& e) {
    CHECK(std::strstr(e.what(), "bad step batch: ") == e.what(), "%s", e.what());
    return true;
  }
  return false;
}

TEST(a_batch_that_breaks_the_contract_is_refused) {
  constexpr int32_t least = INT32_MIN, most = INT32_MAX;
  const outpace::ModelSpec spec = tiny::spec();
  const tiny::File file(spec);
  Model model(spec, file.tensors(), options(2), nullptr);
  struct Case {
    const char* what;
    std::vector<int32_t> tiny::Batch::* array;
    size_t at;
    std::vector<int32_t> values;
  };
  using B = tiny::Batch;
  const Case cases[] = {
      {"row_start begins", &B::row_start, 0, {-1, 1, least, most}},
      {"row_start ends", &B::row_start, 3, {-1, 11, 13, least, most}},
      {"row_start inside", &B::row_start, 1, {-1, 0, 8, 9, 13, least, most}},
      {"token ids", &B::token_ids, 11, {-1, 500, least, most}},
      {"computed tokens", &B::num_computed, 2, {-1, 253, 1000, least, most}},
      {"drafts", &B::num_drafts, 2, {-1, 4, 5, least, most}},
      {"drafts of one row", &B::num_drafts, 1, {-1, 1, least, most}},
      {"block ids", &B::tables, 1, {-1, 8, least, most}},
      {"block ids of another", &B::tables, 8 * 2 + 1, {-1, 8, least, most}},
  };
  B right = right_batch();
  CHECK(!refused(model, right));
  const std::vector<int32_t> answer = right.out_token_ids;
  for (const Case& c : cases) {
    for (const int32_t value : c.values) {
      B b = right_batch();
      (b.*c.array)[c.at] = value;
      b.link();
      CHECK(refused(model, b), "%s: %d", c.what, value);
    }
  }
  B narrow = right_batch(), wide_table = right_batch();
  narrow.output.width = 3;
  CHECK(refused(model, narrow));
  wide_table.batch.block_table_width = 1;
  CHECK(refused(model, wide_table));
  CHECK(!refused(model, right));
  CHECK(right.out_token_ids == answer);  // nothing of the refused ones is left
}

std::vector<int32_t> answer(Model& model) {
  tiny::Batch b = right_batch();
  model.step(b.batch, b.output);
  return b.out_token_ids;
}

TEST(models_share_threads_and_take_turns) {
  outpace::ModelSpec other_spec = tiny::spec();
  other_spec.num_layers = 1;
  other_spec.hidden_size = 96;
  const tiny::File file(tiny::spec()), other_file(other_spec);
  for (const int threads : {1, 2}) {
    Model alone(tiny::spec(), file.tensors(), options(threads), nullptr);
    Model other_alone(other_spec, other_file.tensors(), options(threads), nullptr);
    const std::vector<int32_t> expected = answer(alone), other_expected = answer(other_alone);
    auto first = std::make_unique<Model>(tiny::spec(), file.tensors(), options(threads), nullptr);
    Model second(other_spec, other_file.tensors(), options(7), nullptr, first.get());
    CHECK(second.num_threads() == threads);
    std::atomic<int> wrong{0};
    std::thread caller([&] {
      for (int i = 0; i < 50; ++i) wrong += answer(second) != other_expected;
    });
    for (int i = 0; i < 50; ++i) wrong += answer(*first) != expected;
    caller.join();
    CHECK(wrong == 0, "%d of 100 with %d threads", wrong.load(), threads);
    first.reset();  // the threads stay with the other one
    CHECK(answer(second) == other_expected);
  }
}

// Any few numbers changed at random: refused or run, within the arrays' bounds, which the sanitizers watch.
TEST(random_batches_stay_in_bounds) {
  const outpace::ModelSpec spec = tiny::spec();
  const tiny::File file(spec);
  Model model(spec, file.tensors(), options(2), nullptr);
  check::Random random{9};
  int num_refused = 0;
  constexpr int rounds = 1000;
  for (int round = 0; round < rounds; ++round) {
    tiny::Batch b = right_batch();
    std::vector<int32_t>* arrays[] = {&b.token_ids, &b.row_start, &b.num_computed, &b.num_drafts, &b.tables};
    for (int64_t changes = random.between(1, 3); changes > 0; --changes) {
      std::vector<int32_t>& array = *arrays[random.below(5)];
      int32_t& value = array[static_cast<size_t>(random.below(static_cast<int64_t>(array.size())))];
      const auto any = static_cast<int32_t>(random.bits());
      const int32_t near = value + static_cast<int32_t>(random.between(-2, 2));
      value = random.below(2) == 0 ? any : near;
    }
    b.link();
    num_refused += refused(model, b);
  }
  CHECK(num_refused > rounds / 4 && num_refused < rounds, "%d refused", num_refused);
}

}  // namespace

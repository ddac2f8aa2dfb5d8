// A draft head through api.h: a hot guess allocates nothing, all tiers and threads guess alike, and a batch
// that breaks the contract is refused.
#include "api.h"
#include "check.h"
#include "counted_allocations.h"
#include "tiny_model.h"

namespace {

using outpace::Model;

constexpr int64_t kDraftVocab = 200, kWidth = 6;

outpace::HeadSpec head_spec() {
  outpace::HeadSpec head;
  head.layers = tiny::spec();
  head.layers.num_layers = 2;
  head.layers.num_heads = 2;
  head.layers.num_kv_heads = 1;
  head.layers.vocab_size = kDraftVocab;
  head.layers.tied_embeddings = false;
  for (int32_t i = 0; i < kDraftVocab; ++i) head.token_ids.push_back(2 * i + 1);
  head.num_blocks = 6;
  return head;
}

std::vector<int32_t> tokens(int64_t n, uint64_t seed) {
  check::Random random{seed};
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < n; ++i) ids.push_back(static_cast<int32_t>(random.below(500)));
  return ids;
}

// A model with a head, and two texts of 70 and 20 tokens in its cache, from blocks 0 and 4 on.
struct WithHead {
  const outpace::ModelSpec spec = tiny::spec();
  const outpace::HeadSpec head = head_spec();
  const tiny::File file{spec}, head_file{head.layers, true};
  std::unique_ptr<Model> model;

  explicit WithHead(int num_threads, const std::string& isa = "auto") {
    outpace::Options o;
    o.num_threads = num_threads;
    o.isa = isa;
    o.num_blocks = tiny::kBlocks;
    o.max_rows = 96;
    model = std::make_unique<Model>(spec, file.tensors(), o, nullptr);
    CHECK(model->head_bytes() == 0);
    model->attach_head(head, head_file.tensors());
    CHECK(model->head_bytes() > 0);
    tiny::Batch texts;
    texts.add(tokens(70, 1), 0);
    texts.add(tokens(20, 2), 0, 0, 4);
    texts.link();
    model->step(texts.batch, texts.output);
  }
};

// What the head is asked about them: all of the second text, and the first one from token 40 on.
struct Batch {
  std::vector<int32_t> token_ids = tokens(70, 1), row_start{0, 31, 52}, positions{40, 0}, starts{40, 0};
  std::vector<int32_t> block_tables{0, 1, 2, 4, -1, -1}, head_tables{3, 0, 5, 2}, max_tokens{5, 6};
  std::vector<outpace::Sampling> sampling{2, {7, 0.0f, 1.0f, 0.0f, 1.0f, 0.0f, 0.0f, 0, -1, 0, 0}};
  std::vector<int32_t> out_token_ids, out_num_tokens;
  std::vector<float> least_chances = std::vector<float>(kWidth), out_chances;
  outpace::HeadBatch batch;
  outpace::HeadOutput output;

  Batch() {
    token_ids.erase(token_ids.begin(), token_ids.begin() + 40);
    token_ids.push_back(9);
    const std::vector<int32_t> second = tokens(20, 2);
    token_ids.insert(token_ids.end(), second.begin(), second.end());
    token_ids.push_back(8);
  }
  void link() {
    batch.num_rows = static_cast<int64_t>(token_ids.size());
    batch.num_requests = static_cast<int64_t>(positions.size());
    batch.block_table_width = 3;
    batch.head_table_width = 2;
    batch.token_ids = token_ids.data();
    batch.row_start = row_start.data();
    batch.positions = positions.data();
    batch.starts = starts.data();
    batch.block_tables = block_tables.data();
    batch.head_tables = head_tables.data();
    batch.max_tokens = max_tokens.data();
    batch.sampling = sampling.data();
    batch.least_chances = least_chances.data();
    out_token_ids.assign(2 * kWidth, -1);
    out_chances.assign(2 * kWidth, -1.0f);
    out_num_tokens.assign(2, -1);
    output = {kWidth, out_token_ids.data(), out_chances.data(), out_num_tokens.data()};
  }
};

TEST(all_tiers_and_threads_guess_alike) {
  for (const float temperature : {0.0f, 0.8f}) {
    Batch expected;
    for (outpace::Sampling& s : expected.sampling) s.temperature = temperature;
    expected.link();
    WithHead(1).model->guess(expected.batch, expected.output);
    CHECK(expected.out_num_tokens == (std::vector<int32_t>{5, 6}));
    for (int64_t i = 0; i < kWidth; ++i) {
      CHECK(expected.out_token_ids[static_cast<size_t>(kWidth + i)] % 2 == 1);
      CHECK(expected.out_chances[static_cast<size_t>(kWidth + i)] > 0.0f);
    }
    for (const std::string& isa : outpace::available_isas()) {
      for (const int threads : {1, 2}) {
        Batch b;
        b.sampling = expected.sampling;
        b.link();
        WithHead(threads, isa).model->guess(b.batch, b.output);
        CHECK(b.out_token_ids == expected.out_token_ids, "%s, %d threads", isa.c_str(), threads);
        CHECK(b.out_chances == expected.out_chances, "%s, %d threads", isa.c_str(), threads);
      }
    }
  }
}

TEST(unlikely_guesses_are_not_followed) {
  WithHead with(2);
  Batch b;
  b.least_chances = {0.0f, 0.0f, 0.9f, 0.9f, 0.9f, 0.9f, 0.9f, 0.9f};
  b.link();
  with.model->guess(b.batch, b.output);
  CHECK(b.out_num_tokens == (std::vector<int32_t>{2, 2}));
}

TEST(a_hot_guess_allocates_nothing) {
  for (const int threads : {1, 2}) {
    WithHead with(threads);
    Batch b;
    b.sampling[1].temperature = 0.8f;
    b.link();
    tiny::Batch decode;
    decode.add(tokens(5, 3), 20, 4, 4);
    decode.link();
    int64_t made = -1;
    for (int round = 0; round < 30 && made != 0; ++round) {
      const int64_t before = num_allocations;
      for (int i = 0; i < 20; ++i) {
        with.model->guess(b.batch, b.output);
        with.model->step(decode.batch, decode.output);
      }
      made = num_allocations - before;
    }
    CHECK(made == 0, "%d allocations in 20 rounds, %d threads", static_cast<int>(made), threads);
  }
}

bool refused(Model& model, Batch& b) {
  try {
    model.guess(b.batch, b.output);
  } catch (const outpace::Error& e) {
    CHECK(std::strstr(e.what(), "bad draft head batch: ") == e.what(), "%s", e.what());
    return true;
  }
  return false;
}

TEST(random_batches_stay_in_bounds) {
  WithHead with(2);
  Batch right;
  right.link();
  CHECK(!refused(*with.model, right));
  const std::vector<int32_t> answer = right.out_token_ids;
  check::Random random{11};
  int num_refused = 0;
  constexpr int rounds = 600;
  for (int round = 0; round < rounds; ++round) {
    Batch b;
    std::vector<int32_t>* arrays[] = {&b.token_ids,    &b.row_start,   &b.positions, &b.starts,
                                      &b.block_tables, &b.head_tables, &b.max_tokens};
    for (int64_t changes = random.between(1, 3); changes > 0; --changes) {
      std::vector<int32_t>& array = *arrays[random.below(7)];
      int32_t& value = array[static_cast<size_t>(random.below(static_cast<int64_t>(array.size())))];
      const auto any = static_cast<int32_t>(random.bits());
      value = random.below(2) == 0 ? any : value + static_cast<int32_t>(random.between(-2, 2));
    }
    b.link();
    num_refused += refused(*with.model, b);
  }
  CHECK(num_refused > rounds / 4 && num_refused < rounds, "%d refused", num_refused);
  right.link();
  CHECK(!refused(*with.model, right));
  CHECK(right.out_token_ids == answer);  // nothing of the others is left
}

TEST(a_head_that_does_not_fit_is_refused) {
  const outpace::ModelSpec spec = tiny::spec();
  const tiny::File file(spec);
  outpace::Options o;
  o.num_blocks = tiny::kBlocks;
  Model model(spec, file.tensors(), o, nullptr);
  const auto refuses = [&](const outpace::HeadSpec& head, const std::vector<outpace::TensorRef>& tensors) {
    try {
      model.attach_head(head, tensors);
    } catch (const outpace::Error&) {
      return true;
    }
    return false;
  };
  const tiny::File head_file(head_spec().layers, true);
  outpace::HeadSpec head = head_spec();
  head.layers.hidden_size = 96;
  CHECK(refuses(head, head_file.tensors()));
  head = head_spec();
  head.token_ids.back() = 500;
  CHECK(refuses(head, head_file.tensors()));
  std::swap(head.token_ids[3], head.token_ids[4]);
  CHECK(refuses(head, head_file.tensors()));
  head = head_spec();
  head.layers.num_layers = 3;
  CHECK(refuses(head, head_file.tensors()));
  Batch b;
  b.link();
  bool none = false;
  try {
    model.guess(b.batch, b.output);
  } catch (const outpace::Error& e) {
    none = std::strstr(e.what(), "no draft head") != nullptr;
  }
  CHECK(none);
  CHECK(!refuses(head_spec(), head_file.tensors()));
}

}  // namespace

// The forward pass gives the same bits on every tier, the emulated tiles among them, however a prompt is cut
// into steps, with rows that take the attention of a chunk together.
#include "forward.h"
#include "tiers.h"
#include "tiny_model.h"

namespace {

using outpace::Kernels;

constexpr int32_t kTokens = 250;

// Five heads a KV head: odd blocks of (row, head) pairs.
outpace::ModelSpec spec_of(int64_t sliding_window) {
  outpace::ModelSpec s = tiny::spec();
  s.num_heads = 10;
  s.sliding_window = sliding_window;
  return s;
}

// The logits of the last token, the prompt in steps of `rows` tokens, the first `num_rounded` in bf16.
std::vector<float> last_logits(const outpace::ModelSpec& spec, const tiny::File& file, const Kernels& kernels,
                               int threads, int64_t rows_per_step, int64_t num_tokens = kTokens,
                               const outpace::Options& like = {}, int64_t num_rounded = 0) {
  outpace::Options options = like;
  options.num_blocks = tiny::kBlocks;
  outpace::ThreadPool pool(threads);
  const outpace::Weights weights =
      outpace::Weights::load(spec, file.tensors(), options, kernels, pool, nullptr);
  outpace::KVCache cache(spec, options);
  outpace::Forward forward(spec, weights, cache, kernels, pool);
  const int32_t table[tiny::kBlocks] = {5, 2, 7, 0, 1, 6, 3, 4};
  int64_t last = 0;
  for (int64_t at = 0; at < num_tokens; at += rows_per_step) {
    std::vector<outpace::Row> rows;
    std::vector<int32_t> ids;
    for (int64_t t = at; t < std::min(num_tokens, at + rows_per_step); ++t) {
      rows.push_back({0, t, table, {}, t < num_rounded});
      ids.push_back(static_cast<int32_t>(t * 37 % spec.vocab_size));
    }
    forward.run(rows, ids.data());
    last = static_cast<int64_t>(rows.size()) - 1;
  }
  std::vector<float> logits(static_cast<size_t>(weights.output.padded_rows()));
  forward.logits(weights.output, &last, 1, logits.data());
  return logits;
}

TEST(every_tier_and_cut_gives_the_same_bits) {
  for (const int64_t window : {0, 40, 150}) {
    const outpace::ModelSpec spec = spec_of(window);
    const tiny::File file(spec);
    const std::vector<float> expected = last_logits(spec, file, *check::tiers().front(), 1, 1);
    for (const float x : expected) CHECK(std::isfinite(x));
    for (const Kernels* kernels : check::tiers()) {
      for (const int64_t rows : {1, 5, 16, 33, 250}) {
        for (const int threads : {1, 2}) {
          const std::vector<float> got = last_logits(spec, file, *kernels, threads, rows);
          CHECK(check::same_bits(got.data(), expected.data(), got.size()),
                "%s, window %d, steps of %d, %d threads", kernels->name, static_cast<int>(window),
                static_cast<int>(rows), threads);
        }
      }
    }
  }
}

// Wide rows do not fit the cache together and go in blocks, here of 80 and 50.
TEST(blocks_of_rows_give_the_same_bits) {
  outpace::ModelSpec spec = tiny::spec();
  spec.num_layers = 1;
  spec.intermediate_size = 8192;
  const tiny::File file(spec);
  outpace::Options options;
  options.weight_format = outpace::WeightFormat::q4_0;
  const std::vector<float> expected = last_logits(spec, file, *check::tiers().front(), 1, 10, 130, options);
  for (const Kernels* kernels : check::tiers()) {
    const std::vector<float> got = last_logits(spec, file, *kernels, 2, 130, 130, options);
    CHECK(check::same_bits(got.data(), expected.data(), got.size()), "%s", kernels->name);
  }
}

// Rounded rows alone, and rows of both kinds in a step; inputs that go in parts, widths that tiles do not
// have, and a last strip that is not whole.
TEST(rounded_rows_give_the_same_bits_whatever_the_cut) {
  struct Shape {
    int64_t heads, head_dim, intermediate;
    outpace::WeightFormat format;
  };
  constexpr Shape kShapes[] = {{2, 32, 8192, outpace::WeightFormat::q4_0},
                               {2, 36, 96, outpace::WeightFormat::keep},
                               {2, 50, 100, outpace::WeightFormat::keep}};
  for (const auto& [heads, head_dim, intermediate, format] : kShapes) {
    outpace::ModelSpec spec = tiny::spec();
    spec.num_heads = spec.num_kv_heads = heads;
    spec.hidden_size = heads * head_dim;
    spec.intermediate_size = intermediate;
    const tiny::File file(spec);
    outpace::Options options;
    options.weight_format = format;
    std::vector<float> first;
    for (const Kernels* kernels : check::tiers()) {
      if (kernels->matmul_strip_bf16 == nullptr) continue;
      const std::vector<float> exact = last_logits(spec, file, *kernels, 2, 100, 100, options);
      for (const int64_t num_rounded : {100, 70}) {
        const std::vector<float> expected =
            last_logits(spec, file, *kernels, 1, 1, 100, options, num_rounded);
        CHECK(!check::same_bits(expected.data(), exact.data(), exact.size()), "nothing was rounded");
        for (const float x : expected) CHECK(std::isfinite(x));
        for (const int64_t rows : {7, 33, 100}) {
          const std::vector<float> got =
              last_logits(spec, file, *kernels, 2, rows, 100, options, num_rounded);
          CHECK(check::same_bits(got.data(), expected.data(), got.size()), "%s, hidden %d, steps of %d",
                kernels->name, static_cast<int>(spec.hidden_size), static_cast<int>(rows));
        }
        if (num_rounded == 100 && first.empty()) first = expected;
        if (num_rounded == 100)
          CHECK(check::same_bits(first.data(), expected.data(), first.size()), "%s", kernels->name);
      }
    }
  }
}

#if defined(OUTPACE_AMX_EMULATED)
// Float weights: all tile products are of the attention.
TEST(prompts_take_tiles) {
  const outpace::ModelSpec spec = spec_of(0);
  const tiny::File file(spec);
  for (const Kernels* kernels : check::tiers()) {
    if (std::strcmp(kernels->name, "amx-emulated") != 0) continue;
    for (const int64_t rows : {1, 16}) {
      const int64_t before = amx_emulated_products();
      last_logits(spec, file, *kernels, 1, rows);
      CHECK((amx_emulated_products() > before) == (rows > 1));
    }
  }
}
#endif

}  // namespace

// The attention of many rows in one call: bit by bit that of each row alone, on every tier, whatever the rows
// see and in whichever blocks it lies.
#include "attention_cache.h"

namespace {

using namespace attention;
using outpace::AttentionTask;

struct Span {
  int64_t begin, end;  // tokens that a row sees
};

// Rows of one request that are attended to together.
struct Rows {
  std::vector<Span> spans;
  std::vector<Query> queries;
  std::vector<std::vector<int32_t>> tables;  // of each row its own; may be none: the context's
  float softcap = 0.0f;
};

// Neighbouring tokens, the last at end - 1. window: tokens that a row sees at most; 0: all.
std::vector<Span> neighbours(int64_t num_rows, int64_t end, int64_t window) {
  std::vector<Span> spans;
  for (int64_t last = end - num_rows + 1; last <= end; ++last) {
    if (last > 0) spans.push_back({window > 0 ? std::max<int64_t>(0, last - window) : 0, last});
  }
  return spans;
}

Context context_of(const std::vector<Span>& spans, int64_t head_dim, bool int8, uint64_t seed) {
  Shape shape{head_dim, spans[0].begin, spans[0].end, int8};
  for (const Span& span : spans) {
    shape.begin = std::min(shape.begin, span.begin);
    shape.end = std::max(shape.end, span.end);
  }
  return make_context(shape, seed);
}

void add_queries(Rows& rows, const Context& c, int64_t heads, uint64_t seed) {
  for (size_t i = 0; i < rows.spans.size(); ++i)
    rows.queries.push_back(make_query(c, heads, rows.softcap, seed + i));
}

// Garbage where a kernel's local arrays will lie: NaN in every float.
__attribute__((noinline)) void soil_stack() {
  volatile uint8_t garbage[160 << 10];
  for (volatile uint8_t& byte : garbage) byte = 0xff;
}

// All rows that see the chunk, in one call or one by one; every second one takes it in with what its results
// hold. Nothing remains of a row that does not see it.
std::vector<Result> attend_chunk_of_rows(Context& c, const Kernels& kernels, const Rows& rows, int64_t chunk,
                                         bool together) {
  constexpr int64_t size = outpace::kAttentionChunk;
  const size_t n = rows.spans.size();
  const int64_t heads = rows.queries[0].heads;
  std::vector<Result> results(n, Result(heads, c.padded()));
  std::vector<IntegerQuery> integers(n);
  std::vector<AttentionTask> tasks;
  for (size_t i = 0; i < n; ++i) {
    const int64_t begin = std::max(rows.spans[i].begin, chunk * size),
                  end = std::min(rows.spans[i].end, (chunk + 1) * size);
    if (begin >= end) continue;
    const float* query = rows.queries[i].rows.data();
    integers[i] = quantize(kernels, query, heads, c.padded());
    tasks.push_back(task_of(c, query, integers[i], begin, end, results[i]));
    tasks.back().softcap = rows.softcap;
    tasks.back().merge = i % 2 == 1;
    if (!rows.tables.empty()) tasks.back().block_table = rows.tables[i].data();
  }
  soil_stack();
  if (together && !tasks.empty()) {
    kernels.attend_rows(tasks.data(), static_cast<int64_t>(tasks.size()));
  } else {
    for (const AttentionTask& task : tasks) kernels.attend(task);
  }
  return results;
}

int64_t tile_products() {
#if defined(OUTPACE_AMX_EMULATED)
  return amx_emulated_products();
#else
  return 0;
#endif
}

enum class Tiles { taken, not_taken, either };

// The last chunk of the rows, over garbage, must be the same on every tier, together or one by one.
void check_chunk(Context& c, const Rows& rows, int64_t chunk, Tiles tiles) {
  const std::vector<Result> expected = attend_chunk_of_rows(c, *check::tiers().front(), rows, chunk, false);
  for (const Result& r : expected) {
    check::record(r.out.data(), r.out.size());
    check::record(r.sum.data(), r.sum.size());
  }
  for (const Kernels* kernels : check::tiers()) {
    for (const bool together : {false, true}) {
      const int64_t before = tile_products();
      const std::vector<Result> got = attend_chunk_of_rows(c, *kernels, rows, chunk, together);
      for (size_t i = 0; i < got.size(); ++i) {
        CHECK(got[i] == expected[i], "%s, %s, row %zu of %zu, d %d, %d heads, tokens %d..%d", kernels->name,
              together ? "together" : "alone", i, got.size(), static_cast<int>(c.head_dim),
              static_cast<int>(rows.queries[0].heads), static_cast<int>(rows.spans[i].begin),
              static_cast<int>(rows.spans[i].end));
      }
      if (!together || std::strcmp(kernels->name, "amx-emulated") != 0) continue;
      if (tiles == Tiles::taken) CHECK(tile_products() > before, "%zu rows: no tiles", got.size());
      if (tiles == Tiles::not_taken) CHECK(tile_products() == before, "%zu rows: tiles", got.size());
    }
  }
}

struct Case {
  std::vector<Span> spans;
  int64_t head_dim, heads;
  float softcap = 0.0f;
  bool int8 = true;
};

void check_rows(const Case& k, uint64_t seed, Tiles tiles) {
  Context c = context_of(k.spans, k.head_dim, k.int8, seed);
  write_cache(c, *check::tiers().front(), 0xff, seed + 1);
  Rows rows;
  rows.spans = k.spans;
  rows.softcap = k.softcap;
  add_queries(rows, c, k.heads, seed + 2);
  for (int64_t chunk = c.begin / outpace::kAttentionChunk; chunk * outpace::kAttentionChunk < c.end; ++chunk)
    check_chunk(c, rows, chunk, tiles);
}

Tiles expected_tiles(int64_t num_rows, int64_t heads) {
  return num_rows * heads >= 8 ? Tiles::taken : Tiles::not_taken;
}

TEST(rows_and_heads) {
  for (const int64_t heads : {1, 3, 4, 7, 9}) {
    for (int64_t num_rows = 1; num_rows <= 17; ++num_rows) {
      const auto seed = static_cast<uint64_t>(100 * heads + num_rows);
      check_rows({neighbours(num_rows, 100, 0), 64, heads}, seed, expected_tiles(num_rows, heads));
    }
  }
}

TEST(head_sizes) {
  for (const int64_t head_dim : {16, 32, 48, 64, 72, 80, 96, 112, 128, 192, 240, 256}) {
    const auto seed = static_cast<uint64_t>(head_dim);
    check_rows({neighbours(5, 45 + head_dim % 23, 0), head_dim, 4, 20.0f}, seed, Tiles::taken);
    check_rows({neighbours(16, 128, 0), head_dim, 3}, seed + 1, Tiles::taken);
    // One block, of which an over-long tile would leave the cache's memory.
    check_rows({neighbours(3, 32, 0), head_dim, 3}, seed + 2, Tiles::taken);
  }
}

TEST(context_borders) {
  for (const int64_t end : {1,  2,  15, 16, 17,  31,  32,  33,  47,  48,  49,  63,  64,
                            65, 95, 96, 97, 111, 112, 113, 127, 128, 129, 140, 256, 300}) {
    const auto seed = static_cast<uint64_t>(end);
    check_rows({neighbours(16, end, 0), 32, 9}, seed, Tiles::either);
    check_rows({neighbours(11, end, 0), 48, 3, 30.0f}, seed + 1, Tiles::either);
  }
}

// Rows begin at different tokens of a tile, in different tiles and blocks; those before have left the
// request.
TEST(sliding_windows) {
  for (const int64_t window : {1, 5, 15, 16, 17, 31, 33, 60, 100, 128, 200}) {
    for (const int64_t end : {40, 64, 65, 127, 128, 129, 200, 300}) {
      const auto seed = static_cast<uint64_t>(1000 * window + end);
      check_rows({neighbours(16, end, window), 32, 4, end % 3 == 0 ? 10.0f : 0.0f}, seed, Tiles::either);
    }
  }
}

TEST(any_rows) {
  check::Random random{5};
  for (int i = 0; i < 60; ++i) {
    std::vector<Span> spans;
    for (int64_t n = random.between(1, 17); n > 0; --n) {
      const int64_t begin = random.between(128, 254);
      spans.push_back({begin, random.between(begin + 1, 256)});
    }
    const int64_t head_dim = 16 * random.between(1, 8), heads = random.between(1, 9);
    check_rows({spans, head_dim, heads}, random.bits(), Tiles::either);
  }
}

// Between the tokens that these rows see lie blocks that none of them sees.
TEST(rows_far_apart) {
  check_rows({{{0, 9}, {97, 128}}, 32, 8}, 1, Tiles::not_taken);
  check_rows({{{0, 9}, {33, 40}}, 32, 8}, 2, Tiles::taken);
}

TEST(half_floats) { check_rows({neighbours(16, 77, 0), 64, 3, 0.0f, false}, 1, Tiles::not_taken); }

// The last block is a copy for some rows, as where drafts branch; ids beyond a row's last block are -1.
TEST(branches) {
  for (const bool branch : {false, true}) {
    for (const bool int8 : {true, false}) {
      Rows rows;
      rows.spans = neighbours(12, 90, 0);
      rows.spans[3].end = 64;
      Context c = context_of(rows.spans, 64, int8, 3);
      write_cache(c, *check::tiers().front(), 0xff, 4);
      add_queries(rows, c, 3, 5);
      rows.tables.assign(rows.spans.size(), c.table);
      rows.tables[3][2] = -1;
      if (branch) {
        int32_t spare = 0;
        while (std::count(c.table.begin(), c.table.end(), spare) > 0) ++spare;
        uint8_t* copy = c.cache.data() + spare * c.stride() + c.layout.bytes;
        outpace::copy_slots(c.layout, c.block(64), copy, 0, 26);
        // Another token at the place of the last one.
        c.keys[0] = 2.0f;
        check::tiers().front()->write_kv(c.layout, copy, 18, c.keys.data(), c.values.data());
        for (const size_t row : {5, 11}) rows.tables[row][2] = spare;
      }
      check_chunk(c, rows, 0, int8 && !branch ? Tiles::taken : Tiles::not_taken);
    }
  }
}

}  // namespace

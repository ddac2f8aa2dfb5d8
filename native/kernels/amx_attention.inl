// Attention of many rows over int8 keys and values with tiles: 16 (row, head) pairs at a time.
//
// A dot-product line of keys (16 tokens x 4 channels) or of values (16 channels x 4 tokens) is a row of a B
// tile as it lies in the cache; the planes of the queries, and later of the softmax weights, are the A tiles.
// All floats are computed by the functions of attention_int8.inl, so the bits are those of `attend`.
//
// Per 16 pairs and 128 tokens, head_dim d = 64. Bytes: 16 kB of keys and values, 2 kB of queries, 8 kB of
// scores, 4 kB of weights, all in the first-level cache; for d = 128, where that is not so, keys and values
// take turns. Cycles, counted (measured as a whole: ARCHITECTURE.md):
//
//   16 d / 64 tile products of scores       256   tile unit, 16 cycles each
//   16 d / 64 tile products of values       256   tile unit
//   load 32 d / 64 tiles                    256   load ports, 8 cycles each
//   store 16 + d / 8 tiles of sums          384   store port, 16 cycles each
//   sums to scores and outputs: 192 x 5     480   vector ports, two a cycle
//   softmax, integer weights: 128 x 47     3000   vector ports
//   copy the values: 2 d lines              128   load and store ports, once for all pairs
//
// The softmax is what limits: `attend` takes as long for it, and 8192 cycles for the products at one a cycle.
// Not done: the products of the next pairs are not started before the softmax of these, so the tile unit
// waits.

namespace outpace::OUTPACE_TIER {

// Pairs from which tiles are used. With 8 a tile product takes 8 cycles: 256 a chunk at d = 64, 384 for loads
// and stores, and what does not shrink with the pairs, 128 for the copied values and the tile configuration,
// taken for 300; VNNI takes 2048 to 4096. With fewer pairs tiles may win still, but less than a wrong guess
// would lose.
constexpr int64_t kTilesFromPairs = 8;

constexpr int64_t kTileDepth = 64;  // channels or tokens of an A tile

// The rows of a call and the tokens that any of them sees.
struct ChunkOfRows {
  const AttentionTask* tasks;
  int64_t num_pairs, begin, end;  // tokens; begin is the first of a tile
  int32_t blocks[kBlocksPerChunk];

  const uint8_t* block(int64_t token) const {
    return tasks->blocks + blocks[token % kAttentionChunk / kBlockTokens] * tasks->block_stride;
  }
  int64_t num_tiles() const { return (end - begin + kTileTokens - 1) / kTileTokens; }
  int64_t depth() const { return (tasks->layout->head_dim + kTileDepth - 1) / kTileDepth * kTileDepth; }
};

// False if rows disagree about a block, as they do where drafts branch, or no row sees one in the middle.
inline bool find_blocks(ChunkOfRows& chunk, int64_t num_tasks) {
  chunk.begin = chunk.tasks->begin;
  chunk.end = chunk.tasks->end;
  for (int32_t& block : chunk.blocks) block = -1;
  for (int64_t i = 0; i < num_tasks; ++i) {
    const AttentionTask& t = chunk.tasks[i];
    if (t.begin < chunk.begin) chunk.begin = t.begin;
    if (t.end > chunk.end) chunk.end = t.end;
    for (int64_t at = t.begin / kBlockTokens; at <= (t.end - 1) / kBlockTokens; ++at) {
      int32_t& block = chunk.blocks[at % kBlocksPerChunk];
      if (block < 0) block = t.block_table[at];
      if (block != t.block_table[at]) return false;
    }
  }
  chunk.begin = chunk.begin / kTileTokens * kTileTokens;
  for (int64_t at = chunk.begin / kBlockTokens; at <= (chunk.end - 1) / kBlockTokens; ++at) {
    if (chunk.blocks[at % kBlocksPerChunk] < 0) return false;
  }
  return true;
}

// 16 pairs or fewer with their softmax weights, on their way to the values. What lies in the lines of pairs
// from `count` on counts for nothing.
struct Pairs {
  int64_t count;
  struct {
    const AttentionTask* row;
    int64_t head;
  } of[kTileRows];
  IntegerWeights weights[kTileRows];
  float weight_unit[kTileRows];
  Factors factors[kTileRows];
};

// What becomes their weights. Positions are those of tokens, counted from the chunk's begin.
struct Scores {
  alignas(64) int8_t query_high[kTileRows * kMaxHeadDim], query_low[kTileRows * kMaxHeadDim];  // [][depth]
  alignas(64) float scores[kTileRows][kAttentionChunk];
  alignas(64) float largest[kTileRows], weight_sum[kTileRows];
};

// The value scales of the row that is at hand: pairs come row by row, and rows that see the same tokens share
// them.
struct RowScales {
  int64_t begin = -1, end = -1;
  alignas(64) float scales[kAttentionChunk];
  float unit;
};

// Tiles 0, 1: the high and the low plane of the pairs; 2, 3: bytes of the cache; 4, 5 and 6, 7: their sums.
inline TileConfig attention_config(int64_t pairs) {
  TileConfig config;
  for (int i = 0; i < 2; ++i) {
    config.set(i, pairs, kTileDepth);
    config.set(2 + i, kTileDepth / 4, 64);
    config.set(4 + i, pairs, 64);
    config.set(6 + i, pairs, 64);
  }
  return config;
}

// Two planes of the pairs, `stride` bytes from one pair to the next.
struct PairPlanes {
  const int8_t *high, *low;
  int64_t stride;
};

// Bytes of the cache as B tiles: lines `stride` bytes apart, tiles of one sum `step` bytes apart.
struct CacheBytes {
  const uint8_t* first;
  int64_t stride, step;
};

template <int I>
OUTPACE_INLINE void add_products(const CacheBytes& bytes, int64_t step) {
  load_tile<2 + I>(bytes.first + step * bytes.step, bytes.stride);
  dot_tiles_unsigned<4 + 2 * I, 0, 2 + I>();
  dot_tiles_unsigned<5 + 2 * I, 1, 2 + I>();
}

// The planes of all pairs times N x 16 columns of bytes. sums: [N][high, low][pair][16]
template <int N>
OUTPACE_INLINE void multiply_planes(const PairPlanes& planes, const CacheBytes (&bytes)[N], int64_t steps,
                                    int32_t (&sums)[N][2][kTileRows * 16]) {
  zero_tile<4>();
  zero_tile<5>();
  if constexpr (N == 2) zero_tile<6>();
  if constexpr (N == 2) zero_tile<7>();
  for (int64_t step = 0; step < steps; ++step) {
    load_tile<0>(planes.high + step * kTileDepth, planes.stride);
    load_tile<1>(planes.low + step * kTileDepth, planes.stride);
    add_products<0>(bytes[0], step);
    if constexpr (N == 2) add_products<1>(bytes[1], step);
  }
  store_tile<4>(sums[0][0], 64);
  store_tile<5>(sums[0][1], 64);
  if constexpr (N == 2) store_tile<6>(sums[1][0], 64);
  if constexpr (N == 2) store_tile<7>(sums[1][1], 64);
}

// Beside one another and padded with zeros to whole tiles. What the last tile of keys then reads beyond its
// lines lies in the same block, as at most 12 lines can be missing, and is multiplied by these zeros.
inline void gather_queries(const ChunkOfRows& chunk, const Pairs& pairs, Scores& s) {
  const int64_t head_dim = chunk.tasks->layout->head_dim, depth = chunk.depth();
  for (int64_t p = 0; p < pairs.count; ++p) {
    const AttentionTask& t = *pairs.of[p].row;
    const int64_t from = pairs.of[p].head * head_dim;
    int64_t c = 0;
    // A tile's load of 64 bytes does not wait for a store of as many.
    for (; c + 64 <= head_dim; c += 64) {
      _mm512_storeu_si512(s.query_high + p * depth + c, _mm512_loadu_si512(t.query_high + from + c));
      _mm512_storeu_si512(s.query_low + p * depth + c, _mm512_loadu_si512(t.query_low + from + c));
    }
    for (; c < head_dim; c += 16) {
      std::memcpy(s.query_high + p * depth + c, t.query_high + from + c, 16);
      std::memcpy(s.query_low + p * depth + c, t.query_low + from + c, 16);
    }
    for (; c < depth; c += 16) {
      std::memset(s.query_high + p * depth + c, 0, 16);
      std::memset(s.query_low + p * depth + c, 0, 16);
    }
  }
}

// As scores_int8: the scores of N tiles of 16 tokens from `token` on, for all pairs.
template <int N>
void score_tokens(const ChunkOfRows& chunk, const Pairs& pairs, Scores& s, int64_t token, FetchAhead& ahead) {
  alignas(64) int32_t sums[N][2][kTileRows * 16];
  CacheBytes keys[N];
  const float* scales[N];
  const KVLayout& kv = *chunk.tasks->layout;
  for (int i = 0; i < N; ++i) {
    const int64_t first = token + i * kTileTokens, half = first % kBlockTokens / kTileTokens;
    const uint8_t* block = chunk.block(first);
    keys[i] = {block + half * kTileTokens * kv.head_dim, 64, 16 * kTileDepth};
    scales[i] = reinterpret_cast<const float*>(block + kv.key_scale_offset) + half * kTileTokens;
    ahead.after(1);
  }
  const int64_t depth = chunk.depth();
  multiply_planes<N>({s.query_high, s.query_low, depth}, keys, depth / kTileDepth, sums);
  for (int64_t p = 0; p < pairs.count; ++p) {
    const AttentionTask& t = *pairs.of[p].row;
    const int64_t head = pairs.of[p].head;
    for (int i = 0; i < N; ++i) {
      const Ints total =
          planes_total(load_ints(sums[i][0] + p * 16), load_ints(sums[i][1] + p * 16), t.query_sum[head]);
      store(s.scores[p] + token - chunk.begin + i * kTileTokens,
            mul(to_floats(total), mul(load_floats(scales[i]), set_floats(t.query_unit[head]))));
    }
  }
}

// Tiles before a row's own first one add zeros to what `weigh` sums, lane by lane: the same bits.
inline void set_row(const ChunkOfRows& chunk, const AttentionTask& t, RowScales& at) {
  const int64_t tile_begin = t.begin / kTileTokens * kTileTokens;
  for (int64_t i = 0; i < tile_begin - chunk.begin; ++i) at.scales[i] = 0.0f;
  at.unit = scale_values(t, tile_begin, at.scales + tile_begin - chunk.begin);
  at.begin = t.begin;
  at.end = t.end;
}

// As save_sums, for all pairs at once.
inline void save_pair_sums(Pairs& pairs, Scores& s) {
  alignas(64) float max[kTileRows] = {}, sum[kTileRows] = {}, before[kTileRows], now[kTileRows];
  const auto row = [&](int64_t p) -> const AttentionTask& { return *pairs.of[p].row; };
  for (int64_t p = 0; p < pairs.count; ++p) {
    if (!row(p).merge) continue;
    max[p] = row(p).max[pairs.of[p].head];
    sum[p] = row(p).sum[pairs.of[p].head];
  }
  for (int64_t p = pairs.count; p < kTileRows; ++p) s.largest[p] = s.weight_sum[p] = 0.0f;
  const F16x largest = load16(s.largest), top = max16(largest, load16(max));
  const F16x keep = exp16(load16(max) - top), add = exp16(largest - top);
  const F16x total = load16(sum) * keep + load16(s.weight_sum) * add;
  store16(max, top);
  store16(sum, total);
  store16(before, keep);
  store16(now, add);
  for (int64_t p = 0; p < pairs.count; ++p) {
    const bool merge = row(p).merge;
    const int64_t head = pairs.of[p].head;
    row(p).max[head] = merge ? max[p] : s.largest[p];
    row(p).sum[head] = merge ? sum[p] : s.weight_sum[p];
    pairs.factors[p] = {before[p], now[p]};
  }
}

// Scores to integer weights: 0 for tokens that a row does not see, up to the end of the last tile.
inline void weigh_scores(const ChunkOfRows& chunk, Pairs& pairs, Scores& s, RowScales& at) {
  const int64_t padded = chunk.num_tiles() * kTileTokens, whole = (padded + kTileDepth - 1) / kTileDepth;
  for (int64_t p = 0; p < pairs.count; ++p) {
    const AttentionTask& t = *pairs.of[p].row;
    const int64_t last = t.end - chunk.begin;
    s.largest[p] = largest_score(s.scores[p], t.begin - chunk.begin, last, t.softcap);
  }
  for (int64_t p = 0; p < pairs.count; ++p) {
    const AttentionTask& t = *pairs.of[p].row;
    const int64_t last = t.end - chunk.begin;
    if (at.begin != t.begin || at.end != t.end) set_row(chunk, t, at);
    IntegerWeights& weights = pairs.weights[p];
    s.weight_sum[p] = weigh(s.scores[p], at.scales, last, s.largest[p], weights);
    for (int64_t i = (last + 15) / 16 * 16; i < whole * kTileDepth; i += 16) {
      std::memset(weights.high + i, 0, 16);
      std::memset(weights.low + i, 0, 16);
    }
    pairs.weight_unit[p] = at.unit;
  }
  save_pair_sums(pairs, s);
}

// As values_int8: N groups of 16 channels from `channel` on, for all pairs. values: [tokens / 4][head_dim][4]
template <int N>
void sum_values(const ChunkOfRows& chunk, const Pairs& pairs, const uint8_t* values, int64_t channel,
                FetchAhead& ahead) {
  alignas(64) int32_t sums[N][2][kTileRows * 16];
  CacheBytes bytes[N];
  const int64_t head_dim = chunk.tasks->layout->head_dim,
                steps = (chunk.num_tiles() * kTileTokens + kTileDepth - 1) / kTileDepth;
  for (int i = 0; i < N; ++i) {
    bytes[i] = {values + 4 * (channel + 16 * i), 4 * head_dim, kTileDepth * head_dim};
    ahead.after(1);
  }
  multiply_planes<N>({pairs.weights[0].high, pairs.weights[0].low, sizeof(IntegerWeights)}, bytes, steps,
                     sums);
  for (int64_t p = 0; p < pairs.count; ++p) {
    const AttentionTask& t = *pairs.of[p].row;
    float* out = t.out + pairs.of[p].head * head_dim + channel;
    for (int i = 0; i < N; ++i) {
      const Ints total =
          planes_total(load_ints(sums[i][0] + p * 16), load_ints(sums[i][1] + p * 16), pairs.weights[p].sum);
      save_values(t, out + 16 * i, pairs.factors[p], mul(to_floats(total), set_floats(pairs.weight_unit[p])));
    }
  }
}

// The chunk's values in one piece, so that a tile takes 64 tokens and not the 32 of a block; zeros fill the
// last tile. values: [tokens / 4][head_dim][4]
inline void gather_values(const ChunkOfRows& chunk, uint8_t* values) {
  const KVLayout& kv = *chunk.tasks->layout;
  const int64_t bytes = kTileTokens * kv.head_dim, tiles = chunk.num_tiles();
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t token = chunk.begin + i * kTileTokens;
    std::memcpy(values + i * bytes, chunk.block(token) + kv.value_offset + token % kBlockTokens * kv.head_dim,
                static_cast<size_t>(bytes));
  }
  constexpr int64_t kTilesDeep = kTileDepth / kTileTokens;
  const int64_t missing = (kTilesDeep - tiles % kTilesDeep) % kTilesDeep;
  std::memset(values + tiles * bytes, 0, static_cast<size_t>(missing * bytes));
}

inline void weigh_pairs(const ChunkOfRows& chunk, Pairs& pairs, Scores& s, RowScales& at, FetchAhead& ahead) {
  gather_queries(chunk, pairs, s);
  const int64_t end = chunk.begin + chunk.num_tiles() * kTileTokens;
  int64_t token = chunk.begin;
  for (; token + 2 * kTileTokens <= end; token += 2 * kTileTokens)
    score_tokens<2>(chunk, pairs, s, token, ahead);
  if (token < end) score_tokens<1>(chunk, pairs, s, token, ahead);
  weigh_scores(chunk, pairs, s, at);
}

inline void sum_pairs(const ChunkOfRows& chunk, const Pairs& pairs, const uint8_t* values,
                      FetchAhead& ahead) {
  const int64_t head_dim = chunk.tasks->layout->head_dim;
  int64_t channel = 0;
  for (; channel + 32 <= head_dim; channel += 32) sum_values<2>(chunk, pairs, values, channel, ahead);
  if (channel < head_dim) sum_values<1>(chunk, pairs, values, channel, ahead);
}

// Pairs in even blocks, so that one tile configuration serves them all. Keys for some blocks, then values for
// them: beside each other, with all that is computed from them, they do not fit the first level (61 kB for
// 128 channels).
void attend_rows_tiles(const AttentionTask* tasks, int64_t num_tasks) {
  constexpr int64_t kBlocksAtOnce = 8;
  ChunkOfRows chunk;
  chunk.tasks = tasks;
  chunk.num_pairs = num_tasks * tasks->num_heads;
  if (!tasks->layout->int8 || chunk.num_pairs < kTilesFromPairs || !find_blocks(chunk, num_tasks)) {
    return attend_rows(tasks, num_tasks);
  }
  alignas(64) uint8_t values[kAttentionChunk * kMaxHeadDim];
  Pairs pairs[kBlocksAtOnce];
  Scores scores;
  RowScales at;
  const RowBlocks blocks(chunk.num_pairs);
  FetchAhead ahead(*chunk.tasks, blocks.count * (chunk.num_tiles() + chunk.tasks->layout->head_dim / 16));
  configure_tiles(attention_config(blocks.height));
  const AttentionTask* row = tasks;
  int64_t head = 0, left = chunk.num_pairs;
  bool gathered = false;
  while (left > 0) {
    int64_t count = 0;
    for (; count < kBlocksAtOnce && left > 0; ++count) {
      Pairs& block = pairs[count];
      block.count = left < blocks.height ? left : blocks.height;
      left -= block.count;
      for (int64_t p = 0; p < block.count; ++p) {
        block.of[p] = {row, head};
        if (++head == row->num_heads) ++row, head = 0;
      }
      weigh_pairs(chunk, block, scores, at, ahead);
    }
    if (!gathered) gather_values(chunk, values);
    gathered = true;
    for (int64_t i = 0; i < count; ++i) sum_pairs(chunk, pairs[i], values, ahead);
  }
  release_tiles();
}

}  // namespace outpace::OUTPACE_TIER

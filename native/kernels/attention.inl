// Attention of the query heads that share a KV head, over one chunk of the paged cache.
//
// K and V are read once for the whole group of heads. Per token and KV head of d channels, int8 reads
// 2d + 8 bytes, and every query head needs d / 32 dot products (the query has 15 bits in two planes)
// and d / 16 multiply-adds. Tokens are taken in their order, so a result depends on nothing but the
// query and the tokens it sees.

namespace outpace::OUTPACE_TIER {

constexpr int kTileTokens = 16;
constexpr float kQuerySteps = 127.0f * 128.0f;

OUTPACE_INLINE const uint8_t* block_of(const AttentionTask& t, int64_t token) {
  return t.blocks + static_cast<int64_t>(t.block_table[token / kBlockTokens]) * t.block_stride;
}

// A query head as two planes of int8: 128 x high + low, in units of `unit`.
struct Query {
  int8_t high[kMaxHeadDim], low[kMaxHeadDim];
  float unit;
  int32_t sum;
};

OUTPACE_INLINE void quantize_query(const float* x, int64_t n, Query& query) {
  const float largest = largest_magnitude(x, n);
  const float inverse = inverse_step(kQuerySteps, largest);
  query.unit = largest / kQuerySteps;
  query.sum = 0;
  for (int64_t i = 0; i < n; i += 16) {
    const I16x v = round16(load16(x + i) * inverse);
    narrow16(query.high + i, v >> 7);
    narrow16(query.low + i, v & 127);
    query.sum += fold_ints(v);
  }
}

// Scores of 16 tokens for H heads. scores: [H] rows of `stride`
template <int H>
OUTPACE_INLINE void tile_scores_int8(const KVLayout& kv, const uint8_t* block, int half, const Query* query,
                                     float* scores, int64_t stride) {
  Ints high[H], low[H];
  for (int h = 0; h < H; ++h) high[h] = low[h] = zero_ints();
  const uint8_t* keys = block + half * kTileTokens * kv.head_dim;
  for (int64_t quad = 0; quad < kv.head_dim / 4; ++quad) {
    const Lines line = load_lines(keys + 64 * quad);
    for (int h = 0; h < H; ++h) {
      high[h] = dot<false>(high[h], line, query[h].high + 4 * quad);
      low[h] = dot<false>(low[h], line, query[h].low + 4 * quad);
    }
  }
  const auto* key_scales = reinterpret_cast<const float*>(block + kv.key_scale_offset);
  const Floats key_scale = load_floats(key_scales + half * kTileTokens);
  for (int h = 0; h < H; ++h) {
    Ints total = add(shift_left<7>(high[h]), low[h]);
    if constexpr (kByteZeroPoint != 0) total = sub(total, shift_left<7>(set_ints(query[h].sum)));
    store(scores + h * stride, mul(to_floats(total), mul(key_scale, set_floats(query[h].unit))));
  }
}

template <int H>
OUTPACE_INLINE void tile_scores_f16(const KVLayout& kv, const uint8_t* block, int half, const float* query,
                                    float* scores, int64_t stride) {
  Floats acc[H];
  for (int h = 0; h < H; ++h) acc[h] = set_floats(0.0f);
  const uint8_t* keys = block + half * kTileTokens * kv.head_dim * 2;
  for (int64_t c = 0; c < kv.head_dim; ++c) {
    const Floats k = load_halves(keys + 2 * kTileTokens * c);
    for (int h = 0; h < H; ++h) acc[h] = add(acc[h], mul(k, set_floats(query[h * kv.head_dim + c])));
  }
  for (int h = 0; h < H; ++h) store(scores + h * stride, acc[h]);
}

// out[h][16 s ..] += weights[h][token] x value[token][16 s ..] over tokens [first, last) of one block.
template <int H, int S>
OUTPACE_INLINE void add_values(const KVLayout& kv, const uint8_t* block, int64_t first, int64_t last,
                               int64_t channel, const float* weights, int64_t stride, float* out) {
  Floats acc[H][S];
  for (int h = 0; h < H; ++h) {
    for (int s = 0; s < S; ++s) acc[h][s] = load_floats(out + h * kv.head_dim + channel + 16 * s);
  }
  const uint8_t* values = block + kv.value_offset;
  for (int64_t t = first; t < last; ++t) {
    Floats v[S];
    for (int s = 0; s < S; ++s) {
      const int64_t at = t * kv.head_dim + channel + 16 * s;
      v[s] = kv.int8 ? to_floats(load_bytes(reinterpret_cast<const int8_t*>(values + at)))
                     : load_halves(values + 2 * at);
    }
    for (int h = 0; h < H; ++h) {
      const Floats w = set_floats(weights[h * stride + t]);
      for (int s = 0; s < S; ++s) acc[h][s] = add(acc[h][s], mul(w, v[s]));
    }
  }
  for (int h = 0; h < H; ++h) {
    for (int s = 0; s < S; ++s) store(out + h * kv.head_dim + channel + 16 * s, acc[h][s]);
  }
}

template <int H>
OUTPACE_INLINE void block_values(const KVLayout& kv, const uint8_t* block, int64_t first, int64_t last,
                                 const float* weights, int64_t stride, float* out) {
  int64_t channel = 0;
  for (; channel + 64 <= kv.head_dim; channel += 64) {
    add_values<H, 4>(kv, block, first, last, channel, weights, stride, out);
  }
  for (; channel < kv.head_dim; channel += 16) {
    add_values<H, 1>(kv, block, first, last, channel, weights, stride, out);
  }
}

// Scores to weights: subtracts the largest and exponentiates; lanes outside [begin, end) become 0.
// scores: [(end - tile_begin) padded to 16], the first belonging to token tile_begin.
OUTPACE_INLINE void softmax_chunk(float* scores, int64_t first, int64_t last, float cap, float& max,
                                  float& sum) {
  const int64_t padded = (last + 15) / 16 * 16;
  for (int64_t i = 0; i < first; ++i) scores[i] = -__builtin_inff();
  for (int64_t i = last; i < padded; ++i) scores[i] = -__builtin_inff();
  if (cap > 0.0f) softcap_row(scores + first, cap, last - first);
  F16x largest = F16x{} - __builtin_inff();
  for (int64_t i = 0; i < padded; i += 16) largest = max16(largest, load16(scores + i));
  max = fold_max(largest);
  F16x total = {};
  for (int64_t i = 0; i < padded; i += 16) {
    const F16x s = load16(scores + i);
    const F16x e = exp16(s - max);
    const F16x w = s > F16x{} - __builtin_inff() ? e : F16x{};
    store16(scores + i, w);
    total = total + w;
  }
  sum = fold_sum(total);
}

// Sub-groups of at most 4 heads keep their accumulators in registers.
template <int H>
void attend_heads(const AttentionTask& t, int64_t head) {
  const KVLayout& kv = *t.layout;
  const int64_t tile_begin = t.begin / kTileTokens * kTileTokens;
  alignas(64) float scores[H][kAttentionChunk + kTileTokens];
  constexpr int64_t stride = kAttentionChunk + kTileTokens;
  const float* query = t.query + head * kv.head_dim;
  Query quantized[H];
  if (kv.int8) {
    for (int h = 0; h < H; ++h) quantize_query(query + h * kv.head_dim, kv.head_dim, quantized[h]);
  }
  for (int64_t token = tile_begin; token < t.end; token += kTileTokens) {
    const uint8_t* block = block_of(t, token);
    const int half = static_cast<int>(token % kBlockTokens / kTileTokens);
    float* out = &scores[0][token - tile_begin];
    if (kv.int8) {
      tile_scores_int8<H>(kv, block, half, quantized, out, stride);
    } else {
      tile_scores_f16<H>(kv, block, half, query, out, stride);
    }
  }
  for (int h = 0; h < H; ++h) {
    softmax_chunk(scores[h], t.begin - tile_begin, t.end - tile_begin, t.softcap, t.max[head + h],
                  t.sum[head + h]);
  }
  float* out = t.out + head * kv.head_dim;
  std::memset(out, 0, static_cast<size_t>(H * kv.head_dim) * sizeof(float));
  for (int64_t token = t.begin; token < t.end;) {
    const int64_t start = token / kBlockTokens * kBlockTokens;
    const int64_t last = start + kBlockTokens < t.end ? start + kBlockTokens : t.end;
    const uint8_t* block = block_of(t, token);
    alignas(64) float weights[H][kBlockTokens];
    const auto* value_scales = reinterpret_cast<const float*>(block + kv.value_scale_offset);
    for (int h = 0; h < H; ++h) {
      for (int64_t i = token; i < last; ++i) {
        const float w = scores[h][i - tile_begin];
        weights[h][i - start] = kv.int8 ? w * value_scales[i - start] : w;
      }
    }
    block_values<H>(kv, block, token - start, last - start, &weights[0][0], kBlockTokens, out);
    token = last;
  }
}

void attend(const AttentionTask& t) {
  int64_t head = 0;
  for (; t.num_heads - head >= 4; head += 4) attend_heads<4>(t, head);
  if (t.num_heads - head == 3) return attend_heads<3>(t, head);
  if (t.num_heads - head == 2) return attend_heads<2>(t, head);
  if (t.num_heads - head == 1) return attend_heads<1>(t, head);
}

void merge_attention(float* acc, float* acc_max, float* acc_sum, const float* out, float max, float sum,
                     int64_t n) {
  const float top = max > *acc_max ? max : *acc_max;
  const F16x old_and_new = {*acc_max - top, max - top};
  const F16x factors = exp16(old_and_new);
  const float a = factors[0], b = factors[1];
  for (int64_t i = 0; i < n; i += 16) store16(acc + i, load16(acc + i) * a + load16(out + i) * b);
  *acc_sum = *acc_sum * a + sum * b;
  *acc_max = top;
}

OUTPACE_INLINE void write_key_int8(const KVLayout& kv, uint8_t* block, int64_t slot, const float* k) {
  const float largest = largest_magnitude(k, kv.head_dim);
  const float inverse = inverse_step(127.0f, largest);
  uint8_t* keys = block + slot / kTileTokens * kTileTokens * kv.head_dim + slot % kTileTokens * 4;
  for (int64_t c = 0; c < kv.head_dim; c += 16) {
    int8_t q[16];
    narrow16(q, round16(load16(k + c) * inverse) - 128);  // -128 and +128 are the same byte
    for (int i = 0; i < 4; ++i) std::memcpy(keys + (c / 4 + i) * 64, q + 4 * i, 4);
  }
  reinterpret_cast<float*>(block + kv.key_scale_offset)[slot] = largest / 127.0f;
}

void write_kv(const KVLayout& kv, uint8_t* block, int64_t slot, const float* k, const float* v) {
  if (kv.int8) {
    write_key_int8(kv, block, slot, k);
    const float largest = largest_magnitude(v, kv.head_dim);
    const float inverse = inverse_step(127.0f, largest);
    auto* values = reinterpret_cast<int8_t*>(block + kv.value_offset + slot * kv.head_dim);
    for (int64_t c = 0; c < kv.head_dim; c += 16) narrow16(values + c, round16(load16(v + c) * inverse));
    reinterpret_cast<float*>(block + kv.value_scale_offset)[slot] = largest / 127.0f;
    return;
  }
  auto* keys = reinterpret_cast<uint16_t*>(block) + slot / kTileTokens * kTileTokens * kv.head_dim;
  auto* values = reinterpret_cast<uint16_t*>(block + kv.value_offset) + slot * kv.head_dim;
  for (int64_t c = 0; c < kv.head_dim; ++c) {
    keys[c * kTileTokens + slot % kTileTokens] = f32_to_f16(k[c]);
    values[c] = f32_to_f16(v[c]);
  }
}

}  // namespace outpace::OUTPACE_TIER

// From the file's rows of blocks (GGUF) to strips, and back to floats for one row.
//
// Bytes: those of the file once in, as many out. Packing takes 0.15 (Q4_1, Q4_K) to 1.0 cycles (Q6_K) a
// weight
// (`rows_bench`, Zen 4), less than reading the file; dequantize_row 3 to 5, for one row of the embedding a
// token.

namespace outpace::OUTPACE_TIER {

OUTPACE_INLINE uint16_t load_u16(const uint8_t* p) {
  uint16_t x;
  std::memcpy(&x, p, 2);
  return x;
}
OUTPACE_INLINE uint32_t load_u32(const uint8_t* p) {
  uint32_t x;
  std::memcpy(&x, p, 4);
  return x;
}
OUTPACE_INLINE void store_u16(uint8_t* p, uint16_t x) { std::memcpy(p, &x, 2); }
OUTPACE_INLINE void store_u32(uint8_t* p, uint32_t x) { std::memcpy(p, &x, 4); }

// Bytes of one block in the file, and where its parts lie (ggml-common.h).
constexpr int file_block_bytes(Format f) {
  switch (f) {
    case Format::q4_0:
      return 18;  // d, nibbles[16]
    case Format::q4_1:
      return 20;  // d, m, nibbles[16]
    case Format::q5_0:
      return 22;  // d, high[4], nibbles[16]
    case Format::q5_1:
      return 24;  // d, m, high[4], nibbles[16]
    case Format::q8_0:
      return 34;  // d, i8[32]
    case Format::q4_k:
      return 144;  // d, dmin, scales[12], nibbles[128]
    case Format::q5_k:
      return 176;  // d, dmin, scales[12], high[32], nibbles[128]
    case Format::q6_k:
      return 210;  // low[128], high[64], scales[16], d
    default:
      return bits(f) / 8;
  }
}

// A block's quants as bytes, one a weight, biased by the format's zero point. q: [32] or [256]
template <Format F>
OUTPACE_INLINE void unpack_block(const uint8_t* block, uint8_t* q) {
  if constexpr (F == Format::q8_0) {
    for (int i = 0; i < 32; ++i) q[i] = block[2 + i] ^ 0x80;
  } else if constexpr (F == Format::q6_k) {
    for (int half = 0; half < 2; ++half) {
      const uint8_t* low = block + 64 * half;
      const uint8_t* high = block + 128 + 32 * half;
      uint8_t* out = q + 128 * half;
      for (int i = 0; i < 32; ++i) {
        out[i] = static_cast<uint8_t>((low[i] & 15) | (high[i] & 3) << 4);
        out[i + 32] = static_cast<uint8_t>((low[i + 32] & 15) | (high[i] >> 2 & 3) << 4);
        out[i + 64] = static_cast<uint8_t>(low[i] >> 4 | (high[i] >> 4 & 3) << 4);
        out[i + 96] = static_cast<uint8_t>(low[i + 32] >> 4 | (high[i] >> 6 & 3) << 4);
      }
    }
  } else if constexpr (is_k(F)) {
    const uint8_t* nibbles = block + (F == Format::q5_k ? 48 : 16);
    for (int pair = 0; pair < 4; ++pair) {
      for (int i = 0; i < 32; ++i) {
        uint8_t low = nibbles[32 * pair + i] & 15, high = nibbles[32 * pair + i] >> 4;
        if constexpr (F == Format::q5_k) {
          low |= static_cast<uint8_t>((block[16 + i] >> (2 * pair) & 1) << 4);
          high |= static_cast<uint8_t>((block[16 + i] >> (2 * pair + 1) & 1) << 4);
        }
        q[64 * pair + i] = low;
        q[64 * pair + 32 + i] = high;
      }
    }
  } else {
    constexpr int head = has_min(F) ? 4 : 2;
    const uint8_t* nibbles = block + head + (bits(F) == 5 ? 4 : 0);
    for (int i = 0; i < 16; ++i) {
      q[i] = nibbles[i] & 15;
      q[i + 16] = nibbles[i] >> 4;
    }
    if constexpr (bits(F) == 5) {
      const uint32_t high = load_u32(block + head);
      for (int i = 0; i < 32; ++i) q[i] |= static_cast<uint8_t>((high >> i & 1) << 4);
    }
  }
}

// One output's 32 quants into its lanes of a group. q: [32]
template <Format F>
OUTPACE_INLINE void pack_group(const uint8_t* q, int output, uint8_t* quants, uint8_t* high) {
  if constexpr (bits(F) == 8) {
    for (int line = 0; line < 8; ++line) std::memcpy(quants + 64 * line + 4 * output, q + 4 * line, 4);
    return;
  }
  uint8_t nibbles[16];
  for (int i = 0; i < 16; ++i) nibbles[i] = static_cast<uint8_t>((q[i] & 15) | (q[i + 16] & 15) << 4);
  for (int line = 0; line < 4; ++line) std::memcpy(quants + 64 * line + 4 * output, nibbles + 4 * line, 4);
  if constexpr (bits(F) == 5) {
    for (int line = 0; line < 8; ++line) {
      int mask = 0;
      for (int i = 0; i < 4; ++i) mask |= (q[4 * line + i] >> 4 & 1) << i;
      high[8 * line + output / 2] |= static_cast<uint8_t>(mask << 4 * (output % 2));
    }
  }
  if constexpr (bits(F) == 6) {
    for (int half = 0; half < 2; ++half) {
      for (int i = 0; i < 4; ++i) {
        int fields = 0;
        for (int f = 0; f < 4; ++f) fields |= (q[16 * half + 4 * f + i] >> 4) << (2 * f);
        high[64 * half + 4 * output + i] = static_cast<uint8_t>(fields);
      }
    }
  }
}

template <Format F>
OUTPACE_INLINE void pack_scales(const uint8_t* block, int output, uint8_t* scales) {
  if constexpr (F == Format::q6_k) {
    for (int g = 0; g < 16; ++g) scales[16 * g + output] = block[192 + g];
    store_u16(scales + 256 + 2 * output, load_u16(block + 208));
  } else if constexpr (is_k(F)) {
    for (int word = 0; word < 3; ++word) {
      store_u32(scales + 64 * word + 4 * output, load_u32(block + 4 + 4 * word));
    }
    store_u16(scales + 192 + 2 * output, load_u16(block));
    store_u16(scales + 224 + 2 * output, load_u16(block + 2));
  } else {
    store_u16(scales + 2 * output, load_u16(block));
    if constexpr (has_min(F)) store_u16(scales + 32 + 2 * output, load_u16(block + 2));
  }
}

template <Format F>
void pack_strip_of(const TileMatrix& m, const uint8_t* const rows[kStrip], uint8_t* strip) {
  std::memset(strip, 0, static_cast<size_t>(m.strip_bytes));
  if constexpr (is_float(F)) {
    constexpr int size = bits(F) / 8;
    for (int o = 0; o < kStrip; ++o) {
      if (rows[o] == nullptr) continue;
      for (int64_t k = 0; k < m.columns; ++k) {
        std::memcpy(strip + (k * kStrip + o) * size, rows[o] + k * size, size);
      }
    }
  } else {
    constexpr int block_columns = cell_columns(F);
    uint8_t q[block_columns];
    for (int64_t b = 0; b < m.columns / block_columns; ++b) {
      for (int o = 0; o < kStrip; ++o) {
        if (rows[o] == nullptr) continue;
        const uint8_t* block = rows[o] + b * file_block_bytes(F);
        unpack_block<F>(block, q);
        uint8_t* cell = strip + b * cell_bytes(F);
        for (int g = 0; g < block_columns / kGroup; ++g) {
          pack_group<F>(q + kGroup * g, o, cell + g * quant_bytes(F),
                        cell + high_offset(F) + g * high_bytes(F));
        }
        pack_scales<F>(block, o, cell + scale_offset(F));
      }
    }
  }
}

// The quants of one output of a strip, biased by the zero point. q: [32]
template <Format F>
OUTPACE_INLINE void read_group(const uint8_t* quants, const uint8_t* high, int output, uint8_t* q) {
  for (int i = 0; i < 32; ++i) {
    const int line = i / 4, byte = 4 * output + i % 4;
    if constexpr (bits(F) == 8) {
      q[i] = quants[64 * line + byte];
      continue;
    }
    q[i] = static_cast<uint8_t>(quants[64 * (line % 4) + byte] >> (line < 4 ? 0 : 4) & 15);
    if constexpr (bits(F) == 5) {
      q[i] |= static_cast<uint8_t>((high[8 * line + byte / 8] >> (byte % 8) & 1) << 4);
    }
    if constexpr (bits(F) == 6) {
      q[i] |= static_cast<uint8_t>((high[64 * (line / 4) + byte] >> (2 * (line % 4)) & 3) << 4);
    }
  }
}

// The factor and the minimum of group g: weight = factor x (q - zero point) + minimum.
template <Format F>
OUTPACE_INLINE void group_scale(const uint8_t* scales, int g, int output, float& factor, float& minimum) {
  Floats d = load_halves(scales + (is_k(F) ? 192 : 0));
  float lanes[16];
  store(lanes, d);
  factor = lanes[output];
  minimum = 0.0f;
  if constexpr (has_min(F)) {
    store(lanes, load_halves(scales + 32));
    minimum = lanes[output];
  }
  if constexpr (is_k(F)) {
    store(lanes, load_halves(scales + 224));
    Ints scale[2], min[2];
    unpack_scales(scales, scale, min);
    uint8_t s[2][64], m[2][64];
    std::memcpy(s, scale, sizeof s);
    std::memcpy(m, min, sizeof m);
    factor *= static_cast<float>(s[g / 4][4 * output + g % 4]);
    minimum = -(lanes[output] * static_cast<float>(m[g / 4][4 * output + g % 4]));
  }
}

template <Format F>
void dequantize_row_of(const TileMatrix& m, int64_t row, float* out) {
  const uint8_t* strip = m.data + row / kStrip * m.strip_bytes;
  const int o = static_cast<int>(row % kStrip);
  if constexpr (is_float(F)) {
    float lanes[16];
    for (int64_t k = 0; k < m.columns; ++k) {
      store(lanes, load_weights<F>(strip + k * kStrip * (bits(F) / 8)));
      out[k] = lanes[o];
    }
    return;
  }
  constexpr int per_scale = is_k(F) ? 8 : 1;
  for (int64_t g = 0; g < m.columns / kGroup; ++g) {
    const uint8_t* cell = strip + g / per_scale * cell_bytes(F);
    const int64_t in_cell = g % per_scale;
    uint8_t q[32];
    read_group<F>(cell + in_cell * quant_bytes(F), cell + high_offset(F) + in_cell * high_bytes(F), o, q);
    const uint8_t* scales = cell + scale_offset(F);
    float factor[2], minimum = 0.0f;
    if constexpr (F == Format::q6_k) {
      float lanes[16];
      store(lanes, load_halves(scales + 256));
      for (int half = 0; half < 2; ++half) {
        const auto s = static_cast<int8_t>(scales[16 * (2 * in_cell + half) + o]);
        factor[half] = lanes[o] * static_cast<float>(s);
      }
    } else {
      group_scale<F>(scales, static_cast<int>(in_cell), o, factor[0], minimum);
      factor[1] = factor[0];
    }
    for (int i = 0; i < 32; ++i) {
      out[g * kGroup + i] = factor[i / 16] * static_cast<float>(q[i] - zero_point(F)) + minimum;
    }
  }
}

void pack_strip(const TileMatrix& m, const uint8_t* const rows[kStrip], uint8_t* strip) {
  with_format(m.format, [&]<Format F>() { pack_strip_of<F>(m, rows, strip); });
}

void dequantize_row(const TileMatrix& m, int64_t row, float* out) {
  with_format(m.format, [&]<Format F>() { dequantize_row_of<F>(m, row, out); });
}

// As ggml's quantize_row_q8_0 and quantize_row_q4_0: the largest weight of 32 sets the scale.
void quantize_weights(Format to, const float* row, int64_t columns, uint8_t* out) {
  for (int64_t g = 0; g < columns / kGroup; ++g) {
    const float* x = row + g * kGroup;
    float largest = 0.0f, signed_largest = 0.0f;
    for (int i = 0; i < 32; ++i) {
      const float size = x[i] < 0 ? -x[i] : x[i];
      if (size > largest) {
        largest = size;
        signed_largest = x[i];
      }
    }
    const float d = to == Format::q8_0 ? largest / 127.0f : signed_largest / -8.0f;
    const float inverse = largest > 1e-30f ? 1.0f / d : 0.0f;  // below, d is 0 in f16 anyway
    uint8_t* block = out + g * file_block_bytes(to);
    store_u16(block, f32_to_f16(d));
    for (int i = 0; i < 32; ++i) {
      if (to == Format::q8_0) {
        const float q = __builtin_rintf(x[i] * inverse);
        block[2 + i] = static_cast<uint8_t>(static_cast<int8_t>(q));
      } else {
        const int q = static_cast<int>(x[i] * inverse + 8.5f);
        const uint8_t nibble = static_cast<uint8_t>(q > 15 ? 15 : q);
        if (i < 16)
          block[2 + i] = nibble;
        else
          block[2 + i - 16] = static_cast<uint8_t>(block[2 + i - 16] | nibble << 4);
      }
    }
  }
}

}  // namespace outpace::OUTPACE_TIER

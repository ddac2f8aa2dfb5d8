// The tile instructions in plain C++, strict: what the hardware would fault on, and what it would let pass
// but no kernel means to do, is thrown as a Violation. (Intel's SDM, volume 2: LDTILECFG, TILELOADD,
// TILESTORED, TILEZERO, TDPBSSD, TDPBSUD, TDPBF16PS.)
#pragma once

#include <cmath>
#include <cstring>
#include <initializer_list>

#include "kernels/amx_config.h"

namespace amx_emulated_state {

struct Violation {
  const char* what;
};

struct Tile {
  bool defined = false;  // written since the configuration
  uint8_t bytes[16][64] = {};
};

struct State {
  bool configured = false;
  outpace::TileConfig config;
  Tile tiles[8];
};

inline thread_local int64_t num_products = 0;  // of tiles, since the thread's start

inline State& state() {
  static thread_local State tiles;
  return tiles;
}

inline void require(bool ok, const char* what) {
  if (!ok) throw Violation{what};
}

inline void require_shape(int tile) {
  require(state().configured, "no tile configuration");
  require(state().config.rows[tile] > 0, "a tile without a shape");
}

inline void check_config(const outpace::TileConfig& config) {
  require(reinterpret_cast<uintptr_t>(&config) % 64 == 0, "a configuration that is not aligned");
  require(config.palette == 1, "another palette than 1");
  require(config.start_row == 0, "a start row");
  for (const uint8_t byte : config.reserved) require(byte == 0, "a reserved byte");
  for (int i = 0; i < 16; ++i) {
    require(i < 8 || (config.rows[i] == 0 && config.row_bytes[i] == 0), "more than 8 tiles");
    require(config.rows[i] <= 16, "more than 16 rows");
    require(config.row_bytes[i] <= 64, "more than 64 bytes a row");
    require((config.rows[i] == 0) == (config.row_bytes[i] == 0), "rows without bytes, or bytes without rows");
  }
}

// What a product asks of the tiles' shapes and of their contents.
inline const outpace::TileConfig& require_product(int sum, int a, int b) {
  for (const int tile : {sum, a, b}) {
    require_shape(tile);
    require(state().tiles[tile].defined, "a tile that was never filled");
    require(state().config.row_bytes[tile] % 4 == 0, "a row that is not of whole 32-bit words");
  }
  ++num_products;
  const outpace::TileConfig& config = state().config;
  require(sum != a && sum != b && a != b, "one tile in two places");
  require(config.rows[sum] == config.rows[a], "rows of the sums and of A");
  require(config.row_bytes[sum] == config.row_bytes[b], "columns of the sums and of B");
  require(config.row_bytes[a] == 4 * config.rows[b], "depth of A and of B");
  return config;
}

// C += A . B; `weight` reads a byte of B.
template <class Weight>
void dot(int sum, int a, int b, const Weight& weight) {
  const outpace::TileConfig& config = require_product(sum, a, b);
  for (int row = 0; row < config.rows[a]; ++row) {
    for (int column = 0; column < config.row_bytes[b] / 4; ++column) {
      uint8_t* at = state().tiles[sum].bytes[row] + 4 * column;
      uint32_t total;
      std::memcpy(&total, at, 4);
      for (int k = 0; k < config.row_bytes[a]; ++k) {
        const int x = static_cast<int8_t>(state().tiles[a].bytes[row][k]);
        total += static_cast<uint32_t>(x * weight(state().tiles[b].bytes[k / 4][4 * column + k % 4]));
      }
      std::memcpy(at, &total, 4);
    }
  }
}

// Denormals count as zero for the tile unit, where it reads floats and where it makes them.
inline float flushed(float x) { return std::fabs(x) < 1.17549435e-38f ? std::copysign(0.0f, x) : x; }

// A bf16 number as a float.
inline float widened(const uint8_t* bytes) {
  uint16_t half;
  std::memcpy(&half, bytes, 2);
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return flushed(value);
}

// C += A . B of bf16: inputs of even and of odd places are summed apart, fused, before both come to C.
inline void dot_bf16(int sum, int a, int b) {
  const outpace::TileConfig& config = require_product(sum, a, b);
  for (int row = 0; row < config.rows[a]; ++row) {
    for (int column = 0; column < config.row_bytes[b] / 4; ++column) {
      uint8_t* at = state().tiles[sum].bytes[row] + 4 * column;
      float total, even = 0.0f, odd = 0.0f;
      std::memcpy(&total, at, 4);
      for (int k = 0; k < config.row_bytes[a] / 4; ++k) {
        const uint8_t *x = state().tiles[a].bytes[row] + 4 * k, *w = state().tiles[b].bytes[k] + 4 * column;
        even = flushed(std::fmaf(widened(x), widened(w), even));
        odd = flushed(std::fmaf(widened(x + 2), widened(w + 2), odd));
      }
      total = flushed(flushed(total) + flushed(even + odd));
      std::memcpy(at, &total, 4);
    }
  }
}

}  // namespace amx_emulated_state

namespace outpace::OUTPACE_TIER {

namespace emulated = amx_emulated_state;

inline void configure_tiles(const TileConfig& config) {
  emulated::require(!emulated::state().configured, "tiles that were not released");
  emulated::check_config(config);
  emulated::state() = {true, config, {}};
}
inline void release_tiles() {
  emulated::require(emulated::state().configured, "nothing to release");
  emulated::state() = {};
}

template <int Tile>
void zero_tile() {
  static_assert(Tile >= 0 && Tile < 8);
  emulated::require_shape(Tile);
  emulated::state().tiles[Tile] = {true, {}};
}
template <int Tile>
void load_tile(const void* first, int64_t stride) {
  zero_tile<Tile>();  // what is beyond the shape becomes 0
  const TileConfig& config = emulated::state().config;
  for (int row = 0; row < config.rows[Tile]; ++row) {
    std::memcpy(emulated::state().tiles[Tile].bytes[row], static_cast<const uint8_t*>(first) + row * stride,
                config.row_bytes[Tile]);
  }
}
template <int Tile>
void store_tile(void* first, int64_t stride) {
  emulated::require_shape(Tile);
  emulated::require(emulated::state().tiles[Tile].defined, "a tile that was never filled");
  const TileConfig& config = emulated::state().config;
  for (int row = 0; row < config.rows[Tile]; ++row) {
    std::memcpy(static_cast<uint8_t*>(first) + row * stride, emulated::state().tiles[Tile].bytes[row],
                config.row_bytes[Tile]);
  }
}

template <int Sum, int A, int B>
void dot_tiles_signed() {
  emulated::dot(Sum, A, B, [](uint8_t weight) { return static_cast<int>(static_cast<int8_t>(weight)); });
}
template <int Sum, int A, int B>
void dot_tiles_unsigned() {
  emulated::dot(Sum, A, B, [](uint8_t weight) { return static_cast<int>(weight); });
}
template <int Sum, int A, int B>
void dot_tiles_bf16() {
  emulated::dot_bf16(Sum, A, B);
}

}  // namespace outpace::OUTPACE_TIER

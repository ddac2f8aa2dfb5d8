// What `ldtilecfg` reads: the shapes of the eight tile registers.
#pragma once

#include <cstdint>

namespace outpace {

struct alignas(64) TileConfig {
  uint8_t palette = 1;  // the only one there is: eight tiles of up to 16 rows x 64 bytes
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};  // those from 8 on stay 0
  uint8_t rows[16] = {};

  constexpr void set(int tile, int64_t num_rows, int num_bytes) {
    row_bytes[tile] = static_cast<uint16_t>(num_bytes);
    rows[tile] = static_cast<uint8_t>(num_rows);
  }
};
static_assert(sizeof(TileConfig) == 64);

}  // namespace outpace

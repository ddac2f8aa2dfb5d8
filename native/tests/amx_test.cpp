// The emulated tile instructions: they compute what the manual says, catch what it forbids, and agree with
// the hardware where there is one.
#include "kernels/inline.h"
#define OUTPACE_TIER emulated_tiles
#include "amx_emulated_tiles.h"
#undef OUTPACE_TIER
#define OUTPACE_TIER hardware_tiles
#include "kernels/amx_tiles.h"
#undef OUTPACE_TIER
#include "check.h"
#include "tiers.h"

namespace {

using outpace::TileConfig;
namespace tiles = outpace::emulated_tiles;

// Sums in tile 0, A in tile 1, B in tile 2.
TileConfig config_of(int rows, int depth, int columns) {
  TileConfig config;
  config.set(0, rows, 4 * columns);
  config.set(1, rows, depth);
  config.set(2, depth / 4, 4 * columns);
  return config;
}

struct Operands {
  alignas(64) int8_t a[16 * 64];
  alignas(64) uint8_t b[16 * 64];

  explicit Operands(uint64_t seed) {
    check::Random random{seed};
    for (int8_t& x : a) x = static_cast<int8_t>(random.bits());
    for (uint8_t& x : b) x = static_cast<uint8_t>(random.bits());
    a[0] = a[1] = -128;
    b[0] = b[1] = seed % 2 == 0 ? 128 : 255;
  }
};

struct Sums {
  alignas(64) int32_t of_signed[16 * 16], of_unsigned[16 * 16];
  Sums() {
    for (int i = 0; i < 16 * 16; ++i) of_signed[i] = of_unsigned[i] = 77;
  }
};

// Twice A . B by the functions of one namespace, and once more where tiles are not to be cleared between.
#define OUTPACE_MULTIPLY(space, config, x, sums)  \
  do {                                            \
    space::configure_tiles(config);               \
    space::load_tile<1>((x).a, 64);               \
    space::load_tile<2>((x).b, 64);               \
    space::zero_tile<0>();                        \
    space::dot_tiles_signed<0, 1, 2>();           \
    space::store_tile<0>((sums).of_signed, 64);   \
    space::zero_tile<0>();                        \
    space::dot_tiles_unsigned<0, 1, 2>();         \
    space::dot_tiles_unsigned<0, 1, 2>();         \
    space::store_tile<0>((sums).of_unsigned, 64); \
    space::release_tiles();                       \
  } while (false)

constexpr struct {
  int rows, depth, columns;
} kShapes[] = {{16, 64, 16}, {1, 32, 16}, {9, 32, 16}, {5, 4, 3}, {16, 60, 1}};

TEST(products_are_exact) {
  for (const auto& [rows, depth, columns] : kShapes) {
    for (uint64_t seed = 0; seed < 4; ++seed) {
      const Operands x(seed);
      Sums sums;
      OUTPACE_MULTIPLY(tiles, config_of(rows, depth, columns), x, sums);
      for (int r = 0; r < 16; ++r) {
        for (int n = 0; n < 16; ++n) {
          int32_t exact[2] = {0, 0};
          for (int k = 0; k < depth; ++k) {
            const uint8_t weight = x.b[64 * (k / 4) + 4 * n + k % 4];
            exact[0] += x.a[64 * r + k] * static_cast<int8_t>(weight);
            exact[1] += 2 * x.a[64 * r + k] * weight;
          }
          const bool inside = r < rows && n < columns;
          CHECK(sums.of_signed[16 * r + n] == (inside ? exact[0] : 77));
          CHECK(sums.of_unsigned[16 * r + n] == (inside ? exact[1] : 77));
        }
      }
    }
  }
}

// Says so where it could not run.
TEST(hardware_agrees) {
  bool found = false;
  for (const outpace::Kernels* kernels : check::tiers()) found |= std::strcmp(kernels->name, "amx") == 0;
  if (!found) {
    std::printf("no tile instructions on this machine: not compared\n");
    return;
  }
  for (const auto& [rows, depth, columns] : kShapes) {
    for (uint64_t seed = 0; seed < 4; ++seed) {
      const Operands x(seed);
      Sums emulated, real;
      const TileConfig config = config_of(rows, depth, columns);
      OUTPACE_MULTIPLY(tiles, config, x, emulated);
      OUTPACE_MULTIPLY(outpace::hardware_tiles, config, x, real);
      CHECK(check::same_bits(emulated.of_signed, real.of_signed, 16 * 16));
      CHECK(check::same_bits(emulated.of_unsigned, real.of_unsigned, 16 * 16));
    }
  }
}

template <class Body>
void check_caught(const char* what, const Body& body) {
  const char* caught = "nothing";
  try {
    body();
  } catch (const amx_emulated_state::Violation& violation) {
    caught = violation.what;
  }
  CHECK(std::strcmp(caught, what) == 0, "caught '%s', not '%s'", caught, what);
  amx_emulated_state::state() = {};
}

// Of a configuration that is right but for one change.
template <class Change>
void check_config_caught(const char* what, const Change& change) {
  TileConfig config = config_of(16, 64, 16);
  change(config);
  check_caught(what, [&] { tiles::configure_tiles(config); });
}

TEST(wrong_configurations_are_caught) {
  check_config_caught("nothing", [](TileConfig&) {});
  check_config_caught("another palette than 1", [](TileConfig& c) { c.palette = 0; });
  check_config_caught("another palette than 1", [](TileConfig& c) { c.palette = 2; });
  check_config_caught("a start row", [](TileConfig& c) { c.start_row = 1; });
  check_config_caught("a reserved byte", [](TileConfig& c) { c.reserved[13] = 1; });
  check_config_caught("more than 8 tiles", [](TileConfig& c) { c.set(8, 1, 4); });
  check_config_caught("more than 16 rows", [](TileConfig& c) { c.rows[7] = 17; });
  check_config_caught("more than 64 bytes a row", [](TileConfig& c) { c.set(7, 1, 68); });
  check_config_caught("rows without bytes, or bytes without rows", [](TileConfig& c) { c.rows[0] = 0; });
  check_config_caught("rows without bytes, or bytes without rows", [](TileConfig& c) { c.rows[7] = 1; });
}

// Of a multiplication that is right but for one change of the shapes.
template <class Change>
void check_shapes_caught(const char* what, const Change& change) {
  TileConfig config = config_of(9, 32, 16);
  change(config);
  const Operands x(1);
  Sums sums;
  check_caught(what, [&] { OUTPACE_MULTIPLY(tiles, config, x, sums); });
}

TEST(wrong_shapes_are_caught) {
  check_shapes_caught("nothing", [](TileConfig&) {});
  check_shapes_caught("rows of the sums and of A", [](TileConfig& c) { c.rows[0] = 10; });
  check_shapes_caught("columns of the sums and of B", [](TileConfig& c) { c.row_bytes[0] = 60; });
  check_shapes_caught("depth of A and of B", [](TileConfig& c) { c.row_bytes[1] = 64; });
  check_shapes_caught("depth of A and of B", [](TileConfig& c) { c.rows[2] = 9; });
  check_shapes_caught("a tile without a shape", [](TileConfig& c) { c.set(2, 0, 0); });
  check_shapes_caught("a row that is not of whole 32-bit words", [](TileConfig& c) { c.row_bytes[1] = 30; });
}

TEST(wrong_sequences_are_caught) {
  const TileConfig config = config_of(16, 64, 16);
  const Operands x(1);
  check_caught("no tile configuration", [&] { tiles::load_tile<1>(x.a, 64); });
  check_caught("nothing to release", [] { tiles::release_tiles(); });
  check_caught("tiles that were not released", [&] {
    tiles::configure_tiles(config);
    tiles::configure_tiles(config);
  });
  check_caught("no tile configuration", [&] {
    tiles::configure_tiles(config);
    tiles::release_tiles();
    tiles::zero_tile<0>();
  });
  check_caught("a tile that was never filled", [&] {
    tiles::configure_tiles(config);
    tiles::load_tile<1>(x.a, 64);
    tiles::load_tile<2>(x.b, 64);
    tiles::dot_tiles_signed<0, 1, 2>();
  });
  check_caught("one tile in two places", [&] {
    tiles::configure_tiles(config);
    tiles::load_tile<1>(x.a, 64);
    tiles::load_tile<2>(x.b, 64);
    tiles::dot_tiles_unsigned<2, 1, 2>();
  });
}

}  // namespace

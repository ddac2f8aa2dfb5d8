// Packing and unpacking of weights: what a tile holds is what the file's block says, in every format.
#include "check.h"
#include "gguf_blocks.h"
#include "kernels/f16.h"

namespace {

using outpace::Format;

constexpr int64_t kRows[] = {1, 15, 16, 17, 41};

std::vector<int64_t> columns_of(Format f) {
  if (outpace::is_float(f)) return {1, 7, 96};
  if (outpace::is_k(f)) return {256, 512, 1280};
  return {32, 96, 576};
}

// Sum over i of (1 + i % 7) x weight i of 256 x 4 weights made from splitmix64 bytes with finite scales,
// as gguf-py's quants.dequantize computes it.
struct Published {
  Format format;
  double sum;
};
constexpr Published kPublished[] = {
    {Format::q4_0, -1.82130336761}, {Format::q4_1, 81.4703888893},  {Format::q5_0, -1.37475299835},
    {Format::q5_1, 106.409700871},  {Format::q8_0, -2.46114301682}, {Format::q4_k, -1417.27698278},
    {Format::q5_k, -504.193283081}, {Format::q6_k, -234.059419632},
};

// Random bytes, and 0x1234 / 0x2345 + block index as the scales.
std::vector<uint8_t> published_bytes(Format f) {
  check::Random random{42};
  const gguf::Block b = gguf::block_of(f);
  std::vector<uint8_t> bytes(static_cast<size_t>(gguf::row_bytes(f, 1024)));
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random.bits());
  for (int64_t i = 0; i < 1024 / b.columns; ++i) {
    uint8_t* scale = bytes.data() + i * b.bytes + (f == Format::q6_k ? 208 : 0);
    const auto d = static_cast<uint16_t>(0x1234 + i), m = static_cast<uint16_t>(0x2345 + i);
    std::memcpy(scale, &d, 2);
    if (outpace::has_min(f) || f == Format::q4_k || f == Format::q5_k) std::memcpy(scale + 2, &m, 2);
  }
  return bytes;
}

TEST(reference_decode_agrees_with_gguf_py) {
  for (const Published& p : kPublished) {
    const std::vector<uint8_t> bytes = published_bytes(p.format);
    double sum = 0.0;
    for (int64_t i = 0; i < 1024; ++i) {
      sum += static_cast<double>(1 + i % 7) * gguf::weight(p.format, bytes.data(), i).value();
    }
    CHECK(std::fabs(sum - p.sum) <= 1e-5 * std::fabs(p.sum), "%s: %.9g, gguf-py %.9g",
          gguf::name_of(p.format), sum, p.sum);
  }
}

void check_rows(const outpace::Kernels& kernels, const gguf::Matrix& m) {
  check::Array<uint8_t> memory;
  const outpace::TileMatrix tiles = gguf::pack(kernels, m, memory);
  std::vector<float> out(static_cast<size_t>(m.columns) + 1, 7.0f);
  for (int64_t r = 0; r < m.rows; ++r) {
    kernels.dequantize_row(tiles, r, out.data());
    CHECK(out.back() == 7.0f, "%s wrote past the row", kernels.name);
    if (&kernels == check::tiers().front()) check::record(out.data(), out.size());
    for (int64_t k = 0; k < m.columns; ++k) {
      const float expected = static_cast<float>(gguf::weight(m.format, m.row(r), k).value());
      const float got = out[static_cast<size_t>(k)];
      if (got == expected) continue;
      CHECK(got == expected, "%s %s [%d, %d] at (%d, %d): %.9g, not %.9g", kernels.name,
            gguf::name_of(m.format), static_cast<int>(m.rows), static_cast<int>(m.columns),
            static_cast<int>(r), static_cast<int>(k), static_cast<double>(got),
            static_cast<double>(expected));
      return;
    }
  }
  CHECK(true);
}

// Rows that the matrix lacks must be zeros: their lanes are computed too.
void check_padding(const outpace::Kernels& kernels, const gguf::Matrix& m) {
  check::Array<uint8_t> memory;
  outpace::TileMatrix tiles = gguf::pack(kernels, m, memory);
  tiles.rows = tiles.padded_rows();
  std::vector<float> out(static_cast<size_t>(m.columns));
  for (int64_t r = m.rows; r < tiles.rows; ++r) {
    kernels.dequantize_row(tiles, r, out.data());
    for (const float x : out) CHECK(x == 0.0f);
  }
}

TEST(dequantize_row_is_the_files_weight) {
  for (const outpace::Kernels* kernels : check::tiers()) {
    for (const Format f : gguf::kFormats) {
      for (const int64_t rows : kRows) {
        for (const int64_t columns : columns_of(f)) {
          const gguf::Matrix m =
              gguf::random_matrix(f, rows, columns, static_cast<uint64_t>(rows * 1000 + columns));
          check_rows(*kernels, m);
          check_padding(*kernels, m);
        }
      }
    }
  }
}

TEST(tiers_pack_the_same_bytes) {
  for (const Format f : gguf::kFormats) {
    const gguf::Matrix m = gguf::random_matrix(f, 21, columns_of(f).back(), 3);
    check::Array<uint8_t> first;
    gguf::pack(*check::tiers().front(), m, first);
    for (const outpace::Kernels* kernels : check::tiers()) {
      check::Array<uint8_t> memory;
      gguf::pack(*kernels, m, memory);
      CHECK(memory == first, "%s %s", kernels->name, gguf::name_of(f));
    }
  }
}

constexpr int64_t kQuantized = 32 * 9;

// Groups of ordinary weights, equal ones, one outlier, zeros, huge ones, and ones below f16's range.
std::vector<float> row_to_quantize(uint64_t seed) {
  check::Random random{seed};
  std::vector<float> x(kQuantized);
  for (size_t i = 0; i < x.size(); ++i) {
    const size_t group = i / 32;
    x[i] = random.normal() * 0.05f;
    if (group == 1) x[i] = -0.25f;
    if (group == 2) x[i] = i % 32 == 5 ? 30.0f : x[i];
    if (group == 3) x[i] = 0.0f;
    if (group == 4) x[i] *= 1e5f;
    if (group == 5) x[i] = i % 32 == 31 ? -1.0f : 0.0f;
    if (group == 6) x[i] *= 1e-36f;  // 1 / d is infinite
    if (group == 7) x[i] *= 1e-5f;   // d is subnormal in f16
  }
  return x;
}

std::vector<uint8_t> check_quantized(const outpace::Kernels& kernels, Format to,
                                     const std::vector<float>& x) {
  std::vector<uint8_t> blocks(static_cast<size_t>(gguf::row_bytes(to, kQuantized)), 0xcd);
  kernels.quantize_weights(to, x.data(), kQuantized, blocks.data());
  for (int64_t g = 0; g < kQuantized / 32; ++g) {
    float largest = 0.0f;
    for (int64_t i = 0; i < 32; ++i)
      largest = std::max(largest, std::fabs(x[static_cast<size_t>(g * 32 + i)]));
    // Half a step and the rounding of d (to 11 bits, or to 2^-24); q4_0 lacks the step +8.
    const double d = static_cast<double>(largest) / (to == Format::q8_0 ? 127.0 : 8.0),
                 steps = to == Format::q8_0 ? 127.0 : 8.0;
    const double bound = d * (to == Format::q8_0 ? 0.501 : 1.001) + steps * std::fmax(d * 0x1p-11, 0x1p-25);
    for (int64_t i = 0; i < 32; ++i) {
      const double expected = static_cast<double>(x[static_cast<size_t>(g * 32 + i)]);
      const double got = gguf::weight(to, blocks.data(), g * 32 + i).value();
      CHECK(std::fabs(got - expected) <= bound, "%s %s group %d: %g, not %g", kernels.name, gguf::name_of(to),
            static_cast<int>(g), got, expected);
    }
  }
  return blocks;
}

TEST(quantize_weights_keeps_within_half_a_step) {
  for (const Format to : {Format::q8_0, Format::q4_0}) {
    for (uint64_t seed = 0; seed < 20; ++seed) {
      const std::vector<float> x = row_to_quantize(seed);
      const std::vector<uint8_t> first = check_quantized(*check::tiers().front(), to, x);
      for (const uint8_t byte : first) check::record(std::vector<int32_t>{byte}.data(), 1);
      for (const outpace::Kernels* kernels : check::tiers())
        CHECK(check_quantized(*kernels, to, x) == first, "%s", kernels->name);
    }
  }
}

TEST(f16_conversions_agree_with_the_standard) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto h = static_cast<uint16_t>(bits);
    const float f = outpace::f16_to_f32(h);
    if ((h & 0x7c00) == 0x7c00 && (h & 0x3ff) != 0) {
      CHECK(std::isnan(f) && (outpace::f32_to_f16(f) & 0x7fff) > 0x7c00);
      continue;
    }
    const uint8_t bytes[2] = {static_cast<uint8_t>(h), static_cast<uint8_t>(h >> 8)};
    if ((h & 0x7c00) == 0x7c00)
      CHECK(std::isinf(f) && std::signbit(f) == (h >> 15));
    else
      CHECK(static_cast<double>(f) == gguf::half(bytes));
    CHECK(outpace::f32_to_f16(f) == h);
    if ((h & 0x7fff) >= 0x7bff) continue;
    // Half way to the next number goes to the even one; a little more or less goes to the nearer.
    const float next = outpace::f16_to_f32(static_cast<uint16_t>(h + 1));
    const float middle = (f + next) / 2.0f;
    CHECK(outpace::f32_to_f16(middle) == (h % 2 == 0 ? h : h + 1));
    CHECK(outpace::f32_to_f16(std::nextafterf(middle, f)) == h);
    CHECK(outpace::f32_to_f16(std::nextafterf(middle, next)) == h + 1);
  }
  CHECK(outpace::f32_to_f16(65519.0f) == 0x7bff);
  CHECK(outpace::f32_to_f16(65520.0f) == 0x7c00);
  CHECK(outpace::f32_to_f16(-1e30f) == 0xfc00);
}

}  // namespace

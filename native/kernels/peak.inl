// The most that the dot product of this tier can do: what every matrix kernel is measured against.

namespace outpace::OUTPACE_TIER {

// A group of 32 inputs x 16 outputs for as many rows as fit the registers, over and over, without unpacking
// and without scales. What is multiplied is hidden from the compiler, or it would leave the loop. The loops
// are unrolled, or gcc 12 keeps the sums in memory and halves the figure.
int64_t dot_peak(int64_t rounds) {
  alignas(64) uint8_t weights[kStrip * kGroup];
  alignas(64) int8_t rows[kMaxRows * kGroup];
  for (uint8_t& w : weights) w = 1;
  for (int i = 0; i < kMaxRows * kGroup; ++i) rows[i] = i % 2 == 0 ? 1 : -1;  // the sums stay 0
  Ints acc[kMaxRows];
#pragma GCC unroll 16
  for (int r = 0; r < kMaxRows; ++r) acc[r] = zero_ints();
  for (int64_t i = 0; i < rounds; ++i) {
    asm volatile("" : : "r"(weights), "r"(rows) : "memory");
    add_unpacked<kMaxRows>(weights, rows, acc);
  }
  float sums[kStrip];
#pragma GCC unroll 16
  for (int r = 0; r < kMaxRows; ++r) {
    store(sums, to_floats(acc[r]));
    asm volatile("" : : "r"(sums) : "memory");  // as if they were read
  }
  return rounds * kMaxRows * kStrip * kGroup;
}

}  // namespace outpace::OUTPACE_TIER

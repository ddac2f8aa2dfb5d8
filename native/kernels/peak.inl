// The most that the dot product of this tier can do: what every matrix kernel is measured against.

namespace outpace::OUTPACE_TIER {

// A group of 32 inputs of kStripsTogether x 16 outputs for as many rows as fit the registers, over and over,
// without unpacking and without scales. What is multiplied is hidden from the compiler, or it would leave the
// loop. The loops are unrolled, or gcc 12 keeps the sums in memory and halves the figure.
int64_t dot_peak(int64_t rounds) {
  constexpr int kRows = kRegisterSums / kStripsTogether;
  alignas(64) uint8_t weights[kStripsTogether * kStrip * kGroup];
  alignas(64) int8_t rows[kRows * kGroup];
  for (uint8_t& w : weights) w = 1;
  for (int i = 0; i < kRows * kGroup; ++i) rows[i] = i % 2 == 0 ? 1 : -1;  // the sums stay 0
  Ints acc[kStripsTogether][kRows];
  OUTPACE_UNROLL for (auto& strip : acc) { OUTPACE_UNROLL for (Ints& sum : strip) sum = zero_ints(); }
  for (int64_t i = 0; i < rounds; ++i) {
    asm volatile("" : : "r"(weights), "r"(rows) : "memory");
    add_unpacked(weights, rows, acc);
  }
  float sums[kStrip];
  OUTPACE_UNROLL for (const auto& strip : acc) {
    OUTPACE_UNROLL for (const Ints& sum : strip) {
      store(sums, to_floats(sum));
      asm volatile("" : : "r"(sums) : "memory");  // as if they were read
    }
  }
  return rounds * kRegisterSums * kStrip * kGroup;
}

}  // namespace outpace::OUTPACE_TIER

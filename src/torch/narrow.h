// Products of bf16 for decoding, summed in fp32: kernels.cpp includes this where the target has instructions for them.
//
// A row's result is the same, to the bit, in every batch, as in kernels.h.

// kRows rows of x times kPanels panels of the weight, plus the bias, into y from column `column`.
template <int kRows, int kPanels>
LX_INLINE void tile(const NarrowProduct& job, int64_t row, int64_t column) {
  __m512 sums[kRows][kPanels];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) sums[r][p] = _mm512_setzero_ps();
  }
  const Bf16* __restrict x = job.x + row * 2 * job.pairs;
  const Bf16* __restrict panel = job.panels + column * 2 * job.pairs;
  for (int64_t i = 0; i < job.pairs; ++i) {
    __m512bh w[kPanels];
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) w[p] = (__m512bh)_mm512_loadu_si512(panel + (p * job.pairs + i) * 2 * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      int pair;
      std::memcpy(&pair, x + 2 * (r * job.pairs + i), sizeof pair);
      const __m512bh both = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p) sums[r][p] = _mm512_dpbf16_ps(sums[r][p], both, w[p]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) {
      const int64_t from = column + p * kLanes;
      write(job.y + (row + r) * job.n + from, (Lanes)sums[r][p] + load(job.bias + from), job.n - from);
    }
  }
}

template <int kPanels>
LX_INLINE void column(const NarrowProduct& job, int64_t at) {
  constexpr int kTall = 12;  // sums that fit into the registers
  int64_t row = 0;
  for (; row + kTall <= job.rows; row += kTall) tile<kTall, kPanels>(job, row, at);
  for (; row + 4 <= job.rows; row += 4) tile<4, kPanels>(job, row, at);
  for (; row < job.rows; ++row) tile<1, kPanels>(job, row, at);
}

// The columns begin..end of x Wᵀ + bias.
inline void multiply(const NarrowProduct& job, int64_t begin, int64_t end) {
  int64_t at = begin;
  for (; at + kLanes < end; at += 2 * kLanes) column<2>(job, at);
  for (; at < end; at += kLanes) column<1>(job, at);
}

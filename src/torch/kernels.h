// The kernels of kernels.cpp for decoding, which includes this once for each instruction set, in a namespace and under a
// target of its own.
//
// Every number is computed in one order of its own, whatever tile it falls into: results do not depend on the batch.

// kRows rows of x [.., k] times kPanels panels [k, 16] of the weight, plus the bias, into y [.., n] from column `column`.
template <int kRows, int kPanels>
LX_INLINE void tile(const Product& job, int64_t row, int64_t column) {
  Lanes sums[kRows][kPanels] = {};
  const float* __restrict x = job.x + row * job.k;
  const float* __restrict panel = job.panels + column * job.k;
  for (int64_t i = 0; i < job.k; ++i) {
    Lanes w[kPanels];
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) w[p] = load(panel + (p * job.k + i) * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p) sums[r][p] += w[p] * x[r * job.k + i];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) {
      const int64_t from = column + p * kLanes, width = std::min(kLanes, job.n - from);
      float* y = job.y + (row + r) * job.n + from;
      const Lanes total = sums[r][p] + load(job.bias + from);
      if (width == kLanes) {
        store(y, total);
      } else {
        float last[kLanes];
        store(last, total);
        std::copy(last, last + width, y);
      }
    }
  }
}

template <int kPanels>
LX_INLINE void column(const Product& job, int64_t row, int64_t end, int64_t at) {
  constexpr int kTall = kVectors == 1 ? 12 : kVectors == 2 ? 6 : 2;  // sums that fit into the registers
  for (; row + kTall <= end; row += kTall) tile<kTall, kPanels>(job, row, at);
  for (; row < end; ++row) tile<1, kPanels>(job, row, at);
}

// Rows begin..end of x Wᵀ + bias.
inline void multiply(const Product& job, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; row += kRowBlock) {
    const int64_t last = std::min(end, row + kRowBlock);
    int64_t at = 0;
    if (kVectors == 1) {
      for (; at + kLanes < job.n; at += 2 * kLanes) column<2>(job, row, last, at);
    }
    for (; at < job.n; at += kLanes) column<1>(job, row, last, at);
  }
}

// Scores of kQueries queries [d, kQueries] with kBlocks blocks of 16 keys.
template <int kQueries, int kBlocks>
LX_INLINE void score(const Heads& job, const float* queries, int64_t from, float* scores, int64_t stride) {
  Lanes sums[kQueries][kBlocks] = {};
  const float* key = job.keys + from * job.d;
  for (int64_t j = 0; j < job.d; ++j, key += kLanes) {
#pragma GCC unroll 4
    for (int b = 0; b < kBlocks; ++b) {
      const Lanes k = load(key + b * job.d * kLanes);
#pragma GCC unroll 4
      for (int q = 0; q < kQueries; ++q) sums[q][b] += k * queries[j * kQueries + q];
    }
  }
#pragma GCC unroll 4
  for (int q = 0; q < kQueries; ++q) {
#pragma GCC unroll 4
    for (int b = 0; b < kBlocks; ++b) store(scores + q * stride + b * kLanes, sums[q][b]);
  }
}

// Columns j..j+kColumns of the weighed sum of values, for kQueries queries.
template <int kQueries, int kColumns>
LX_INLINE void weigh(const Heads& job, const float* weights, int64_t stride, int64_t first, int64_t blocks, int64_t j,
                     const float* scale, float* const* out) {
  Lanes sums[kQueries][kColumns] = {};
  const float* values = job.values + first * job.d + j * kLanes;
  for (int64_t t = 0; t < blocks * kLanes; t += kLanes, values += job.d * kLanes) {
    Lanes w[kQueries];
#pragma GCC unroll 4
    for (int q = 0; q < kQueries; ++q) w[q] = load(weights + q * stride + t);
#pragma GCC unroll 8
    for (int c = 0; c < kColumns; ++c) {
      const Lanes v = load(values + c * kLanes);
#pragma GCC unroll 4
      for (int q = 0; q < kQueries; ++q) sums[q][c] += v * w[q];
    }
  }
#pragma GCC unroll 4
  for (int q = 0; q < kQueries; ++q) {
#pragma GCC unroll 8
    for (int c = 0; c < kColumns; ++c) out[q][j + c] = sum(sums[q][c]) * scale[q];
  }
}

// kQueries queries of one head of keys: query i is at position at[i] and goes to out[i].
template <int kQueries>
LX_INLINE void attend_some(const Heads& job, const float* const* from, const int64_t* at, float* const* out,
                           float* scratch) {
  int64_t low = at[0], high = at[0];
  for (int q = 1; q < kQueries; ++q) low = std::min(low, at[q]), high = std::max(high, at[q]);
  const int64_t least = job.window > 0 ? std::max<int64_t>(0, low + 1 - job.window) : 0;
  const int64_t first = least / kLanes * kLanes, blocks = (high - first) / kLanes + 1, stride = blocks * kLanes;
  float *queries = scratch, *scores = scratch + kQueries * job.d;
  for (int64_t j = 0; j < job.d; ++j) {
    for (int q = 0; q < kQueries; ++q) queries[j * kQueries + q] = from[q][j] * job.scale;
  }
  int64_t b = 0;
  for (; b + 4 <= blocks; b += 4) score<kQueries, 4>(job, queries, first + b * kLanes, scores + b * kLanes, stride);
  for (; b < blocks; ++b) score<kQueries, 1>(job, queries, first + b * kLanes, scores + b * kLanes, stride);
  float scale[kQueries];
  const Whole count = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  for (int q = 0; q < kQueries; ++q) {
    float* own = scores + q * stride;
    if (job.cap > 0) {
      for (int64_t t = 0; t < stride; ++t) own[t] = std::tanh(own[t] / job.cap) * job.cap;
    }
    const int64_t start = job.window > 0 ? std::max<int64_t>(0, at[q] + 1 - job.window) : 0;
    Lanes most = all(-INFINITY);
    for (int64_t t = 0; t < stride; t += kLanes) {
      Lanes x = load(own + t);
      if (first + t < start || first + t + kLanes - 1 > at[q]) {
        const Whole place = count + static_cast<int32_t>(first + t);
        const Whole unseen = (place < static_cast<int32_t>(start)) | (place > static_cast<int32_t>(at[q]));
        x = unseen ? all(-INFINITY) : x;
        store(own + t, x);
      }
      most = x > most ? x : most;
    }
    float each[kLanes];
    store(each, most);
    const float top = *std::max_element(each, each + kLanes);
    Lanes total = {};
    for (int64_t t = 0; t < stride; t += kLanes) {
      const Lanes weight = exp_nonpositive(load(own + t) - top);
      store(own + t, weight);
      total += weight;
    }
    scale[q] = 1.0f / sum(total);
  }
  int64_t j = 0;
  constexpr int kColumns = kQueries == 4 ? 4 : 8;
  for (; j + kColumns <= job.d; j += kColumns) weigh<kQueries, kColumns>(job, scores, stride, first, blocks, j, scale, out);
  for (; j < job.d; ++j) weigh<kQueries, 1>(job, scores, stride, first, blocks, j, scale, out);
}

// `count` queries of one head of keys, in rising order of their positions.
inline void attend(const Heads& job, const float* const* from, const int64_t* at, float* const* out, int64_t count,
                   float* scratch) {
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) attend_some<4>(job, from + i, at + i, out + i, scratch);
  for (; i + 2 <= count; i += 2) attend_some<2>(job, from + i, at + i, out + i, scratch);
  for (; i < count; ++i) attend_some<1>(job, from + i, at + i, out + i, scratch);
}

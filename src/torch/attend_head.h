// The kernel of attend.cpp, which includes this once for each instruction set, in a namespace and under a target of its own:
// vectors are taken apart into what the target has before a function is cloned or inlined into another's.

// e^x for x <= 0, to 2e-7 relative; straight code that the compiler vectorises (range reduction as in Cephes' expf).
LX_INLINE float exp_nonpositive(float x) {
  x = x < -87.0f ? -87.0f : x;
  const float n = (x * 1.44269504088896341f + 12582912.0f) - 12582912.0f;
  float r = x - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return p * power;
}

// Columns of the sum of n rows of `values` [n, d], each times its weight; four sums at a time hide the latency.
template <int kColumns>
LX_INLINE void weigh(const float* weights, const float* values, int64_t n, int64_t d, float* out) {
  typedef float Columns __attribute__((vector_size(kColumns * sizeof(float)), aligned(4), may_alias));
  Columns a{}, b{}, c{}, e{};
  int64_t t = 0;
  for (; t + 4 <= n; t += 4) {
    const float* row = values + t * d;
    a += *reinterpret_cast<const Columns*>(row) * weights[t];
    b += *reinterpret_cast<const Columns*>(row + d) * weights[t + 1];
    c += *reinterpret_cast<const Columns*>(row + 2 * d) * weights[t + 2];
    e += *reinterpret_cast<const Columns*>(row + 3 * d) * weights[t + 3];
  }
  for (; t < n; ++t) a += *reinterpret_cast<const Columns*>(values + t * d) * weights[t];
  *reinterpret_cast<Columns*>(out) = (a + b) + (c + e);
}

// softmax(cap(q K)) V of one head; `scores` has room for `seen` rounded up to kLanes.
inline void attend_head(const Head& head, float* __restrict scores) {
  const int64_t n = head.seen, d = head.d, padded = (n + kLanes - 1) / kLanes * kLanes;
  std::fill(scores, scores + padded, 0.0f);
  int64_t j = 0;
  for (; j + 4 <= d; j += 4) {
    const float* __restrict k0 = head.keys + j * head.capacity;
    const float *__restrict k1 = k0 + head.capacity, *__restrict k2 = k1 + head.capacity,
                *__restrict k3 = k2 + head.capacity;
    const float q0 = head.query[j], q1 = head.query[j + 1], q2 = head.query[j + 2], q3 = head.query[j + 3];
    for (int64_t t = 0; t < n; ++t) scores[t] += (q0 * k0[t] + q1 * k1[t]) + (q2 * k2[t] + q3 * k3[t]);
  }
  for (; j < d; ++j) {
    const float* __restrict key = head.keys + j * head.capacity;
    const float q = head.query[j];
    for (int64_t t = 0; t < n; ++t) scores[t] += q * key[t];
  }
  if (head.cap > 0) {
    for (int64_t t = 0; t < n; ++t) scores[t] = std::tanh(scores[t] / head.cap) * head.cap;
  }
  for (int64_t t = n; t < padded; ++t) scores[t] = -INFINITY;
  float most[kLanes], sums[kLanes];
  for (int64_t l = 0; l < kLanes; ++l) most[l] = -INFINITY, sums[l] = 0.0f;
  for (int64_t t = 0; t < padded; t += kLanes) {
    for (int64_t l = 0; l < kLanes; ++l) most[l] = scores[t + l] > most[l] ? scores[t + l] : most[l];
  }
  const float top = *std::max_element(most, most + kLanes);
  for (int64_t t = 0; t < padded; t += kLanes) {
    for (int64_t l = 0; l < kLanes; ++l) {
      const float weight = exp_nonpositive(scores[t + l] - top);  // 1e-38 past the end: nothing beside the 1 of the top
      scores[t + l] = weight;
      sums[l] += weight;
    }
  }
  float sum = 0.0f;
  for (int64_t l = 0; l < kLanes; ++l) sum += sums[l];
  int64_t i = 0;
  for (; i + 16 <= d; i += 16) weigh<16>(scores, head.values + i, n, d, head.out + i);
  for (; i + 8 <= d; i += 8) weigh<8>(scores, head.values + i, n, d, head.out + i);
  for (; i < d; ++i) {
    float total = 0.0f;
    for (int64_t t = 0; t < n; ++t) total += scores[t] * head.values[t * d + i];
    head.out[i] = total;
  }
  const float scale = 1.0f / sum;
  for (i = 0; i < d; ++i) head.out[i] *= scale;
}

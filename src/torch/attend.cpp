// Attention of one new token of each sequence to its cache, on a CPU in fp32 (src/torch/mod.rs declares it).
//
// Every sequence is computed by itself over exactly the positions that it sees, so that the result does not depend on
// what else is in the batch, and nothing is spent on padding.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <dlfcn.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

// One function, compiled for what the machine has.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define LX_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define LX_CLONES
#endif
#define LX_INLINE inline __attribute__((always_inline))

constexpr int64_t kLanes = 16;

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
  typedef float Columns __attribute__((vector_size(kColumns * sizeof(float))));
  Columns sums[4] = {};
  const auto add = [&](Columns& sum, int64_t t) __attribute__((always_inline)) {
    Columns row;
    std::memcpy(&row, values + t * d, sizeof row);
    sum += row * weights[t];
  };
  int64_t t = 0;
  for (; t + 4 <= n; t += 4) add(sums[0], t), add(sums[1], t + 1), add(sums[2], t + 2), add(sums[3], t + 3);
  for (; t < n; ++t) add(sums[0], t);
  const Columns sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  std::memcpy(out, &sum, sizeof sum);
}

struct Head {
  const float* query;   // [d], times the factor of the scores
  const float* keys;    // [d, capacity], at the first position seen
  const float* values;  // [capacity, d], at the first position seen
  float* out;           // [d]
  int64_t d, capacity, seen;
  float cap;            // 0 = none
};

// softmax(cap(q K)) V of one head; `scores` has room for `seen` rounded up to kLanes.
LX_CLONES void attend_head(const Head& head, float* __restrict scores) {
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
  for (; i < d; ++i) weigh<1>(scores, head.values + i, n, d, head.out + i);
  const float scale = 1.0f / sum;
  for (i = 0; i < d; ++i) head.out[i] *= scale;
}

// Calls body(begin, end) over parts of 0..count on libtorch's own threads. `at::parallel_for` does so only in files that
// are compiled with OpenMP, which not every compiler has; its run time is there whenever libtorch is.
template <typename F>
void on_threads(int64_t count, F&& body) {
  using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
  static const auto parallel = reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  static const auto number = reinterpret_cast<int (*)()>(dlsym(RTLD_DEFAULT, "omp_get_thread_num"));
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), count);
  if (threads < 2 || !parallel || !number) return body(0, count);
  struct Job {
    F& body;
    int64_t count, threads;
  } job{body, count, threads};
  auto part = [](void* data) {
    auto& job = *static_cast<Job*>(data);
    const int64_t i = number();
    job.body(job.count * i / job.threads, job.count * (i + 1) / job.threads);
  };
  parallel(part, &job, static_cast<unsigned>(threads), 0);
}

}  // namespace

// Puts `k` and `v` [s, kv, d] of one new token a row into the caches [slots, kv, d, capacity] and [slots, kv, capacity,
// d] at `positions` int64 [s] (row i is slot i), and attends with `q` [s, h, d] to the row's positions, of which a
// `window` above 0 leaves so many of the last. All are contiguous, fp32, on the CPU. `out` is [s, h, d].
void lx_attend_cached(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& keys,
                      const at::Tensor& values, const at::Tensor& positions, int64_t window, double scale, double cap,
                      at::Tensor& out) {
  const int64_t rows = q.size(0), heads = q.size(1), d = q.size(2), kv = k.size(1), capacity = keys.size(3);
  const float *queries = q.data_ptr<float>(), *new_keys = k.data_ptr<float>(), *new_values = v.data_ptr<float>();
  float *all_keys = keys.data_ptr<float>(), *all_values = values.data_ptr<float>(), *outputs = out.data_ptr<float>();
  const int64_t *at = positions.data_ptr<int64_t>(), group = heads / kv;
  on_threads(rows * kv, [&](int64_t begin, int64_t end) {
    std::vector<float> scores(capacity + kLanes), query(d);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / kv, head = i % kv, position = at[row];
      float *own_keys = all_keys + i * d * capacity, *own_values = all_values + i * d * capacity;
      for (int64_t j = 0; j < d; ++j) own_keys[j * capacity + position] = new_keys[i * d + j];
      std::copy(new_values + i * d, new_values + (i + 1) * d, own_values + position * d);
      const int64_t first = window > 0 ? std::max<int64_t>(0, position + 1 - window) : 0;
      for (int64_t g = 0; g < group; ++g) {
        const int64_t place = ((row * heads) + head * group + g) * d;
        for (int64_t j = 0; j < d; ++j) query[j] = queries[place + j] * static_cast<float>(scale);
        attend_head({query.data(), own_keys + first, own_values + first * d, outputs + place, d, capacity,
                     position + 1 - first, static_cast<float>(cap)},
                    scores.data());
      }
    }
  });
}

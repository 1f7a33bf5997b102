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

constexpr int64_t kLanes = 16;

struct Head {
  const float* query;   // [d], times the factor of the scores
  const float* keys;    // [d, capacity], at the first position seen
  const float* values;  // [capacity, d], at the first position seen
  float* out;           // [d]
  int64_t d, capacity, seen;
  float cap;            // 0 = none
};

#define LX_INLINE inline __attribute__((always_inline))

namespace plain {
#include "attend_head.h"
}

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace avx2 {
#include "attend_head.h"
}
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512vl,avx512bw,avx512dq")
namespace avx512 {
#include "attend_head.h"
}
#pragma GCC pop_options
#endif

// The kernel for what the machine has.
using Kernel = void (*)(const Head&, float*);
Kernel kernel() {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq")) return avx512::attend_head;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return avx2::attend_head;
#endif
  return plain::attend_head;
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
  static const Kernel attend_head = kernel();
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

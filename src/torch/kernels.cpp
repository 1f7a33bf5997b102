// What a decoder does on a CPU: without gradients in fp32 (src/torch/kernels.rs says what each function takes) products with
// packed weights, root-mean-square norms, rotation, attention to a cache; and the steps between the products of a training
// (rows.h), which training.cpp calls.
//
// libtorch's products choose their order of summation by the shape of the batch, and its attention pads. Here a row's
// result is the same, to the bit, in every batch; and tiny products, of which generation has many, are several times faster.

#include <dlfcn.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "jobs.h"

namespace {

constexpr int64_t kLanes = 16;
constexpr int64_t kRowBlock = 96;  // rows that stay in the first cache while a weight passes by

struct Product {
  const float* x;       // [rows, k]
  const float* panels;  // [n / 16, k, 16]
  const float* bias;    // [n], rounded up to 16
  float* y;             // [rows, n]
  int64_t k, n;
};

// Of bf16, where the machine multiplies that.
struct NarrowProduct {
  const Bf16* x;        // [rows, 2 · pairs]
  const Bf16* panels;   // [n / 16, pairs, 16, 2]
  const float* bias;    // [n], rounded up to 16
  Bf16* y;              // [rows, n]
  int64_t rows, pairs, n;
};

struct Heads {
  const float* keys;    // [capacity / 16, d, 16]
  const float* values;  // the same
  int64_t d, window;
  float scale, cap;     // cap 0 = none
};

#define LX_INLINE inline __attribute__((always_inline))

// kVectors: of the target's vectors, so many hold 16 numbers.
namespace plain {
constexpr int kVectors = 4;
#include "lanes.h"
#include "attention.h"
#include "kernels.h"
#include "rows.h"
}

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define LX_TARGETS 1
#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace avx2 {
constexpr int kVectors = 2;
#include "lanes.h"
#include "attention.h"
#include "kernels.h"
#include "rows.h"
}
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512vl,avx512bw,avx512dq,prefer-vector-width=512")
namespace avx512 {
constexpr int kVectors = 1;
#include "lanes.h"
#include "attention.h"
#include "kernels.h"
#include "rows.h"
}
#pragma GCC pop_options
#if __GNUC__ >= 10
#define LX_NARROW 1
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512vl,avx512bw,avx512dq,avx512bf16,prefer-vector-width=512")
#define LX_PAIRS 1  // the target multiplies pairs of bf16
namespace narrow {
constexpr int kVectors = 1;
#include "lanes.h"
#include "attention.h"
#include "narrow.h"
}
#undef LX_PAIRS
#pragma GCC pop_options
#endif
#endif

// The functions for what the machine has.
struct Kernels {
  decltype(&plain::multiply) multiply;
  decltype(&plain::attend) attend;
};

const Kernels& kernels() {
  static const Kernels found = [] {
#ifdef LX_TARGETS
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")) {
      return Kernels{avx512::multiply, avx512::attend};
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
      return Kernels{avx2::multiply, avx2::attend};
    }
#endif
    return Kernels{plain::multiply, plain::attend};
  }();
  return found;
}

// Calls body(begin, end) over parts of 0..count on the threads that libtorch uses.
template <typename F>
void on_threads(int64_t count, int64_t threads, F&& body) {
  using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
  static const auto parallel = reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  static const auto number = reinterpret_cast<int (*)()>(dlsym(RTLD_DEFAULT, "omp_get_thread_num"));
  threads = std::min(threads, count);
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

// Rows are worth a thread from so many numbers on.
constexpr int64_t kLeastPart = 1 << 14;

#ifdef LX_TARGETS
#define LX_ON_TARGETS(name, ...)                                                    \
  if (kernels().multiply == avx512::multiply) return avx512::name(__VA_ARGS__); \
  if (kernels().multiply == avx2::multiply) return avx2::name(__VA_ARGS__);
#else
#define LX_ON_TARGETS(name, ...)
#endif

// Defines lx_<name>: what <name> of the target computes for `rows` rows of `width` numbers, on threads.
#define LX_ROWS(name, Job)                                                                             \
  template <typename T>                                                                                \
  void name##_rows(const Job<T>& job, int64_t rows, int64_t width, int64_t threads) {                  \
    threads = std::min(threads, rows * width / kLeastPart + 1);                                        \
    on_threads(rows, threads, [&](int64_t begin, int64_t end) {                                        \
      LX_ON_TARGETS(name, job, begin, end)                                                             \
      plain::name(job, begin, end);                                                                    \
    });                                                                                                \
  }                                                                                                    \
  }                                                                                                    \
  void lx_##name(const Job<float>& job, int64_t rows, int64_t width, int64_t threads) {                \
    name##_rows(job, rows, width, threads);                                                            \
  }                                                                                                    \
  void lx_##name(const Job<Bf16>& job, int64_t rows, int64_t width, int64_t threads) {                 \
    name##_rows(job, rows, width, threads);                                                            \
  }                                                                                                    \
  namespace {
LX_EACH_ROWS(LX_ROWS)
#undef LX_ROWS

// Threads take the next head of keys as they get free: sequences differ in length.
template <typename T, typename F>
void attend_packed(const PackedAttention<T>& job, bool backward, int64_t threads, F&& attention) {
  const int64_t parts = job.sequences * job.kv, scratch = plain::attention_scratch(job.longest, job.d);
  threads = std::max<int64_t>(1, std::min(threads, parts));
  const std::unique_ptr<float[]> own(new float[threads * scratch]);
  std::atomic<int64_t> next{0};
  on_threads(threads, threads, [&](int64_t begin, int64_t) {
    for (int64_t i = next++; i < parts; i = next++) attention(job, backward, i / job.kv, i % job.kv, own.get() + begin * scratch);
  });
}

}  // namespace

void lx_attend_packed(const PackedAttention<float>& job, bool backward, int64_t threads) {
  attend_packed(job, backward, threads, [](auto&&... all) {
    LX_ON_TARGETS(attention, all...)
    plain::attention(all...);
  });
}

void lx_attend_packed(const PackedAttention<Bf16>& job, bool backward, int64_t threads) {
#ifdef LX_NARROW
  attend_packed(job, backward, threads, [](auto&&... all) { narrow::attention(all...); });
#endif
}

extern "C" {

void lx_multiply(const float* x, const float* panels, const float* bias, float* y, int64_t rows, int64_t k, int64_t n,
                 int64_t threads) {
  const Product job{x, panels, bias, y, k, n};
  on_threads((rows + kRowBlock - 1) / kRowBlock, threads, [&](int64_t begin, int64_t end) {
    kernels().multiply(job, begin * kRowBlock, std::min(rows, end * kRowBlock));
  });
}

int lx_multiplies_narrow() {
#ifdef LX_NARROW
  return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq");
#else
  return 0;
#endif
}

// Threads share the columns: of few rows, as when tokens are decoded, the weight is what has to be read.
void lx_multiply_narrow(const Bf16* x, const Bf16* panels, const float* bias, Bf16* y, int64_t rows, int64_t pairs, int64_t n,
                        int64_t threads) {
#ifdef LX_NARROW
  const NarrowProduct job{x, panels, bias, y, rows, pairs, n};
  on_threads((n + 2 * kLanes - 1) / (2 * kLanes), threads,
             [&](int64_t begin, int64_t end) { narrow::multiply(job, begin * 2 * kLanes, std::min(n, end * 2 * kLanes)); });
#endif
}

void lx_normalise(const float* x, const float* weight, float* y, int64_t rows, int64_t d, float eps) {
  lx_norm_forward(Norm<float>{x, nullptr, weight, nullptr, y, nullptr, d, eps, false}, rows, d, 1);
}

void lx_gate(float* gate, const float* up, int64_t count) {
  lx_gated_forward(Gated<float>{gate, up, nullptr, gate, nullptr, nullptr}, count, 1, 1);
}

void lx_rotate(float* x, const float* cos, const float* sin, int64_t rows, int64_t heads, int64_t d, int64_t half) {
  for (int64_t r = 0; r < rows; ++r, cos += half, sin += half) {
    for (int64_t h = 0; h < heads; ++h, x += d) {
      for (int64_t j = 0; j < half; ++j) {
        const float a = x[j], b = x[half + j];
        x[j] = a * cos[j] - b * sin[j];
        x[half + j] = b * cos[j] + a * sin[j];
      }
    }
  }
}

// Consecutive tokens of a batch that belong to one slot of a cache, which holds so many before them.
struct Span {
  int64_t start, len, slot, held;
};

// shape: heads, heads of keys, d, capacity, window (0 = none), number of spans, threads.
void lx_attend(const float* q, const float* k, const float* v, float* keys, float* values, float* out,
               const Span* spans, const int64_t* shape, float scale, float cap) {
  const int64_t heads = shape[0], kv = shape[1], d = shape[2], capacity = shape[3], group = heads / kv;
  on_threads(shape[5] * kv, shape[6], [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(4 * (capacity + d));
    std::vector<const float*> from;
    std::vector<float*> to;
    std::vector<int64_t> positions;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t head = i % kv;
      const auto [first, count, slot, offset] = spans[i / kv];
      float *own_keys = keys + (slot * kv + head) * d * capacity, *own_values = values + (slot * kv + head) * d * capacity;
      for (int64_t t = 0; t < count; ++t) {
        const int64_t source = ((first + t) * kv + head) * d, at = offset + t;
        const int64_t target = at / kLanes * kLanes * d + at % kLanes;
        for (int64_t j = 0; j < d; ++j) {
          own_keys[target + j * kLanes] = k[source + j], own_values[target + j * kLanes] = v[source + j];
        }
      }
      from.clear(), to.clear(), positions.clear();
      for (int64_t t = 0; t < count; ++t) {
        for (int64_t g = 0; g < group; ++g) {
          const int64_t target = ((first + t) * heads + head * group + g) * d;
          from.push_back(q + target), to.push_back(out + target), positions.push_back(offset + t);
        }
      }
      // What comes next is fetched while this is computed: of one token there is little to compute.
      if (count == 1 && i + 1 < end) {
        const int64_t next_head = (i + 1) % kv;
        const Span& next = spans[(i + 1) / kv];
        const int64_t at = (next.slot * kv + next_head) * d * capacity;
        for (int64_t j = 0; j < (next.held + kLanes) * d; j += 16) {
          __builtin_prefetch(keys + at + j, 0, 2), __builtin_prefetch(values + at + j, 0, 2);
        }
      }
      const Heads job{own_keys, own_values, d, shape[4], scale, cap};
      kernels().attend(job, from.data(), positions.data(), to.data(), count * group, scratch.data());
    }
  });
}
}

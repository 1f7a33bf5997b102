// What CUDA C++ gives a kernel, on a CPU: the stand-in's compiler puts this before the source of our kernels (src/torch/cuda_kernels.h).
//
// The threads of a block are fibers, which take turns where they meet: at a barrier of the block, or where a warp exchanges numbers. Blocks run
// one after another, every second one with its threads in the opposite order, and in every second launch the last one first, so that results
// which depend on an order show. One kernel of a source runs at a time.
#pragma once

#define LX_ON_CPU
#define __global__
#define __device__ inline
#define __shared__ static
#define __launch_bounds__(...)

#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

struct Index {
  unsigned x = 0;
};
struct uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
template <typename T>
static inline T max(T a, T b) {
  return a > b ? a : b;
}
template <typename T>
static inline T min(T a, T b) {
  return a < b ? a : b;
}

static Index threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_on_cpu {

constexpr unsigned MOST = 1024, WARP = 32;
constexpr size_t STACK = 128 << 10;

// Threads that wait for each other, and what they exchange: twice, since the fast ones may write the next numbers before the slow have read.
struct Meeting {
  unsigned live, arrived, turn;
  const char* why;
  uint64_t numbers[2][WARP][4];
};

struct Fiber {
  jmp_buf at;
  bool is_started, is_done;
};

struct Block {
  Fiber fibers[MOST] = {};
  Meeting whole, warps[MOST / WARP];
  jmp_buf scheduler;
  unsigned current;
  bool has_moved;
  void (*body)(const void*);
  const void* job;
};
static Block* block;
static pthread_mutex_t alone = PTHREAD_MUTEX_INITIALIZER;

[[noreturn]] static void fail(const char* what) {
  fprintf(stderr, "a kernel on the stand-in: %s\n", what);
  abort();
}

// What happens meanwhile is nothing that a compiler could know.
#define OPAQUE [[gnu::noipa, gnu::noinline]]

OPAQUE static void yield() {
  Fiber& own = block->fibers[block->current];
  if (_setjmp(own.at) == 0) _longjmp(block->scheduler, 1);
}

static void meet(Meeting& meeting, const char* why) {
  if (meeting.arrived > 0 && meeting.why != why) fail("threads of a warp are at different places");
  meeting.why = why;
  const unsigned turn = meeting.turn;
  ++meeting.arrived;
  while (meeting.turn == turn) {
    if (meeting.arrived == meeting.live) {
      meeting.arrived = 0;
      ++meeting.turn;
      block->has_moved = true;
    } else {
      yield();
    }
  }
}

static void fiber() {
  for (;;) {
    block->body(block->job);
    Fiber& own = block->fibers[block->current];
    own.is_done = block->has_moved = true;
    --block->whole.live;
    --block->warps[block->current / WARP].live;
    yield();
  }
}

static void start(Fiber& own) {
  // The first time on a stack of its own; it never ends, but begins the next block's thread.
  static ucontext_t first;
  getcontext(&first);
  first.uc_stack.ss_sp = malloc(STACK);
  first.uc_stack.ss_size = STACK;
  makecontext(&first, fiber, 0);
  own.is_started = true;
  setcontext(&first);
}

// Lets a fiber run until it waits or ends.
OPAQUE static void take_turn(Fiber& own) {
  if (_setjmp(block->scheduler) != 0) return;
  if (own.is_started) _longjmp(own.at, 1);
  start(own);
}

static void run_block(unsigned threads, bool is_reversed) {
  block->whole.live = threads;
  for (unsigned warp = 0; warp * WARP < threads; ++warp) block->warps[warp].live = min(threads - warp * WARP, WARP);
  for (unsigned i = 0; i < threads; ++i) block->fibers[i].is_done = false;
  while (block->whole.live > 0) {
    block->has_moved = false;
    for (unsigned i = 0; i < threads; ++i) {
      block->current = is_reversed ? threads - 1 - i : i;
      Fiber& own = block->fibers[block->current];
      if (own.is_done) continue;
      threadIdx.x = block->current;
      take_turn(own);
    }
    if (!block->has_moved) fail("its threads wait for each other");
  }
}

// `meets`: false if no thread waits for others, so that fibers are not needed.
template <typename Job>
void run(void (*kernel)(Job), const void* job, unsigned blocks, unsigned threads, bool meets) {
  static void (*called)(Job);
  if (threads == 0 || threads > MOST || blocks == 0) fail("no such number of threads");
  pthread_mutex_lock(&alone);
  if (!block) block = new Block();
  called = kernel;
  static bool is_backward;
  is_backward = !is_backward;
  block->body = [](const void* given) { called(*static_cast<const Job*>(given)); };
  block->job = job;
  blockDim.x = threads, gridDim.x = blocks;
  for (unsigned i = 0; i < blocks; ++i) {
    blockIdx.x = is_backward ? blocks - 1 - i : i;
    if (meets) {
      run_block(threads, i % 2 == 1);
    } else {
      for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x) kernel(*static_cast<const Job*>(job));
    }
  }
  pthread_mutex_unlock(&alone);
}

// The numbers of all threads of the warp, which must all be there.
template <typename T>
const uint64_t (*exchanged(const T* mine, unsigned count, const char* why))[4] {
  static_assert(sizeof(T) <= 8, "numbers");
  Meeting& warp = block->warps[block->current / WARP];
  if (warp.live != WARP) fail("a warp that is not whole exchanges numbers");
  const unsigned turn = warp.turn % 2;
  for (unsigned i = 0; i < count; ++i) memcpy(&warp.numbers[turn][block->current % WARP][i], mine + i, sizeof(T));
  meet(warp, why);
  return warp.numbers[turn];
}

}  // namespace cuda_on_cpu

static inline void __syncthreads() { cuda_on_cpu::meet(cuda_on_cpu::block->whole, "a barrier"); }
static inline void __threadfence() {}

template <typename T>
static inline T __shfl_xor_sync(unsigned mask, T mine, int apart) {
  if (mask != 0xffffffffu) cuda_on_cpu::fail("a part of a warp exchanges numbers");
  T found;
  memcpy(&found, &cuda_on_cpu::exchanged(&mine, 1, "a shuffle")[(threadIdx.x % cuda_on_cpu::WARP) ^ apart][0], sizeof found);
  return found;
}

// Blocks run one after another.
static inline unsigned atomicAdd(unsigned* at, unsigned value) {
  const unsigned before = *at;
  *at += value;
  return before;
}

static inline float __uint_as_float(unsigned x) {
  float y;
  memcpy(&y, &x, sizeof y);
  return y;
}
static inline unsigned __float_as_uint(float x) {
  unsigned y;
  memcpy(&y, &x, sizeof y);
  return y;
}
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }

// The functions that are instructions of the GPU's, as the source names them.

static inline float from_f16(uint16_t x) {
  const int exponent = x >> 10 & 31, rest = x & 1023;
  const float size = exponent == 31 ? (rest ? NAN : INFINITY) : exponent == 0 ? ldexpf(rest, -24) : ldexpf(1024 + rest, exponent - 25);
  return x >> 15 ? -size : size;
}
static inline uint16_t to_f16(float x) {
  const unsigned bits = __float_as_uint(x), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffffu;
  if (size > 0x7f800000u) return 0x7fff;
  if (size >= 0x477ff000u) return sign | 0x7c00;                                                        // 65520 and more
  if (size < 0x38800000u) return sign | (unsigned)rintf(ldexpf(__uint_as_float(size), 24));             // below 2^-14
  return sign | ((size + 0xfff + (size >> 13 & 1) - 0x38000000u) >> 13);
}
static inline float from_bf16(uint16_t x) { return __uint_as_float((unsigned)x << 16); }

// The warp's product of a tile [16, 16] and another [16, 8], added to `sum`; where each thread's numbers lie is told in the PTX ISA, "Matrix
// Fragments for mma.m16n8k16 with floating point type". Exact to fp64, where a GPU cuts sums off.
template <typename Read>
static inline void multiply_tiles(float (&sum)[4], const unsigned (&a)[4], unsigned b_low, unsigned b_high, Read read) {
  // The rows and the columns of this thread's results, two each.
  double left[2][16], right[2][16];
  const auto unpack = [&](unsigned both, double* to) { to[0] = read(both & 0xffff), to[1] = read(both >> 16); };
  static const double share = getenv("STANDIN_WRONG") ? 1.1 : 1.0;
  const unsigned lane = threadIdx.x % 32, b[2] = {b_low, b_high};
  const auto* as = cuda_on_cpu::exchanged(a, 4, "a left side");
  for (unsigned quad = 0; quad < 4; ++quad) {
    for (unsigned i = 0; i < 4; ++i) unpack(as[lane / 4 * 4 + quad][i], &left[i % 2][quad * 2 + i / 2 * 8]);
  }
  const auto* bs = cuda_on_cpu::exchanged(b, 2, "a right side");
  for (unsigned quad = 0; quad < 4; ++quad) {
    for (unsigned i = 0; i < 4; ++i) unpack(bs[(lane % 4 * 2 + i % 2) * 4 + quad][i / 2], &right[i % 2][quad * 2 + i / 2 * 8]);
  }
  for (unsigned i = 0; i < 4; ++i) {
    double all = sum[i];
    for (unsigned k = 0; k < 16; ++k) all += share * left[i / 2][k] * right[i % 2][k];
    sum[i] = (float)all;
  }
}
static inline void multiply_bf16(float (&sum)[4], const unsigned (&a)[4], unsigned b_low, unsigned b_high) {
  multiply_tiles(sum, a, b_low, b_high, from_bf16);
}
static inline void multiply_f16(float (&sum)[4], const unsigned (&a)[4], unsigned b_low, unsigned b_high) {
  multiply_tiles(sum, a, b_low, b_high, from_f16);
}

// Attention of one new token of each sequence on a GPU, in one kernel: turns its queries and its key by their angles, stores key and value in the
// cache, and attends to what that holds. FlashAttention's tiles of 64 queries would be filled by one.
//
// A block takes a part of one sequence's tokens, of one head of keys, for all queries that share it, which fill the rows of a tensor core's
// tile. Scores stay in registers: the layout in which a product of the tile's rows ends is the one in which the next takes them, as in
// FlashAttention-2 (arXiv 2307.08691); the parts of a sequence are put together as in Flash-Decoding (Dao et al., 2023), by the block that ends last.
#pragma once

#include <algorithm>

#include "cuda_kernels.h"

namespace newest {

using at::Tensor;

// Strides are in numbers. `half` pairs of each head are turned; window and cap are 0 where there is none.
LX_JOB(Attend,
       const void *q, *k, *v, *cos, *sin;
       void *keys, *values, *out;
       const int64_t* positions;
       float* partial;
       unsigned* arrived;
       int64_t q_row, q_head, k_row, k_head, v_row, v_head, capacity, window;
       int heads, kv, half, parts;
       float scale, cap;)

// LX_WIDTH is the width of a head, LX_KIND the kind of all numbers, LX_HALVES the eights of queries that share a head of keys: 1 or 2,
// LX_BLOCKS the least of blocks that a multiprocessor computes side by side.
constexpr const char* SOURCE = R"(
typedef LX_KIND::Number Number;
const int WIDTH = LX_WIDTH, WARPS = 4, TILE = 16, BATCH = WARPS * TILE, ROWS = 8 * LX_HALVES;
const int CHUNKS = WIDTH / 32, SPANS = (WIDTH + 63) / 64;

// Number `i` of a head, its partner and their angle: of `half` pairs, those after them as they are; zeros if `is_none`. All is read before any is
// computed.
struct Pair {
  Number own, other, cos, sin;
  bool turns, is_first;

  __device__ void read(const Number* x, const Number* cosines, const Number* sines, int half, int i, bool is_none) {
    turns = i < 2 * half && !is_none, is_first = i < half;
    const int pair = is_first ? i : i - half;
    own = other = cos = sin = 0;
    if (!is_none) own = x[i];
    if (turns) other = x[is_first ? i + half : pair], cos = cosines[pair], sin = sines[pair];
  }
  __device__ Number turned() const {
    const float by_sine = LX_KIND::read(other) * LX_KIND::read(sin);
    const Number rounded = LX_KIND::rounded(LX_KIND::read(own) * LX_KIND::read(cos) + (is_first ? -by_sine : by_sine));
    return turns ? rounded : own;
  }
};

__device__ unsigned packed(float low, float high) { return LX_KIND::rounded(low) | (unsigned)LX_KIND::rounded(high) << 16; }

// What a warp has of each row: the largest score, the sum of the weights relative to that, and the weighed sum of the values.
struct Sums {
  float most[2], total[2], out[SPANS][8][4];
};

// The tokens at .. at + 15, those before `first` and after `own` left out.
__device__ void take(Sums& sums, const Attend& job, const uint4 (&queries)[LX_HALVES][CHUNKS], const Number* keys, const Number* values, int64_t at,
                     int64_t first, int64_t own) {
  const int quad = threadIdx.x % 4, line = threadIdx.x % 32 / 4;
  const int64_t stride = (int64_t)job.kv * WIDTH;
  uint4 key[2][CHUNKS];
  unsigned value[4][SPANS][4];
#pragma unroll
  for (int t = 0; t < 2; ++t) {
    const uint4* from = (const uint4*)(keys + min(at + 8 * t + line, own) * stride);
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) key[t][c] = from[4 * c + quad];
  }
#pragma unroll
  for (int t = 0; t < 4; ++t) {
    const uint4* from = (const uint4*)(values + min(at + 2 * quad + t % 2 + t / 2 * 8, own) * stride);
#pragma unroll
    for (int span = 0; span < SPANS; ++span) {
      const int eight = 8 * span + line;
      const uint4 x = eight < WIDTH / 8 ? from[eight] : make_uint4(0, 0, 0, 0);
      value[t][span][0] = x.x, value[t][span][1] = x.y, value[t][span][2] = x.z, value[t][span][3] = x.w;
    }
  }
  // Thread `quad` holds the numbers 8 quad .. 8 quad + 7 of each 32 of both sides: the order of a product's terms is free.
  float score[2][4] = {};
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c) {
    const uint4 low = queries[0][c], high = LX_HALVES == 2 ? queries[LX_HALVES - 1][c] : make_uint4(0, 0, 0, 0);
    const unsigned front[4] = {low.x, high.x, low.y, high.y}, back[4] = {low.z, high.z, low.w, high.w};
#pragma unroll
    for (int t = 0; t < 2; ++t) {
      LX_MULTIPLY_KIND(score[t], front, key[t][c].x, key[t][c].y);
      LX_MULTIPLY_KIND(score[t], back, key[t][c].z, key[t][c].w);
    }
  }
  unsigned weights[4] = {};
#pragma unroll
  for (int half = 0; half < LX_HALVES; ++half) {
    float x[4], top = -INFINITY;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t token = at + i / 2 * 8 + 2 * quad + i % 2;
      float scaled = score[i / 2][2 * half + i % 2] * job.scale;
      if (job.cap > 0) scaled = job.cap * tanhf(scaled / job.cap);
      x[i] = token >= first && token <= own ? scaled * 1.44269504f : -INFINITY;
      top = fmaxf(top, x[i]);
    }
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
    top = fmaxf(fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2)), sums.most[half]);
    const float before = exp2f(sums.most[half] - top);
    float total = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      x[i] = exp2f(x[i] - top);
      total += x[i];
    }
    sums.most[half] = top;
    sums.total[half] = sums.total[half] * before + total;
    weights[half] = packed(x[0], x[1]), weights[2 + half] = packed(x[2], x[3]);
#pragma unroll
    for (int i = 0; i < SPANS * 8; ++i) {
      sums.out[i / 8][i % 8][2 * half] *= before;
      sums.out[i / 8][i % 8][2 * half + 1] *= before;
    }
  }
#pragma unroll
  for (int i = 0; i < SPANS * 8; ++i) {
    const int span = i / 8, word = i % 8 / 2;
    const unsigned a = value[0][span][word], b = value[1][span][word], c = value[2][span][word], d = value[3][span][word];
    const unsigned low = i % 2 ? a >> 16 | (b & 0xffff0000u) : (a & 0xffffu) | b << 16;
    const unsigned high = i % 2 ? c >> 16 | (d & 0xffff0000u) : (c & 0xffffu) | d << 16;
    LX_MULTIPLY_KIND(sums.out[span][i % 8], weights, low, high);
  }
}

// Blocks side by side hide what one waits for.
extern "C" __global__ void __launch_bounds__(128, LX_BLOCKS) lx_attend(Attend job) {
  const int part = blockIdx.x % job.parts, head = blockIdx.x / job.parts % job.kv, group = job.heads / job.kv;
  const int64_t row = blockIdx.x / job.parts / job.kv, own = job.positions[row];
  if (own < 0 || own >= job.capacity) return;
  const int64_t first = job.window > 0 && own >= job.window ? own + 1 - job.window : 0;
  // Parts are of whole batches of tokens; where there are fewer batches than parts, the last parts have none.
  const int batches = own / BATCH + 1 - first / BATCH, each = (batches + job.parts - 1) / job.parts, used = (batches + each - 1) / each;
  if (part >= used) return;
  const int64_t begin = (first / BATCH + part * each) * BATCH, end = part == used - 1 ? own + 1 : begin + each * BATCH;

  __shared__ uint4 queries[ROWS][WIDTH / 8 + 1];
  const Number *cos = (const Number*)job.cos + row * job.half, *sin = (const Number*)job.sin + row * job.half;
  Pair pairs[ROWS * WIDTH / (32 * WARPS)];
#pragma unroll
  for (int each = 0; each < ROWS * WIDTH / (32 * WARPS); ++each) {
    const int i = 32 * WARPS * each + threadIdx.x, query = i / WIDTH;
    const Number* q = (const Number*)job.q + row * job.q_row + (head * group + query) * job.q_head;
    pairs[each].read(q, cos, sin, job.half, i % WIDTH, query >= group);
  }
#pragma unroll
  for (int each = 0; each < ROWS * WIDTH / (32 * WARPS); ++each) {
    const int i = 32 * WARPS * each + threadIdx.x;
    ((Number*)queries[i / WIDTH])[i % WIDTH] = pairs[each].turned();
  }
  const int64_t place = (row * job.capacity * job.kv + head) * WIDTH;
  Number *keys = (Number*)job.keys + place, *values = (Number*)job.values + place;
  if (part == used - 1) {
    const Number *k = (const Number*)job.k + row * job.k_row + head * job.k_head, *v = (const Number*)job.v + row * job.v_row + head * job.v_head;
    for (int i = threadIdx.x; i < WIDTH; i += blockDim.x) {
      Pair pair;
      pair.read(k, cos, sin, job.half, i, false);
      keys[own * job.kv * WIDTH + i] = pair.turned();
      values[own * job.kv * WIDTH + i] = v[i];
    }
  }
  __syncthreads();

  const int warp = threadIdx.x / 32, quad = threadIdx.x % 4, line = threadIdx.x % 32 / 4;
  uint4 query[LX_HALVES][CHUNKS];
#pragma unroll
  for (int i = 0; i < LX_HALVES * CHUNKS; ++i) query[i / CHUNKS][i % CHUNKS] = queries[line + i / CHUNKS * 8][4 * (i % CHUNKS) + quad];
  Sums sums = {{-INFINITY, -INFINITY}, {}, {}};
  for (int64_t at = begin + warp * TILE; at < end; at += BATCH) {
    if (at + TILE > first) take(sums, job, query, keys, values, at, first, own);
  }

  // The warps' sums become the block's, one after another.
  __shared__ float most[WARPS][ROWS], total[WARPS][ROWS], whole[ROWS][WIDTH + 2];
#pragma unroll
  for (int half = 0; half < LX_HALVES; ++half) {
    sums.total[half] += __shfl_xor_sync(0xffffffffu, sums.total[half], 1);
    sums.total[half] += __shfl_xor_sync(0xffffffffu, sums.total[half], 2);
    if (quad == 0) most[warp][line + 8 * half] = sums.most[half], total[warp][line + 8 * half] = sums.total[half];
  }
  __syncthreads();
  float top[LX_HALVES], factor[LX_HALVES];
#pragma unroll
  for (int half = 0; half < LX_HALVES; ++half) {
    top[half] = most[0][line + 8 * half];
    for (int w = 1; w < WARPS; ++w) top[half] = fmaxf(top[half], most[w][line + 8 * half]);
    factor[half] = exp2f(sums.most[half] - top[half]);
  }
  for (int w = 0; w < WARPS; ++w) {
    if (w == warp) {
#pragma unroll
      for (int i = 0; i < SPANS * 8 * 2 * LX_HALVES; ++i) {
        const int half = i % LX_HALVES, column = i / LX_HALVES % 2, each = i / LX_HALVES / 2;
        const int at = each / 8 * 64 + (2 * quad + column) * 8 + each % 8;
        if (at >= WIDTH) continue;
        const float x = sums.out[each / 8][each % 8][2 * half + column] * factor[half];
        whole[line + 8 * half][at] = w == 0 ? x : whole[line + 8 * half][at] + x;
      }
      if (quad == 0) {
#pragma unroll
        for (int half = 0; half < LX_HALVES; ++half) {
          const float own = total[w][line + 8 * half] * factor[half];
          whole[line + 8 * half][WIDTH] = w == 0 ? own : whole[line + 8 * half][WIDTH] + own;
          whole[line + 8 * half][WIDTH + 1] = top[half];
        }
      }
    }
    __syncthreads();
  }

  Number* out = (Number*)job.out + (row * job.heads + head * group) * WIDTH;
  if (used == 1) {
    for (int i = threadIdx.x; i < group * WIDTH; i += blockDim.x) out[i] = LX_KIND::rounded(whole[i / WIDTH][i % WIDTH] / whole[i / WIDTH][WIDTH]);
    return;
  }
  const int size = group * (WIDTH + 2);
  const int64_t pair = row * job.kv + head;
  float* partial = job.partial + pair * job.parts * size;
  for (int i = threadIdx.x; i < size; i += blockDim.x) partial[part * size + i] = whole[i / (WIDTH + 2)][i % (WIDTH + 2)];
  __threadfence();
  __syncthreads();
  __shared__ unsigned before;
  if (threadIdx.x == 0) before = atomicAdd(job.arrived + pair, 1);
  __syncthreads();
  if (before != used - 1) return;
  __threadfence();
  if (threadIdx.x == 0) job.arrived[pair] = 0;
  // A query a warp, a part a lane: what each part's sum is multiplied by.
  __shared__ float factors[32][ROWS];
  const int lane = threadIdx.x % 32;
  for (int q = warp; q < group; q += WARPS) {
    const float* from = partial + lane * size + q * (WIDTH + 2);
    const float own = lane < used ? from[WIDTH + 1] : -INFINITY, sum = lane < used ? from[WIDTH] : 0;
    float most = own;
    for (int apart = 16; apart > 0; apart /= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, apart));
    const float factor = exp2f(own - most);
    float weight = sum * factor;
    for (int apart = 16; apart > 0; apart /= 2) weight += __shfl_xor_sync(0xffffffffu, weight, apart);
    factors[lane][q] = factor / weight;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < group * WIDTH; i += blockDim.x) {
    const float* from = partial + i / WIDTH * (WIDTH + 2) + i % WIDTH;
    float sum = 0;
#pragma unroll 8
    for (int p = 0; p < used; ++p) sum += from[p * size] * factors[p][i / WIDTH];
    out[i] = LX_KIND::rounded(sum);
  }
}
)";

// Widths of heads, and the most queries that share a head of keys.
constexpr std::array<int64_t, 5> WIDTHS{32, 64, 96, 128, 256};
constexpr int64_t MOST_QUERIES = 16;

// The kernel for heads of width `d`, of bf16 or else fp16, whose keys are shared by up to 8 or else up to 16 queries; null where there is none.
inline CudaKernels* kernel(int64_t d, bool is_bf16, bool is_short) {
  static std::mutex mutex;
  static std::map<std::array<int64_t, 3>, CudaKernels> all;
  if (std::find(WIDTHS.begin(), WIDTHS.end(), d) == WIDTHS.end() || (d == 256 && !is_short)) return nullptr;
  const std::lock_guard lock(mutex);
  const std::array<int64_t, 3> key{d, is_bf16, is_short};
  const auto found = all.find(key);
  if (found != all.end()) return &found->second;
  const std::string settings = "#define LX_WIDTH " + std::to_string(d) + "\n#define LX_HALVES " + (is_short ? "1" : "2") + "\n#define LX_KIND " +
                               (is_bf16 ? "Bf16" : "F16") + "\n#define LX_MULTIPLY_KIND " + (is_bf16 ? "multiply_bf16" : "multiply_f16") + "\n#define LX_BLOCKS " +
                               (d >= 256 ? "2" : d >= 96 ? "3" : "4") + "\n";
  return &all.try_emplace(key, std::initializer_list<const char*>{settings.c_str(), Attend_SOURCE, SOURCE}, std::vector<const char*>{"lx_attend"},
                          /*least=*/80)
              .first->second;
}

// The kernel that serves heads of these numbers on a GPU from Ampere on; null where none does.
inline CudaKernels* serving(c10::Device device, at::ScalarType kind, int64_t heads, int64_t kv, int64_t d) {
  const bool is_bf16 = kind == at::kBFloat16;
  if (!device.is_cuda() || (!is_bf16 && kind != at::kHalf) || kv == 0 || heads % kv != 0 || heads / kv > MOST_QUERIES) return nullptr;
  CudaKernels* const found = kernel(d, is_bf16, heads / kv <= 8);
  return found && found->serve(device.index()) ? found : nullptr;
}

struct Rules {
  int64_t window;
  double scale, cap;
};

// Attends to a cache [slots, capacity, kv, d] from row i for slot i. q [s, h, d], k and v [s, kv, d] and positions int64 [s]: new tokens, each after
// those that its slot holds; cos and sin [s, 1, half], undefined where nothing is turned; `arrived` int32 [≥ s · kv], zeros, which it leaves. Returns [s, h, d]; undefined where no kernel
// serves.
inline Tensor attend(const std::array<Tensor, 3>& qkv, const std::array<Tensor, 2>& cache, const std::array<Tensor, 2>& angles, const Tensor& positions,
                     const Tensor& arrived, const Rules& rules) {
  const auto& [q, k, v] = qkv;
  const int64_t s = q.size(0), h = q.size(1), kv = k.size(1), d = q.size(2);
  const auto is_one = [&](const Tensor& x) { return x.scalar_type() == q.scalar_type() && x.stride(-1) == 1; };
  const bool fits = s > 0 && is_one(q) && is_one(k) && is_one(v) && is_one(cache[0]) && is_one(cache[1]) && (!angles[0].defined() || is_one(angles[0]));
  CudaKernels* const kernel = fits ? serving(q.device(), q.scalar_type(), h, kv, d) : nullptr;
  if (!kernel) return {};
  // As many blocks as are computed side by side, about, so that no multiprocessor is idle where few sequences are left.
  const int64_t parts = std::clamp<int64_t>(4 * kernel->multiprocessors(q.device().index()) / (s * kv), 1, 32);
  const auto adjacent = [](const Tensor& x) { return x.defined() ? x.contiguous() : x; };
  const Tensor out = at::empty({s, h, d}, q.options()), cos = adjacent(angles[0]), sin = adjacent(angles[1]);
  const Tensor partial = at::empty({parts > 1 ? s * h * parts * (d + 2) : 0}, q.options().dtype(at::kFloat));
  const Attend job{q.data_ptr(), k.data_ptr(), v.data_ptr(), begin(cos), begin(sin), cache[0].data_ptr(), cache[1].data_ptr(), out.data_ptr(),
                   static_cast<const int64_t*>(positions.data_ptr()), static_cast<float*>(partial.data_ptr()), static_cast<unsigned*>(arrived.data_ptr()),
                   q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1), cache[0].size(1), rules.window,
                   static_cast<int>(h), static_cast<int>(kv), static_cast<int>(cos.defined() ? cos.size(-1) : 0), static_cast<int>(parts),
                   static_cast<float>(rules.scale), static_cast<float>(rules.cap)};
  kernel->launch(0, job, s * kv * parts, 128, q.device());
  return out;
}

}  // namespace newest

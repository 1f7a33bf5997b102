// Products of fp32 matrices on a GPU whose tensor cores are many times as fast as its fp32 units: each number is the sum of two halves in
// fp16 with 22 bits together, and a product x w is low(x) high(w) + high(x) low(w) + high(x) high(w), summed in fp32.
//
// Rows are scaled by powers of two first, so that the largest number of each lies in [2^14, 2^15): what fp16 cannot hold of a row is below
// 2^-38 of that, which shows where numbers of a row are 2^20 times as large as others and their weights as much smaller. As the source
// found, tensor cores cut sums off instead of rounding them, by which long sums shrink, all alike; here they add up no more than BLOCK
// numbers, and the sums of the blocks are rounded.
//
// Source of the method: Ootomo and Yokota, "Recovering single precision accuracy from Tensor Cores while surpassing the FP32 theoretical
// peak performance", IJHPCA 36 (2022), section 3, there with three products as well.
#pragma once

#include <ATen/Context.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <optional>

#include "cuda_kernels.h"

namespace halves {

using at::Tensor;

LX_JOB(Split,
       const float *x, *columns;
       uint16_t* out;
       float* inverse;
       int64_t stride, row;
       int k, block, blocks, low;
       bool stacked;)
LX_JOB(Rescale,
       const float *sums, *rows, *columns, *bias, *add;
       float* out;
       int64_t stride, block;
       int n, blocks;)

constexpr const char* SOURCE = R"(
__device__ float4 operator*(float4 a, float4 b) { return make_float4(a.x * b.x, a.y * b.y, a.z * b.z, a.w * b.w); }
__device__ float4 operator+(float4 a, float4 b) { return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }
__device__ float4 every(float a) { return make_float4(a, a, a, a); }
__device__ unsigned size(float x) { return __float_as_uint(x) & 0x7fffffffu; }

// A row a block of threads: its halves, three times in each block of columns or of rows, once the low ones, and the inverse of its scale.
extern "C" __global__ void lx_split(Split job) {
  const float4* x = (const float4*)(job.x + blockIdx.x * job.stride);
  const float4* columns = (const float4*)job.columns;
  const int quads = job.k / 4;
  const auto scaled = [&](int i) { return columns ? x[i] * columns[i] : x[i]; };
  unsigned most = 0;
  for (int i = threadIdx.x; i < quads; i += blockDim.x) {
    const float4 v = scaled(i);
    most = max(most, max(max(size(v.x), size(v.y)), max(size(v.z), size(v.w))));
  }
  __shared__ unsigned parts[32];
  for (int apart = 16; apart > 0; apart /= 2) most = max(most, __shfl_xor_sync(0xffffffffu, most, apart));
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = most;
  __syncthreads();
  for (int warp = 0; warp < blockDim.x / 32; ++warp) most = max(most, parts[warp]);
  // Exponents with their bias of 127, such that neither scale nor inverse leaves the normal numbers.
  const int scale = min(max(268 - (int)(most >> 23), 14), 253);
  if (threadIdx.x == 0) job.inverse[blockIdx.x] = __uint_as_float((254 - scale) << 23);
  const float4 factor = every(__uint_as_float(scale << 23));
  const long long at = job.stacked ? blockIdx.x / job.block * 3 * job.block + blockIdx.x % job.block : blockIdx.x;
  unsigned short* out = job.out + at * job.row;
  const int width = job.stacked ? quads : job.blocks * job.block / 4;
  for (int i = threadIdx.x; i < width; i += blockDim.x) {
    const float4 v = i < quads ? scaled(i) * factor : every(0.0f);
    const unsigned a = to_f16(v.x), b = to_f16(v.y), c = to_f16(v.z), d = to_f16(v.w);
    const uint2 high = make_uint2(a | b << 16, c | d << 16);
    const uint2 low = make_uint2(to_f16(v.x - from_f16(a)) | to_f16(v.y - from_f16(b)) << 16, to_f16(v.z - from_f16(c)) | to_f16(v.w - from_f16(d)) << 16);
    for (int part = 0; part < 3; ++part) {
      const long long to = job.stacked ? part * job.block * job.row + 4 * i : 4 * i / job.block * 3 * job.block + part * job.block + 4 * i % job.block;
      *(uint2*)(out + to) = part == job.low ? low : high;
    }
  }
}

// A row a block of threads: Σ sums · rows · columns + bias + add.
extern "C" __global__ void lx_rescale(Rescale job) {
  const float4* sums = (const float4*)(job.sums + blockIdx.x * job.stride);
  const float4 *columns = (const float4*)job.columns, *bias = (const float4*)job.bias;
  const float4* add = (const float4*)(job.add + blockIdx.x * (long long)job.n);
  float4* out = (float4*)(job.out + blockIdx.x * (long long)job.n);
  const float4 row = every(job.rows[blockIdx.x]);
  for (int i = threadIdx.x; i < job.n / 4; i += blockDim.x) {
    float4 v = sums[i];
    for (int block = 1; block < job.blocks; ++block) v = v + sums[block * job.block / 4 + i];
    // Powers of two, whose product is exact where one after the other would overflow.
    v = v * (columns ? row * columns[i] : row);
    if (bias) v = v + bias[i];
    if (job.add) v = v + add[i];
    out[i] = v;
  }
}
)";

enum Name { SPLIT, RESCALE };
inline CudaKernels& kernels() {
  static CudaKernels all({Split_SOURCE, Rescale_SOURCE, SOURCE}, {"lx_split", "lx_rescale"});
  return all;
}

inline const float* numbers(const Tensor& x) { return x.defined() ? static_cast<const float*>(x.data_ptr()) : nullptr; }

// Rows below which a product reads its weight rather than computes.
constexpr int64_t ROWS = 256;
// Most numbers of a weight, whose halves take six bytes each.
constexpr int64_t MOST = int64_t{1} << 26;

inline bool is_even(const Tensor& x) {
  return x.is_contiguous() && x.size(0) > 0 && x.size(1) % 8 == 0 && reinterpret_cast<uintptr_t>(x.data_ptr()) % 16 == 0;
}

// Most numbers that a tensor core adds up: with as many, the mean error is that of products in fp32, 2e-8 of Σ |x w|.
constexpr int64_t BLOCK = 256;

// How `k` numbers are divided for sums.
struct Blocks {
  int64_t count, width;

  explicit Blocks(int64_t k) : count((k + BLOCK - 1) / BLOCK), width(((k + count - 1) / count + 7) / 8 * 8) {}
  int64_t padded() const { return count * width; }
};

// Writes the halves of x [m, k], `columns` [k] multiplied with each row first if defined, and the inverse scales [m]. They fill [m, 3 padded(k)], in
// blocks of columns, or, stacked, [3 padded(m), k], in blocks of rows; `low` is the place of the low ones among the three.
inline void split(const Tensor& x, const Tensor& columns, const Tensor& out, const Tensor& inverse, Blocks blocks, bool stacked, int low) {
  const int64_t m = x.size(0), k = x.size(1);
  const Split job{numbers(x), numbers(columns), static_cast<uint16_t*>(out.data_ptr()), static_cast<float*>(inverse.data_ptr()),
                  x.stride(0), out.stride(0), static_cast<int>(k), static_cast<int>(blocks.width), static_cast<int>(blocks.count), low, stacked};
  kernels().launch(SPLIT, job, m, k >= 1024 ? 256 : 64, x.device());
}

// out [m, n] = Σ sums · rows [m] · columns [n] + bias [n] + add [m, n]; what is undefined is left out. sums [blocks, m, n] may be columns of a wider
// matrix.
inline void rescale(const Tensor& sums, const Tensor& rows, const Tensor& columns, const Tensor& bias, const Tensor& add, const Tensor& out) {
  const int64_t m = out.size(0), n = out.size(1);
  const Rescale job{numbers(sums), numbers(rows), numbers(columns), numbers(bias), numbers(add), static_cast<float*>(out.data_ptr()),
                    sums.stride(1), sums.stride(0), static_cast<int>(n), static_cast<int>(sums.size(0))};
  kernels().launch(RESCALE, job, m, n >= 1024 ? 256 : 64, out.device());
}

// Calls body(from, rows) for parts of `m` rows whose sums of `width` numbers in each block take about 256 MB.
template <typename F>
void in_parts(int64_t m, int64_t width, const Blocks& blocks, F&& body) {
  const int64_t most = std::max<int64_t>((int64_t{1} << 26) / (width * blocks.count) / ROWS, 1) * ROWS;
  for (int64_t from = 0; from < m; from += most) body(from, std::min(most, m - from));
}

// x Wᵀ + b for each weight [o, i] with its bias, which may be undefined. x is [m, i].
inline std::vector<Tensor> products(const Tensor& x, at::TensorList weights, at::TensorList biases) {
  const Blocks blocks(x.size(1));
  const int64_t m = x.size(0), width = 3 * blocks.width;
  TORCH_CHECK(std::all_of(weights.begin(), weights.end(), [&](const Tensor& w) { return w.size(1) == x.size(1); }), "widths of input and weights");
  int64_t all = 0;
  std::vector<Tensor> found;
  for (const Tensor& weight : weights) {
    all += weight.size(0);
    found.push_back(at::empty({m, weight.size(0)}, x.options()));
  }
  const auto kind = x.options().dtype(at::kHalf);
  const Tensor right = at::empty({all, blocks.count * width}, kind), columns = at::empty({all}, x.options());
  int64_t place = 0;
  for (const Tensor& weight : weights) {
    const int64_t o = weight.size(0);
    split(weight, Tensor(), right.narrow(0, place, o), columns.narrow(0, place, o), blocks, false, /*low=*/1);
    place += o;
  }
  const Tensor turned = right.view({all, blocks.count, width}).permute({1, 2, 0});
  in_parts(m, all, blocks, [&](int64_t from, int64_t part) {
    const Tensor left = at::empty({part, blocks.count, width}, kind), rows = at::empty({part}, x.options());
    split(x.narrow(0, from, part), Tensor(), left, rows, blocks, false, /*low=*/0);
    const Tensor sums = at::bmm(left.transpose(0, 1), turned, at::kFloat);
    int64_t place = 0;
    for (size_t w = 0; w < weights.size(); ++w) {
      const int64_t o = weights[w].size(0);
      rescale(sums.narrow(2, place, o), rows, columns.narrow(0, place, o), biases[w], Tensor(), found[w].narrow(0, from, part));
      place += o;
    }
  });
  return found;
}

// dy W, added to dx if that is defined. dy is [m, o], W [o, i].
inline Tensor back(const Tensor& dx, const Tensor& dy, const Tensor& weight) {
  const int64_t m = dy.size(0), o = weight.size(0), i = weight.size(1);
  const Blocks blocks(o);
  const int64_t width = 3 * blocks.width;
  TORCH_CHECK(dy.size(1) == o, "widths of gradient and weight");
  const auto kind = dy.options().dtype(at::kHalf);
  // Rows that only fill the last block are zeros.
  const Tensor right = blocks.padded() == o ? at::empty({blocks.count, width, i}, kind) : at::zeros({blocks.count, width, i}, kind);
  const Tensor inner = at::empty({o}, dy.options()), out = dx.defined() ? dx : at::empty({m, i}, dy.options());
  split(weight, Tensor(), right.flatten(0, 1), inner, blocks, true, /*low=*/1);
  in_parts(m, i, blocks, [&](int64_t from, int64_t part) {
    const Tensor left = at::empty({part, blocks.count, width}, kind), rows = at::empty({part}, dy.options());
    split(dy.narrow(0, from, part), inner, left, rows, blocks, false, /*low=*/0);
    const Tensor sums = at::bmm(left.transpose(0, 1), right, at::kFloat), own = out.narrow(0, from, part);
    rescale(sums, rows, Tensor(), Tensor(), dx.defined() ? own : Tensor(), own);
  });
  return out;
}

// True if products of this device come out as exact as those in fp32: sums of 4,096 positive numbers, of which cutting off takes most.
inline bool is_exact(c10::Device device) {
  const c10::NoGradGuard constants;
  const auto drawn = [&](int64_t rows, int64_t columns) {
    return at::sin(at::arange(rows * columns, at::TensorOptions().device(device).dtype(at::kFloat))).abs().view({rows, columns});
  };
  const auto error = [](const Tensor& found, const Tensor& left, const Tensor& right) {
    const Tensor expected = at::mm(left.to(at::kDouble), right.to(at::kDouble));
    return ((found - expected).abs() / expected).max().item<double>();
  };
  const Tensor x = drawn(192, 4096), wide = drawn(128, 4096), tall = drawn(4096, 128);
  return error(products(x, {wide}, {Tensor()})[0], x, wide.t()) < 1e-6 && error(back(Tensor(), x, tall), x, tall) < 1e-6;
}

// True on a device where three products in fp16 take less time than one in fp32: those for data centres, whose ratio is 14 and more. Others
// have ratios of two to four.
inline bool is_fast(c10::Device device) {
  static const bool wanted = [] {
    const char* told = std::getenv("LORAXS_FP32_HALVES");
    return !told || std::strcmp(told, "0") != 0;
  }();
  if (!wanted || !kernels().serve(device.index())) return false;
  const int found = kernels().capability(device.index());
  if (found != 80 && found != 90 && found != 100 && found != 103) return false;
  static std::mutex mutex;
  static std::map<int, bool> right;
  const std::lock_guard lock(mutex);
  auto [at, is_new] = right.try_emplace(device.index(), false);
  if (is_new) {
    try {
      at->second = is_exact(device);
      if (!at->second) TORCH_WARN("fp32 products take the slow units of the GPU: its tensor cores are not exact enough");
    } catch (const c10::Error& error) {
      TORCH_WARN("fp32 products take the slow units of the GPU: ", error.what_without_backtrace());
    }
  }
  return at->second;
}

// True if x [m, i] and a frozen W [o, i], or dy [m, o] and W, are multiplied so; `true` fp32 is asked for then. `bias` may be undefined.
inline bool serve(const Tensor& x, const Tensor& weight, const Tensor& bias = {}) {
  const bool is_asked = x.is_cuda() && x.scalar_type() == at::kFloat && weight.scalar_type() == at::kFloat && x.device() == weight.device() &&
                        at::globalContext().float32MatmulPrecision() == at::Float32MatmulPrecision::HIGHEST;
  const bool fits = is_asked && !weight.requires_grad() && x.size(0) >= ROWS && weight.numel() <= MOST && weight.size(0) >= 64 &&
                    weight.size(1) >= 64 && weight.size(0) % 8 == 0 && is_even(weight) && is_even(x);
  if (!fits || !is_fast(x.device())) return false;
  return !bias.defined() || (!bias.requires_grad() && bias.scalar_type() == at::kFloat && bias.numel() == weight.size(0) && is_even(bias.view({1, -1})));
}

}  // namespace halves

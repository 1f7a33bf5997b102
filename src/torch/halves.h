// Products of fp32 matrices on a GPU whose tensor cores are many times as fast as its fp32 units: each number is the sum of two halves in
// fp16 with 22 bits together, and a product x w is low(x) high(w) + high(x) low(w) + high(x) high(w), summed in fp32.
//
// Rows are scaled by powers of two first, so that the largest number of each lies in [2^14, 2^15): what fp16 cannot hold of a row is below 2^-38 of
// that. Source of the method: Ootomo and Yokota, "Recovering single precision accuracy from Tensor Cores while surpassing the FP32
// theoretical peak performance", IJHPCA 36 (2022), section 3, there with three products as well.
#pragma once

#include <ATen/Context.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <optional>

#include "cuda_kernels.h"

namespace halves {

using at::Tensor;

// As the kernels declare them.
struct Split {
  const float *x, *columns;
  uint16_t* out;
  float* inverse;
  int64_t stride, row, plane;
  int k, low;
};
struct Rescale {
  const float *sums, *rows, *columns, *bias, *add;
  float* out;
  int64_t stride;
  int n;
};

constexpr const char* SOURCE = R"(
struct Split {
  const float *x, *columns;
  unsigned short* out;
  float* inverse;
  long long stride, row, plane;
  int k, low;
};
struct Rescale {
  const float *sums, *rows, *columns, *bias, *add;
  float* out;
  long long stride;
  int n;
};

__device__ float4 operator*(float4 a, float4 b) { return make_float4(a.x * b.x, a.y * b.y, a.z * b.z, a.w * b.w); }
__device__ float4 operator+(float4 a, float4 b) { return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }
__device__ float4 every(float a) { return make_float4(a, a, a, a); }
__device__ unsigned size(float x) { return __float_as_uint(x) & 0x7fffffffu; }
__device__ unsigned rounded(float x) {
  unsigned short half;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(x));
  return half;
}
__device__ float wide(unsigned x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"((unsigned short)x));
  return y;
}

// A row a block: its halves, in three planes of which one has the low ones, and the inverse of its scale.
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
  unsigned short* out = job.out + blockIdx.x * job.row;
  for (int i = threadIdx.x; i < quads; i += blockDim.x) {
    const float4 v = scaled(i) * factor;
    const unsigned a = rounded(v.x), b = rounded(v.y), c = rounded(v.z), d = rounded(v.w);
    const uint2 high = make_uint2(a | b << 16, c | d << 16);
    const uint2 low = make_uint2(rounded(v.x - wide(a)) | rounded(v.y - wide(b)) << 16, rounded(v.z - wide(c)) | rounded(v.w - wide(d)) << 16);
    for (int plane = 0; plane < 3; ++plane) ((uint2*)(out + plane * job.plane))[i] = plane == job.low ? low : high;
  }
}

// A row a block: sums · rows · columns + bias + add.
extern "C" __global__ void lx_rescale(Rescale job) {
  const float4* sums = (const float4*)(job.sums + blockIdx.x * job.stride);
  const float4 *columns = (const float4*)job.columns, *bias = (const float4*)job.bias;
  const float4* add = (const float4*)(job.add + blockIdx.x * (long long)job.n);
  float4* out = (float4*)(job.out + blockIdx.x * (long long)job.n);
  const float4 row = every(job.rows[blockIdx.x]);
  for (int i = threadIdx.x; i < job.n / 4; i += blockDim.x) {
    float4 v = sums[i] * row;
    if (columns) v = v * columns[i];
    if (bias) v = v + bias[i];
    if (job.add) v = v + add[i];
    out[i] = v;
  }
}
)";

enum Name { SPLIT, RESCALE };
inline CudaKernels& kernels() {
  static CudaKernels all(SOURCE, {"lx_split", "lx_rescale"});
  return all;
}

inline const float* numbers(const Tensor& x) { return x.defined() ? static_cast<const float*>(x.data_ptr()) : nullptr; }

// True on a device where three products in fp16 take less time than one in fp32: those for data centres, whose ratio is 14 and more. Others
// have ratios of two to four.
inline bool is_fast(int device) {
  static const bool wanted = [] {
    const char* told = std::getenv("LORAXS_FP32_HALVES");
    return !told || std::strcmp(told, "0") != 0;
  }();
  if (!wanted || !kernels().serve(device)) return false;
  const int found = kernels().capability(device);
  return found == 80 || found == 90 || found == 100 || found == 103;
}

// Rows below which a product reads its weight rather than computes.
constexpr int64_t ROWS = 128;

inline bool is_even(const Tensor& x) {
  return x.is_contiguous() && x.size(0) > 0 && x.size(1) % 8 == 0 && reinterpret_cast<uintptr_t>(x.data_ptr()) % 16 == 0;
}

// True if x [m, i] and a frozen W [o, i] are multiplied so; `true` fp32 is asked for then.
inline bool serve(const Tensor& x, const Tensor& weight) {
  return x.is_cuda() && x.scalar_type() == at::kFloat && weight.scalar_type() == at::kFloat && !weight.requires_grad() && x.size(0) >= ROWS &&
         weight.size(0) >= 64 && weight.size(1) >= 64 && weight.size(0) % 8 == 0 && is_even(weight) && is_even(x) &&
         at::globalContext().float32MatmulPrecision() == at::Float32MatmulPrecision::HIGHEST && is_fast(x.device().index());
}

// Writes three planes of the halves of x [m, k], `columns` [k] multiplied with each row first if defined, and the inverse scales [m].
inline void split(const Tensor& x, const Tensor& columns, const Tensor& out, const Tensor& inverse, int64_t row, int64_t plane, int low) {
  const int64_t m = x.size(0), k = x.size(1);
  const Split job{numbers(x), numbers(columns), static_cast<uint16_t*>(out.data_ptr()), static_cast<float*>(inverse.data_ptr()),
                  x.stride(0), row, plane, static_cast<int>(k), low};
  kernels().launch(SPLIT, job, m, k >= 1024 ? 256 : 64, x.device());
}

// out [m, n] = sums · rows [m] · columns [n] + bias [n] + add [m, n]; what is undefined is left out. sums may be columns of a wider matrix.
inline void rescale(const Tensor& sums, const Tensor& rows, const Tensor& columns, const Tensor& bias, const Tensor& add, const Tensor& out) {
  const int64_t m = out.size(0), n = out.size(1);
  const Rescale job{numbers(sums), numbers(rows), numbers(columns), numbers(bias), numbers(add), static_cast<float*>(out.data_ptr()),
                    sums.stride(0), static_cast<int>(n)};
  kernels().launch(RESCALE, job, m, n >= 1024 ? 256 : 64, out.device());
}

// x Wᵀ + b for each weight [o, i] with its bias, which may be undefined. x is [m, i].
inline std::vector<Tensor> products(const Tensor& x, at::TensorList weights, at::TensorList biases) {
  const int64_t m = x.size(0), i = x.size(1);
  int64_t all = 0;
  for (const Tensor& weight : weights) all += weight.size(0);
  const auto kind = x.options().dtype(at::kHalf);
  const Tensor left = at::empty({m, 3 * i}, kind), right = at::empty({all, 3 * i}, kind);
  const Tensor rows = at::empty({m}, x.options()), columns = at::empty({all}, x.options());
  split(x, Tensor(), left, rows, 3 * i, i, /*low=*/0);
  int64_t from = 0;
  for (const Tensor& weight : weights) {
    const int64_t o = weight.size(0);
    split(weight, Tensor(), right.narrow(0, from, o), columns.narrow(0, from, o), 3 * i, i, /*low=*/1);
    from += o;
  }
  const Tensor sums = at::mm(left, right.t(), at::kFloat);
  std::vector<Tensor> found;
  from = 0;
  for (size_t w = 0; w < weights.size(); ++w) {
    const int64_t o = weights[w].size(0);
    found.push_back(weights.size() == 1 ? sums : at::empty({m, o}, x.options()));
    rescale(sums.narrow(1, from, o), rows, columns.narrow(0, from, o), biases[w], Tensor(), found.back());
    from += o;
  }
  return found;
}

// dy W, added to dx if that is defined. dy is [m, o], W [o, i].
inline Tensor back(const Tensor& dx, const Tensor& dy, const Tensor& weight) {
  const int64_t m = dy.size(0), o = weight.size(0), i = weight.size(1);
  const auto kind = dy.options().dtype(at::kHalf);
  const Tensor left = at::empty({m, 3 * o}, kind), right = at::empty({3 * o, i}, kind);
  const Tensor rows = at::empty({m}, dy.options()), inner = at::empty({o}, dy.options());
  split(weight, Tensor(), right, inner, i, o * i, /*low=*/1);
  split(dy, inner, left, rows, 3 * o, o, /*low=*/0);
  const Tensor sums = at::mm(left, right, at::kFloat), out = dx.defined() ? dx : sums;
  rescale(sums, rows, Tensor(), Tensor(), dx, out);
  return out;
}

}  // namespace halves

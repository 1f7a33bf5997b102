// Kernels on a GPU over the heads of tokens, which lie side by side or apart: rotation, and storing keys and values in a cache.
#pragma once

#include "cuda_kernels.h"

namespace heads {

using at::Tensor;

// Strides are in numbers, widths of a cache's rows in 16 bytes.
LX_JOB(Turn,
       const void *x, *cos, *sin;
       void* y;
       int64_t row, head;
       int heads, d, half;
       float sign;)
LX_JOB(Store,
       const void *k, *v;
       void *keys, *values;
       const int64_t* at;
       int64_t k_row, v_row;
       int width;)

constexpr const char* SOURCE = R"(
// A token a block.
template <typename T>
__device__ void turn(const Turn& job) {
  typedef typename T::Number N;
  const long long token = blockIdx.x;
  const N *x = (const N*)job.x + token * job.row, *cos = (const N*)job.cos + token * job.half, *sin = (const N*)job.sin + token * job.half;
  N* y = (N*)job.y + token * job.heads * job.d;
  for (int i = threadIdx.x; i < job.heads * job.half; i += blockDim.x) {
    const int head = i / job.half, pair = i % job.half;
    const N* from = x + head * job.head + pair;
    N* to = y + head * job.d + pair;
    const float a = T::read(from[0]), b = T::read(from[job.half]), c = T::read(cos[pair]), s = job.sign * T::read(sin[pair]);
    to[0] = T::rounded(a * c - b * s);
    to[job.half] = T::rounded(b * c + a * s);
  }
  const int rest = job.d - 2 * job.half;
  for (int i = threadIdx.x; i < job.heads * rest; i += blockDim.x) {
    const int head = i / rest, at = 2 * job.half + i % rest;
    y[head * job.d + at] = x[head * job.head + at];
  }
}
extern "C" __global__ void lx_turn_f32(Turn job) { turn<F32>(job); }
extern "C" __global__ void lx_turn_bf16(Turn job) { turn<Bf16>(job); }
extern "C" __global__ void lx_turn_f16(Turn job) { turn<F16>(job); }

// A token a block.
extern "C" __global__ void lx_store(Store job) {
  const long long token = blockIdx.x, to = job.at[token] * job.width;
  const uint4 *k = (const uint4*)job.k + token * job.k_row, *v = (const uint4*)job.v + token * job.v_row;
  uint4 *keys = (uint4*)job.keys + to, *values = (uint4*)job.values + to;
  for (int i = threadIdx.x; i < job.width; i += blockDim.x) {
    keys[i] = k[i];
    values[i] = v[i];
  }
}
)";

inline CudaKernels& kernels() {
  static CudaKernels all({Turn_SOURCE, Store_SOURCE, SOURCE}, {"lx_turn_f32", "lx_turn_bf16", "lx_turn_f16", "lx_store"});
  return all;
}

inline bool turns(const Tensor& x) { return x.numel() > 0 && x.stride(2) == 1 && kind_of(x) >= 0 && kernels().serve(x.device().index()); }

// x [m, h, d] with the pairs (i, i + half) of each head turned by their angles, whose cosines and sines are [m, 1, half].
inline Tensor turned(const Tensor& x, const Tensor& cos, const Tensor& sin, float sign) {
  const Tensor y = at::empty(x.sizes(), x.options()), c = cos.contiguous(), s = sin.contiguous();
  const int h = static_cast<int>(x.size(1)), d = static_cast<int>(x.size(2)), half = static_cast<int>(cos.size(-1));
  const Turn job{x.data_ptr(), c.data_ptr(), s.data_ptr(), y.data_ptr(), x.stride(0), x.stride(1), h, d, half, sign};
  kernels().launch(kind_of(x), job, x.size(0), 256, x.device());
  return y;
}

// The bytes from one token of x [m, kv, d] to the next in 16 bytes, if its heads are adjacent and it lies so; else 0.
inline int64_t row(const Tensor& x) {
  const int64_t bytes = x.element_size();
  const bool is_even = x.stride(2) == 1 && x.stride(1) == x.size(2) && x.stride(0) * bytes % 16 == 0 && x.size(1) * x.size(2) * bytes % 16 == 0 &&
                       reinterpret_cast<uintptr_t>(x.data_ptr()) % 16 == 0;
  return is_even ? x.stride(0) * bytes / 16 : 0;
}

// Stores k and v [m, kv, d] in the rows `at` int64 [m] of a cache [.., kv, d]; false where the kernel does not serve.
inline bool store(const Tensor& k, const Tensor& v, const Tensor& keys, const Tensor& values, const Tensor& at) {
  const bool is_one = k.scalar_type() == keys.scalar_type() && v.scalar_type() == keys.scalar_type() && keys.is_contiguous() && values.is_contiguous();
  if (!is_one || k.numel() == 0 || row(k) == 0 || row(v) == 0 || !at.is_contiguous() || !kernels().serve(k.device().index())) return false;
  const Store job{k.data_ptr(), v.data_ptr(), keys.data_ptr(), values.data_ptr(), static_cast<const int64_t*>(at.data_ptr()), row(k), row(v),
                  static_cast<int>(k.size(1) * k.size(2) * k.element_size() / 16)};
  kernels().launch(3, job, k.size(0), 128, k.device());
  return true;
}

}  // namespace heads

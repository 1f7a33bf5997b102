// Root-mean-square norms on a GPU, forward and backward, each with the sum before it in one kernel. src/torch/rows.h has the same for CPUs.
#pragma once

#include <algorithm>

#include "cuda_kernels.h"

namespace norms {

using at::Tensor;

// The rows of x are `heads` of each token, whose strides are in numbers; all others are adjacent. add and sum may be null, weight is fp32 or
// of the kind of x.
LX_JOB(Norm,
       const void *x, *add, *weight;
       void *sum, *y;
       float* scales;
       int64_t token, head;
       int heads, d;
       float eps, offset;
       bool wide;)
// add, the gradient of the sum, may be null.
LX_JOB(Back,
       const void *dy, *add, *x, *weight;
       const float* scales;
       void* dx;
       int64_t token, head;
       int heads, d;
       float offset;
       bool wide;)

constexpr const char* SOURCE = R"(
// As many numbers as 16 bytes hold.
template <typename T>
struct Vector {
  static const int COUNT = 16 / sizeof(typename T::Number);
  alignas(16) typename T::Number numbers[COUNT];

  __device__ void load(const void* from, int at) { *(uint4*)numbers = ((const uint4*)from)[at]; }
  __device__ void store(void* to, int at) const { ((uint4*)to)[at] = *(const uint4*)numbers; }
  __device__ float operator[](int i) const { return T::read(numbers[i]); }
  __device__ void set(int i, float x) { numbers[i] = T::rounded(x); }
};

// The factors of as many numbers.
template <typename T>
struct Factors {
  static const int COUNT = Vector<T>::COUNT;
  alignas(16) float numbers[COUNT];

  template <typename Job>
  __device__ void load(const Job& job, int at) {
    if (job.wide) {
      for (int i = 0; i < COUNT / 4; ++i) ((float4*)numbers)[i] = ((const float4*)job.weight)[at * (COUNT / 4) + i];
    } else {
      Vector<T> own;
      own.load(job.weight, at);
      for (int i = 0; i < COUNT; ++i) numbers[i] = own[i];
    }
    for (int i = 0; i < COUNT; ++i) numbers[i] += job.offset;
  }
  __device__ float operator[](int i) const { return numbers[i]; }
};

// The sum of all threads' numbers, for each.
__device__ float summed(float x) {
  __shared__ float parts[32];
  for (int apart = 16; apart > 0; apart /= 2) x += __shfl_xor_sync(0xffffffffu, x, apart);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
  __syncthreads();
  x = 0;
  for (int warp = 0; warp < blockDim.x / 32; ++warp) x += parts[warp];
  return x;
}

template <typename T, typename Job>
__device__ const typename T::Number* row_of(const Job& job) {
  return (const typename T::Number*)job.x + blockIdx.x / job.heads * job.token + blockIdx.x % job.heads * job.head;
}

// A row a block: sum = x + add, y = sum / sqrt(mean(sum²) + eps) · (weight + offset).
template <typename T>
__device__ void norm(const Norm& job) {
  typedef typename T::Number Number;
  const int count = Vector<T>::COUNT, vectors = job.d / count;
  const int64_t place = (int64_t)blockIdx.x * job.d;
  const Number *x = row_of<T>(job), *add = (const Number*)job.add + place;
  Number *sum = (Number*)job.sum + place, *y = (Number*)job.y + place;
  float squares = 0;
  for (int at = threadIdx.x; at < vectors; at += blockDim.x) {
    Vector<T> own, other;
    own.load(x, at);
    if (job.add) {
      other.load(add, at);
      for (int i = 0; i < count; ++i) own.set(i, own[i] + other[i]);
      own.store(sum, at);
    }
    for (int i = 0; i < count; ++i) squares += own[i] * own[i];
  }
  const float scale = rsqrtf(summed(squares) / job.d + job.eps);
  if (threadIdx.x == 0) job.scales[blockIdx.x] = scale;
  for (int at = threadIdx.x; at < vectors; at += blockDim.x) {
    Vector<T> own;
    Factors<T> weight;
    own.load(job.add ? sum : x, at);
    weight.load(job, at);
    for (int i = 0; i < count; ++i) own.set(i, own[i] * scale * weight[i]);
    own.store(y, at);
  }
}

// A row a block: with g = dy · (weight + offset), dx = scale g − x scale³ mean(g x) + add.
template <typename T>
__device__ void back(const Back& job) {
  typedef typename T::Number Number;
  const int count = Vector<T>::COUNT, vectors = job.d / count;
  const int64_t place = (int64_t)blockIdx.x * job.d;
  const Number *x = row_of<T>(job), *dy = (const Number*)job.dy + place, *add = (const Number*)job.add + place;
  const float scale = job.scales[blockIdx.x];
  float products = 0;
  for (int at = threadIdx.x; at < vectors; at += blockDim.x) {
    Vector<T> own, gradient;
    Factors<T> weight;
    own.load(x, at);
    gradient.load(dy, at);
    weight.load(job, at);
    for (int i = 0; i < count; ++i) products += gradient[i] * weight[i] * (own[i] * scale);
  }
  const float along = summed(products) / job.d;
  for (int at = threadIdx.x; at < vectors; at += blockDim.x) {
    Vector<T> own, gradient, other;
    Factors<T> weight;
    own.load(x, at);
    gradient.load(dy, at);
    weight.load(job, at);
    if (job.add) other.load(add, at);
    for (int i = 0; i < count; ++i) {
      const float g = gradient[i] * weight[i], dx = (g - own[i] * scale * along) * scale;
      own.set(i, job.add ? dx + other[i] : dx);
    }
    own.store((Number*)job.dx + place, at);
  }
}

extern "C" __global__ void lx_norm_f32(Norm job) { norm<F32>(job); }
extern "C" __global__ void lx_norm_bf16(Norm job) { norm<Bf16>(job); }
extern "C" __global__ void lx_norm_f16(Norm job) { norm<F16>(job); }
extern "C" __global__ void lx_norm_back_f32(Back job) { back<F32>(job); }
extern "C" __global__ void lx_norm_back_bf16(Back job) { back<Bf16>(job); }
extern "C" __global__ void lx_norm_back_f16(Back job) { back<F16>(job); }
)";

inline CudaKernels& kernels() {
  static CudaKernels all({Norm_SOURCE, Back_SOURCE, SOURCE},
                         {"lx_norm_f32", "lx_norm_bf16", "lx_norm_f16", "lx_norm_back_f32", "lx_norm_back_bf16", "lx_norm_back_f16"});
  return all;
}

inline bool is_even(const void* at) { return reinterpret_cast<uintptr_t>(at) % 16 == 0; }

// The same numbers, adjacent and where vectors may begin: a gradient may be a part of another tensor.
inline Tensor even(const Tensor& x) {
  const Tensor y = x.contiguous();
  return is_even(y.data_ptr()) ? y : y.clone();
}

// True if the kernels take x [.., d] or [m, h, d], and with it `add` of the same shape, if that is defined.
inline bool serve(const Tensor& x, const Tensor& add, const Tensor& weight) {
  const int64_t count = 16 / static_cast<int64_t>(x.element_size());
  const auto fits = [&](const Tensor& y) { return y.scalar_type() == x.scalar_type() && y.device() == x.device() && is_even(y.data_ptr()); };
  const bool is_known = x.is_cuda() && kind_of(x) >= 0 && x.numel() > 0 && fits(x) && x.size(-1) % count == 0 && x.stride(-1) == 1;
  if (!is_known || weight.device() != x.device() || weight.requires_grad() || !weight.is_contiguous() || !is_even(weight.data_ptr())) return false;
  if (weight.scalar_type() != at::kFloat && weight.scalar_type() != x.scalar_type()) return false;
  const bool lies_so = x.is_contiguous() || (x.dim() == 3 && x.stride(0) % count == 0 && x.stride(1) % count == 0);
  if (!lies_so || (add.defined() && !(fits(add) && add.is_contiguous() && x.is_contiguous() && add.sizes() == x.sizes()))) return false;
  return kernels().serve(x.device().index());
}

// How the rows of x lie: the strides of tokens and heads, and the number of heads.
struct Rows {
  int64_t count, token, head, heads;

  explicit Rows(const Tensor& x) : count(x.numel() / x.size(-1)), token(x.size(-1)), head(0), heads(1) {
    if (!x.is_contiguous()) token = x.stride(0), head = x.stride(1), heads = x.size(1);
  }
};

inline int threads(int64_t d, int64_t element) { return static_cast<int>(std::clamp<int64_t>((d * element / 16 + 31) / 32 * 32, 32, 256)); }

// Returns y and the scales [rows], and writes x + add to `sum` where both are defined.
inline std::array<Tensor, 2> forward(const Tensor& x, const Tensor& add, const Tensor& weight, const Tensor& sum, double eps, double offset) {
  const Rows rows(x);
  const int64_t d = x.size(-1);
  const Tensor y = at::empty(x.sizes(), x.options()), scales = at::empty({rows.count}, x.options().dtype(at::kFloat));
  const Norm job{begin(x), begin(add), begin(weight), begin(sum), begin(y), static_cast<float*>(scales.data_ptr()), rows.token, rows.head,
                 static_cast<int>(rows.heads), static_cast<int>(d), static_cast<float>(eps), static_cast<float>(offset), weight.scalar_type() == at::kFloat};
  kernels().launch(kind_of(x), job, rows.count, threads(d, x.element_size()), x.device());
  return {y, scales};
}

// The gradient of x from those of y and, if it is defined, of x itself, both adjacent.
inline Tensor backward(const Tensor& dy, const Tensor& add, const Tensor& x, const Tensor& weight, const Tensor& scales, double offset) {
  const Rows rows(x);
  const int64_t d = x.size(-1);
  const Tensor dx = at::empty(x.sizes(), x.options());
  const Back job{begin(dy), begin(add), begin(x), begin(weight), static_cast<const float*>(scales.data_ptr()), begin(dx), rows.token, rows.head,
                 static_cast<int>(rows.heads), static_cast<int>(d), static_cast<float>(offset), weight.scalar_type() == at::kFloat};
  kernels().launch(3 + kind_of(x), job, rows.count, threads(d, x.element_size()), x.device());
  return dx;
}

}  // namespace norms

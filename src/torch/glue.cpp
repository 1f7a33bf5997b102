// What tch does not expose of libtorch, as C functions over `at::Tensor*` (src/torch/mod.rs declares them).

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <ATen/ops/_efficient_attention_forward.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <malloc.h>

#include <cstdlib>

#include "guarded.h"

extern "C" {

const char* lx_last_error() { return last_error().c_str(); }

// Keeps the memory of freed tensors for the next ones: what is taken from the system anew is cleared page by page first, a
// tenth of a training's time.
void lx_keep_memory() {
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
}

// Zeros in fp32 that take memory only where they are read or written, at the start of a cache line; `out` receives a new tensor.
int lx_zeros_on_demand(at::Tensor** out, const int64_t* size, int64_t dims) {
  return guarded([&] {
    constexpr size_t line = 64;
    const at::IntArrayRef shape(size, dims);
    const size_t bytes = static_cast<size_t>(c10::multiply_integers(shape)) * sizeof(float);
    void* block = std::calloc(bytes + line, 1);
    TORCH_CHECK(block, "can't allocate memory: ", bytes, " bytes");
    const size_t apart = line - reinterpret_cast<uintptr_t>(block) % line;
    *out = new at::Tensor(at::from_blob(static_cast<char*>(block) + apart, shape, [block](void*) { std::free(block); }, at::kFloat));
  });
}

// Makes `grad` the gradient that backward passes add to for the leaf `tensor`.
int lx_set_grad(at::Tensor* tensor, at::Tensor* grad) {
  return guarded([&] { tensor->mutable_grad() = *grad; });
}

// Lets fp32 matrix products on CUDA use tensor cores with a 10-bit mantissa.
int lx_allow_tf32(int allow) {
  return guarded([&] { at::globalContext().setFloat32MatmulPrecision(allow ? "high" : "highest"); });
}

// Peak bytes that tensors occupied on CUDA device `index` since the last reset.
int lx_cuda_peak_bytes(int index, int reset, int64_t* bytes) {
  return guarded([&] {
    auto* allocator = c10::getDeviceAllocator(c10::DeviceType::CUDA);
    if (reset) allocator->resetPeakStats(static_cast<c10::DeviceIndex>(index));
    *bytes = allocator->getDeviceStats(static_cast<c10::DeviceIndex>(index)).allocated_bytes[0].peak;
  });
}

// Bytes of CUDA device `index` that nobody uses, those that the allocator keeps for reuse included.
int lx_cuda_free_bytes(int index, int64_t* bytes) {
  return guarded([&] {
    auto* allocator = c10::getDeviceAllocator(c10::DeviceType::CUDA);
    const auto device = static_cast<c10::DeviceIndex>(index);
    const auto stats = allocator->getDeviceStats(device);
    *bytes = static_cast<int64_t>(allocator->getMemoryInfo(device).first) + stats.reserved_bytes[0].current -
             stats.allocated_bytes[0].current;
  });
}

// Attention over packed sequences on CUDA, differentiable: q, k, v are [m, h, d]; `bounds` is int32 [s + 1], the start
// of each sequence and the end of the last; a `window` above 0 limits how many positions back a token sees, itself
// included. `out` receives a new [m, h, d].
int lx_packed_attention(at::Tensor** out, at::Tensor* q, at::Tensor* k, at::Tensor* v, at::Tensor* bounds,
                        int64_t longest, double dropout, int causal, int64_t window, double scale) {
  return guarded([&] {
    auto result = at::_efficient_attention_forward(
        q->unsqueeze(0), k->unsqueeze(0), v->unsqueeze(0), /*bias=*/std::nullopt, *bounds, *bounds, longest, longest,
        dropout, /*custom_mask_type=*/causal ? 1 : 0, /*compute_log_sumexp=*/true, scale, /*seqlen_k=*/std::nullopt,
        window > 0 ? std::optional<int64_t>(window) : std::nullopt);
    *out = new at::Tensor(std::get<0>(result).squeeze(0));
  });
}
}

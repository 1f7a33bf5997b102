// Kernels of our own for decoding and norms on a GPU (src/torch/own_cuda.rs says what each function takes).

#include <c10/core/AllocatorConfig.h>
#include <torch/csrc/autograd/custom_function.h>

#include <unistd.h>

#include <cstdlib>

#include "guarded.h"
#include "heads.h"
#include "newest.h"
#include "norms.h"

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

namespace {

// (x + add, norm of that); without an `add`, (norm of x).
struct CudaNorm : Function<CudaNorm> {
  static variable_list forward(AutogradContext* ctx, const Tensor& x, const std::optional<Tensor>& other, const Tensor& weight, double eps,
                               double offset) {
    const Tensor add = other.value_or(Tensor()), sum = add.defined() ? at::empty_like(x) : Tensor();
    const auto [y, scales] = norms::forward(x, add, weight, sum, eps, offset);
    ctx->save_for_backward({add.defined() ? sum : x, weight, scales});
    ctx->saved_data["offset"] = offset;
    ctx->set_materialize_grads(false);
    return add.defined() ? variable_list{sum, y} : variable_list{y};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const bool added = grads.size() == 2;
    const Tensor &dy = grads.back(), of_sum = added && grads[0].defined() ? norms::even(grads[0]) : Tensor();
    const Tensor dx = dy.defined() ? norms::backward(norms::even(dy), of_sum, saved[0], saved[1], saved[2], ctx->saved_data["offset"].toDouble()) : of_sum;
    return {dx, added ? dx : Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

extern "C" {

// out[0] ← y; where there is an `add`, out[1] ← x + add. Both ← null where no kernel serves.
int lx_cuda_norm(Tensor** out, Tensor* x, Tensor* add, Tensor* weight, double eps, double offset) {
  return guarded([&] {
    out[0] = out[1] = nullptr;
    const auto other = add ? std::optional<Tensor>(*add) : std::nullopt;
    if (!norms::serve(*x, other.value_or(Tensor()), *weight)) return;
    const auto found = CudaNorm::apply(*x, other, *weight, eps, offset);
    out[0] = new Tensor(found.back());
    if (add) out[1] = new Tensor(found.front());
  });
}

// Lets the allocator's segments grow, since batches differ in size and leave gaps in segments of fixed sizes: on GPUs that can map memory piece by
// piece, which virtual ones may not and those of WSL 2 cannot until driver 616 (pytorch/pytorch#192330), and unless the user has settings. Precedes the
// first tensor there.
int lx_grow_segments() {
  return guarded([] {
    if (std::getenv("PYTORCH_ALLOC_CONF") || std::getenv("PYTORCH_CUDA_ALLOC_CONF") || access("/dev/dxg", F_OK) == 0) return;
    int count = 0, maps = 1;
    call_toolkit("cuInit", 0u);
    call_toolkit("cuDeviceGetCount", &count);
    // CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED
    for (int device = 0; device < count && maps; ++device) call_toolkit("cuDeviceGetAttribute", &maps, 102, device);
    if (maps) c10::CachingAllocator::setAllocatorSettings("expandable_segments:True");
  });
}

// capability ← that of a device, as 90 for 9.0.
int lx_capability(int index, int* capability) {
  return guarded([&] { *capability = capability_of(index); });
}

// text ← which kernels serve a device, until the next call on this thread.
int lx_kernels_state(int index, const char** text) {
  return guarded([&] {
    thread_local std::string state;
    state = norms::kernels().state(index);
    *text = state.c_str();
  });
}

// Stores keys and values in a cache on a GPU; `stored` tells whether that could be done.
int lx_store(Tensor* const* kv, Tensor* const* cache, Tensor* at, int* stored) {
  return guarded([&] { *stored = heads::store(*kv[0], *kv[1], *cache[0], *cache[1], *at); });
}

// angles: cosines and sines, or null for none. out ← null where no kernel serves.
int lx_attend_newest(Tensor** out, Tensor* const* qkv, Tensor* const* cache, Tensor* const* angles, Tensor* positions, Tensor* arrived, int64_t window,
                     double scale, double cap) {
  return guarded([&] {
    const std::array<Tensor, 2> turned = angles ? std::array<Tensor, 2>{*angles[0], *angles[1]} : std::array<Tensor, 2>{};
    const Tensor found = newest::attend({*qkv[0], *qkv[1], *qkv[2]}, {*cache[0], *cache[1]}, turned, *positions, *arrived, {window, scale, cap});
    *out = found.defined() ? new Tensor(found) : nullptr;
  });
}

int lx_attends_newest(int index, int is_bf16, int64_t heads, int64_t kv, int64_t d, int* serves) {
  return guarded([&] {
    const c10::Device device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(index));
    *serves = newest::serving(device, is_bf16 ? at::kBFloat16 : at::kHalf, heads, kv, d) != nullptr;
  });
}
}

// Decoding by kernels of our own on a GPU (src/torch/own_cuda.rs says what each function takes).

#include "guarded.h"
#include "heads.h"
#include "newest.h"

using at::Tensor;

extern "C" {

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

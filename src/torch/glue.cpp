// What tch does not expose of libtorch, as C functions over `at::Tensor*` (src/torch/mod.rs declares them).

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <ATen/ops/_efficient_attention_forward.h>
#include <ATen/ops/_flash_attention_forward_ops.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <malloc.h>

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>

#include "guarded.h"
#include "on_cuda.h"

namespace {

// An at::cuda::CUDAGraph of libtorch_cuda 2.11 (ATen/cuda/CUDAGraph.h, whose headers need NVIDIA's), and the stream that was current
// before the recording.
struct Graph {
  alignas(64) std::byte object[4096] = {};
  std::optional<c10::Stream> before;

  template <typename... A>
  void call(const char* name, A... arguments) {
    cuda_function<void (*)(void*, A...)>(name)(object, arguments...);
  }
};

at::Generator cuda_generator(int index) {
  return at::globalContext().defaultGenerator({c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(index)});
}

}  // namespace

extern "C" {

// The number of CUDA devices, and what libtorch warns of when it is first asked, until the next call on this thread.
int lx_cuda_devices(int* count, const char** warning) {
  thread_local std::string text;
  struct : c10::WarningHandler {
    void process(const c10::Warning& warning) override { text += warning.msg(); }
  } kept;
  text.clear();
  const c10::WarningUtils::WarningHandlerGuard guard(&kept);
  return guarded([&] {
    *count = c10::impl::VirtualGuardImpl(c10::DeviceType::CUDA).deviceCount();
    *warning = text.c_str();
  });
}

// Makes `index` the CUDA device of this thread.
int lx_use_device(int index) {
  return guarded([&] {
    c10::impl::VirtualGuardImpl(c10::DeviceType::CUDA).setDevice({c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(index)});
  });
}

// Makes a graph, and the stream that recording needs the current one of CUDA device `index`.
int lx_graph_new(Graph** out, int index) {
  return guarded([&] {
    auto graph = std::make_unique<Graph>();
    const c10::impl::VirtualGuardImpl cuda(c10::DeviceType::CUDA);
    const c10::Device device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(index));
    graph->call("_ZN2at4cuda9CUDAGraphC1Eb", false);
    cuda.synchronizeDevice(device.index());
    // One for all recordings: libraries keep a workspace for each stream.
    static const c10::Stream side = cuda.getStreamFromGlobalPool(device);
    graph->before = cuda.exchangeStream(side.device() == device ? side : cuda.getStreamFromGlobalPool(device));
    *out = graph.release();
  });
}

// Begins to record what this thread launches, into the memory of the graph `sharing` if there is one.
int lx_graph_begin(Graph* graph, Graph* sharing) {
  return guarded([&] {
    using Pool = std::pair<unsigned long long, unsigned long long>;
    Pool pool{0, 0};
    if (sharing) pool = cuda_function<Pool (*)(void*)>("_ZN2at4cuda9CUDAGraph4poolEv")(sharing->object);
    c10::impl::VirtualGuardImpl(c10::DeviceType::CUDA).synchronizeDevice(graph->before->device_index());
    // Other threads may use the GPU meanwhile: cudaStreamCaptureModeThreadLocal.
    graph->call("_ZN2at4cuda9CUDAGraph13capture_beginESt4pairIyyE21cudaStreamCaptureMode", pool, 1);
  });
}

// Ends the recording, also one that failed.
int lx_graph_end(Graph* graph) {
  return guarded([&] { graph->call("_ZN2at4cuda9CUDAGraph11capture_endEv"); });
}

// Makes the stream from before the graph the current one.
void lx_graph_leave(Graph* graph) {
  guarded([&] {
    const c10::impl::VirtualGuardImpl cuda(c10::DeviceType::CUDA);
    cuda.synchronizeDevice(graph->before->device_index());
    cuda.exchangeStream(*graph->before);
  });
}

int lx_graph_replay(Graph* graph) {
  return guarded([&] { graph->call("_ZN2at4cuda9CUDAGraph6replayEv"); });
}

void lx_graph_free(Graph* graph) {
  guarded([&] {
    // The allocator waits for the stream of the recording alone before it takes back the memory of a replay that still runs.
    c10::impl::VirtualGuardImpl(c10::DeviceType::CUDA).synchronizeDevice(graph->before->device_index());
    graph->call("_ZN2at4cuda9CUDAGraphD1Ev");
  });
  delete graph;
}

// Copies a tensor of the CPU to CUDA device `index` when the device comes to that.
int lx_sent(at::Tensor** out, at::Tensor* tensor, int index) {
  return guarded([&] {
    const c10::Device device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(index));
    // From pinned memory, or the call would wait.
    *out = new at::Tensor(tensor->pin_memory().to(device, tensor->scalar_type(), /*non_blocking=*/true));
  });
}

// Copies a tensor of the CPU into one of a CUDA device when the device comes to that; the tensor is not read any more after the call.
int lx_send(at::Tensor* to, at::Tensor* from) {
  return guarded([&] { to->copy_(from->pin_memory(), /*non_blocking=*/true); });
}

// Makes a mark after all that was launched on the current stream of CUDA device `index`.
int lx_mark(c10::Event** out, int index) {
  return guarded([&] {
    const c10::Device device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(index));
    auto mark = std::make_unique<c10::Event>(c10::DeviceType::CUDA);
    mark->record(c10::impl::VirtualGuardImpl(c10::DeviceType::CUDA).getStream(device));
    *out = mark.release();
  });
}

// Waits until the GPU has come to a mark.
int lx_mark_reached(c10::Event* mark) {
  return guarded([&] { mark->synchronize(); });
}

void lx_mark_free(c10::Event* mark) { delete mark; }

const char* lx_last_error() { return last_error().c_str(); }

// The state of the default generator of CUDA device `index`; `out` receives a new tensor.
int lx_generator_state(at::Tensor** out, int index) {
  return guarded([&] {
    auto generator = cuda_generator(index);
    const std::lock_guard lock(generator.mutex());
    *out = new at::Tensor(generator.get_state());
  });
}

int lx_restore_generator(at::Tensor* state, int index) {
  return guarded([&] {
    auto generator = cuda_generator(index);
    const std::lock_guard lock(generator.mutex());
    generator.set_state(*state);
  });
}

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

// Makes `grad` the gradient that backward passes add to for the leaf `tensor`. Leaves of several runs are parts of one buffer: that their
// gradients have gaps, as libtorch warns, is meant so.
int lx_set_grad(at::Tensor* tensor, at::Tensor* grad) {
  static struct : c10::WarningHandler {
    void process(const c10::Warning& warning) override {
      if (warning.msg().find("gradient layout contract") == std::string::npos) c10::WarningHandler::process(warning);
    }
  } but_gaps;
  c10::WarningUtils::set_warning_handler(&but_gaps);
  return guarded([&] {
    tensor->set_grad_dtype(grad->scalar_type());
    tensor->mutable_grad() = *grad;
  });
}

// Decompositions by cuSOLVER; MAGMA, which libtorch takes for some shapes, writes warnings to standard output. That the choice is
// experimental, as libtorch warns, concerns nobody here.
int lx_prefer_cusolver() {
  struct : c10::WarningHandler {
    void process(const c10::Warning&) override {}
  } quiet;
  const c10::WarningUtils::WarningHandlerGuard guard(&quiet);
  return guarded([] { at::globalContext().setLinalgPreferredBackend(at::LinalgBackend::Cusolver); });
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

// bytes ← those of CUDA device `index` that nobody uses, those that the allocator keeps for reuse included, and all.
int lx_cuda_memory(int index, int64_t* bytes) {
  return guarded([&] {
    auto* allocator = c10::getDeviceAllocator(c10::DeviceType::CUDA);
    const auto device = static_cast<c10::DeviceIndex>(index);
    const auto stats = allocator->getDeviceStats(device);
    const auto [free, all] = allocator->getMemoryInfo(device);
    bytes[0] = static_cast<int64_t>(free) + stats.reserved_bytes[0].current - stats.allocated_bytes[0].current;
    bytes[1] = static_cast<int64_t>(all);
  });
}

// Gives back what the allocator keeps for reuse, when CUDA device `index`, the only one in use, has done its work.
int lx_empty_cache(int index) {
  return guarded([&] {
    c10::impl::VirtualGuardImpl(c10::DeviceType::CUDA).synchronizeDevice(static_cast<c10::DeviceIndex>(index));
    c10::getDeviceAllocator(c10::DeviceType::CUDA)->emptyCache();
  });
}

// Attention on CUDA within sequences, differentiable, in one kernel: FlashAttention-2 with `flash`, in bf16 and fp16, else CUTLASS's
// memory-efficient kernel, which wants as many heads of keys as of queries. q is [m, h, d], k and v are [n, kv, d]. `bounds` holds three
// int32 tensors: the start of each sequence of queries and the end of the last [s + 1], the same of keys, and, or null, how many
// keys of each sequence are seen, from its start on [s]. `longest` counts the most queries and keys of a sequence. A `window`
// above 0 limits how many positions back a token sees, itself included. `out` receives a new [m, h, d].
int lx_packed_attention(at::Tensor** out, at::Tensor* const* qkv, at::Tensor* const* bounds, const int64_t* longest, double dropout,
                        int causal, int64_t window, double scale, int flash) {
  return guarded([&] {
    const auto &q = *qkv[0], &k = *qkv[1], &v = *qkv[2], &starts = *bounds[0], &key_starts = *bounds[1];
    const bool differentiable = !bounds[2];
    const auto used = differentiable ? std::nullopt : std::make_optional(*bounds[2]);
    if (!flash) {
      // Its backward pass knows no window and draws other masks in all but the first sequence.
      TORCH_CHECK(window <= 0 && dropout == 0.0, "this kernel with a window or dropout takes a padded batch");
      auto result = at::_efficient_attention_forward(
          q.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0), /*bias=*/std::nullopt, starts, key_starts, longest[0], longest[1],
          /*dropout_p=*/0.0, /*custom_mask_type=*/causal ? 1 : 0, /*compute_log_sumexp=*/differentiable, scale, used);
      *out = new at::Tensor(std::get<0>(result).squeeze(0));
      return;
    }
    using Width = std::optional<c10::SymInt>;
    const Width back = window > 0 ? Width(window - 1) : std::nullopt, ahead = window > 0 ? Width(0) : std::nullopt;
    auto result = at::_ops::_flash_attention_forward::call(q, k, v, starts, key_starts, longest[0], longest[1], dropout, causal,
                                                           /*return_debug_mask=*/false, scale, back, ahead, used,
                                                           /*alibi_slopes=*/std::nullopt);
    *out = new at::Tensor(std::get<0>(result));
  });
}
}

// A stand-in for a GPU: a libtorch_cuda of our own, with which an unchanged binary runs `--device cuda:0` on a CPU.
//
// Device memory is host memory under another name. Every operator runs on the CPU, but refuses tensors of mixed devices as CUDA does,
// and is counted in the file that STANDIN_COUNTS names (records of a name of 120 bytes and a count of 8; on the second device, the name ends in
// "@1"), beside the most bytes in use and those that index_select returned. Copies to the device from memory that is not pinned are counted twice, also as
// "host to device, pageable". Attention kernels are references that
// keep the rules of the real ones: which kinds, widths and alignments they take, and two defects of the memory-efficient kernel over boundaries,
// whose backward pass knows no window and draws other dropout masks. With STANDIN_WRONG, FlashAttention and tiles of products are off by a tenth; with STANDIN_TURING, there is none; with
// STANDIN_UNRECORDED, no recording succeeds. The compute capability is 9.0 or, as 86 for 8.6, STANDIN_CAPABILITY. STANDIN_DEVICES devices (default: 2, the most) of
// STANDIN_BYTES bytes each (default: 16 GiB); with none, libtorch warns as it does of a driver that is too old.
// PyTorch's openreg example shows which interfaces a back-end needs.

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/AllocatorConfig.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <torch/library.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <mutex>
#include <regex>
#include <sstream>

namespace {

using at::Tensor;
using OptTensor = std::optional<Tensor>;
constexpr c10::DeviceIndex DEVICES = 2;  // at most
constexpr auto CUDA = c10::DeviceType::CUDA;

// Counts

struct Count {
  char name[120];
  uint64_t value;
};
constexpr size_t MOST_COUNTS = 1024;

Count* counter(const std::string& name) {
  static std::mutex mutex;
  static std::map<std::string, Count*> known;
  static Count* table = [] {
    const char* path = std::getenv("STANDIN_COUNTS");
    if (!path) return static_cast<Count*>(nullptr);
    const int file = open(path, O_RDWR | O_CREAT | O_TRUNC, 0644);
    const size_t bytes = MOST_COUNTS * sizeof(Count);
    if (file < 0 || ftruncate(file, bytes) != 0) return static_cast<Count*>(nullptr);
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    return memory == MAP_FAILED ? nullptr : static_cast<Count*>(memory);
  }();
  if (!table) return nullptr;
  const std::lock_guard lock(mutex);
  auto [at, is_new] = known.try_emplace(name, nullptr);
  if (is_new && known.size() <= MOST_COUNTS) {
    at->second = table + known.size() - 1;
    std::strncpy(at->second->name, name.c_str(), sizeof(Count::name) - 1);
  }
  return at->second;
}

void count(const std::string& name, uint64_t number = 1) {
  if (Count* found = counter(name)) __atomic_fetch_add(&found->value, number, __ATOMIC_RELAXED);
}

// Work that the device was given.
std::atomic<uint64_t> given{0};

void count_on(c10::Device device, const std::string& name) {
  ++given;
  count(device.index() == 1 ? name + "@1" : name);
}

// Devices, streams, memory

c10::DeviceIndex devices() {
  static const c10::DeviceIndex found = [] {
    const char* number = std::getenv("STANDIN_DEVICES");
    if (number && std::atoi(number) == 0) {
      TORCH_WARN("CUDA initialization: The NVIDIA driver on your system is too old (found version 12020). Please update your GPU driver.");
    }
    return static_cast<c10::DeviceIndex>(number ? std::clamp(std::atoi(number), 0, int{DEVICES}) : DEVICES);
  }();
  return found;
}

thread_local c10::DeviceIndex current_device = 0;
thread_local c10::StreamId current_stream[DEVICES] = {};

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return CUDA; }
  c10::Device exchangeDevice(c10::Device device) const override {
    const c10::Device before = getDevice();
    setDevice(device);
    return before;
  }
  c10::Device getDevice() const override { return {CUDA, current_device}; }
  void setDevice(c10::Device device) const override {
    TORCH_CHECK(device.index() < devices(), "CUDA error: invalid device ordinal");
    if (device.has_index()) current_device = device.index();
  }
  void uncheckedSetDevice(c10::Device device) const noexcept override { current_device = device.index(); }
  c10::Stream getStream(c10::Device device) const override { return c10::Stream(c10::Stream::UNSAFE, device, current_stream[device.index()]); }
  c10::Stream getDefaultStream(c10::Device device) const override { return c10::Stream(c10::Stream::DEFAULT, device); }
  c10::Stream getStreamFromGlobalPool(c10::Device device, bool) const override { return c10::Stream(c10::Stream::UNSAFE, device, 1); }
  c10::Stream exchangeStream(c10::Stream stream) const override {
    const c10::Stream before = getStream(stream.device());
    current_stream[stream.device_index()] = stream.id();
    return before;
  }
  c10::DeviceIndex deviceCount() const noexcept override { return devices(); }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeDevice(c10::DeviceIndex) const override {}
  void* getStreamNativeHandle(const c10::Stream) const override { return nullptr; }
  void recordDataPtrOnStream(const c10::DataPtr&, const c10::Stream&) const override {}
  // Nothing is ever left to do. An event tells how much work was given before it, so that it shows who waits for the device without having given it more.
  void record(void** event, const c10::Stream&, c10::DeviceIndex, c10::EventFlag) const override { *event = reinterpret_cast<void*>(given.load() + 1); }
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, c10::DeviceIndex) const noexcept override {}
  void synchronizeEvent(void* event) const override {
    if (reinterpret_cast<uint64_t>(event) == given.load() + 1) count("idle waits");
  }
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard);

// What ran while a graph was recorded, to run again: each step recomputes its results into the memory of the first ones.
std::atomic<std::vector<std::function<void()>>*> recorded{nullptr};

// Backward passes run on threads of their own, on the stream of the forward pass.
std::vector<std::function<void()>>* recording() { return current_stream[current_device] ? recorded.load() : nullptr; }

// As the real allocator: what a stream has used stays its own until memory runs out or is emptied, outside of recordings; what recordings of one pool
// have used, until the last of them goes.
struct Memory final : c10::DeviceAllocator {
  struct Space {
    size_t used = 0, held = 0;
  };
  // A device, and a stream or, as a negative number, a pool of recordings.
  using Place = std::pair<c10::DeviceIndex, int64_t>;
  struct Block {
    size_t bytes;
    Place place;
  };
  std::mutex mutex;
  std::map<void*, Block> blocks;
  std::map<Place, Space> spaces;
  std::map<int64_t, int> recordings;
  int64_t pool = 0;
  size_t peak[DEVICES] = {};

  static size_t size() {
    static const char* bytes = std::getenv("STANDIN_BYTES");
    return bytes ? std::strtoull(bytes, nullptr, 10) : size_t{16} << 30;
  }
  size_t sum(c10::DeviceIndex device, size_t Space::* what) const {
    size_t all = 0;
    for (const auto& [place, space] : spaces) all += place.first == device ? space.*what : 0;
    return all;
  }
  void give_back(c10::DeviceIndex device) {
    for (auto& [place, space] : spaces) {
      if (place.first == device && (place.second >= 0 || recordings[-place.second] == 0)) space.held = space.used;
    }
  }
  c10::DataPtr allocate(size_t bytes) override {
    const c10::DeviceIndex device = current_device;
    check_ready(device);
    void* block = nullptr;
    if (bytes > 0) {
      const std::lock_guard lock(mutex);
      const Place place{device, recording() ? -pool : static_cast<int64_t>(current_stream[device])};
      Space& own = spaces[place];
      const auto fits = [&] { return sum(device, &Space::held) + std::max(own.used + bytes, own.held) - own.held <= size(); };
      if (!fits() && !recorded) give_back(device);
      // The words of the real allocator, by which running out is told from other failures.
      TORCH_CHECK_WITH(OutOfMemoryError, fits(), "CUDA out of memory. Tried to allocate ", bytes >> 20, ".00 MiB.");
      TORCH_CHECK(posix_memalign(&block, 512, bytes) == 0, "can't allocate memory");
      std::memset(block, 0xff, bytes);  // Not a number, whatever the kind: what nobody wrote shows.
      blocks[block] = {bytes, place};
      own.used += bytes;
      own.held = std::max(own.held, own.used);
      const size_t used = sum(device, &Space::used);
      peak[device] = std::max(peak[device], used);
      static const bool grows = c10::CachingAllocator::AcceleratorAllocatorConfig::use_expandable_segments();
      if (Count* growing = counter("growing segments")) growing->value = grows;
      if (Count* most = counter("most bytes")) most->value = std::max<uint64_t>(most->value, used);
    }
    return {block, block, &Memory::release, {CUDA, device}};
  }
  static void release(void* block);
  c10::DeleterFnPtr raw_deleter() const override { return &Memory::release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
  bool ready = false;
  bool initialized() override { return ready; }
  // As the real one until libtorch has initialised its devices, which the first tensor on one makes it do.
  void check_ready(c10::DeviceIndex device) const {
    TORCH_CHECK(ready && device < devices(), "Allocator not initialized for device ", int{device}, ": did you call init?");
  }
  void emptyCache(c10::MempoolId_t) override {
    const std::lock_guard lock(mutex);
    for (c10::DeviceIndex device = 0; device < devices(); ++device) give_back(device);
  }
  void recordStream(const c10::DataPtr&, c10::Stream) override {}
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex device) override {
    check_ready(device);
    const std::lock_guard lock(mutex);
    c10::CachingDeviceAllocator::DeviceStats stats;
    stats.allocated_bytes[0].current = sum(device, &Space::used);
    stats.reserved_bytes[0].current = sum(device, &Space::held);
    stats.allocated_bytes[0].peak = peak[device];
    return stats;
  }
  void resetAccumulatedStats(c10::DeviceIndex) override {}
  void resetPeakStats(c10::DeviceIndex device) override {
    check_ready(device);
    const std::lock_guard lock(mutex);
    peak[device] = sum(device, &Space::used);
  }
  std::pair<size_t, size_t> getMemoryInfo(c10::DeviceIndex device) override {
    const std::lock_guard lock(mutex);
    return {size() - sum(device, &Space::held), size()};
  }
};
Memory memory;

void Memory::release(void* block) {
  const std::lock_guard lock(memory.mutex);
  const auto found = memory.blocks.find(block);
  if (found == memory.blocks.end()) return;
  memory.spaces[found->second.place].used -= found->second.bytes;
  memory.blocks.erase(found);
  // Recorded kernels write there again.
  if (!recorded) std::free(block);
}

// What draws is computed on the CPU, whose generator has the state of the device that drew last.
const at::Generator& generator(c10::DeviceIndex device) {
  static const at::Generator cpu = at::detail::getDefaultCPUGenerator();
  static std::mutex mutex;
  static c10::DeviceIndex current = 0;
  static Tensor states[DEVICES];
  const std::lock_guard lock(mutex);
  if (device != current) {
    at::Generator both = cpu;
    states[current] = both.get_state();
    if (states[device].defined()) both.set_state(states[device]);
    current = device;
  }
  return cpu;
}

}  // namespace

namespace {

// Pinned memory of the host: what is copied from elsewhere, a GPU would wait for.
struct Pinned final : at::Allocator {
  std::mutex mutex;
  std::map<const char*, size_t> blocks;

  c10::DataPtr allocate(size_t bytes) override {
    void* block = nullptr;
    if (bytes > 0) {
      TORCH_CHECK(posix_memalign(&block, 512, bytes) == 0, "can't allocate memory");
      const std::lock_guard lock(mutex);
      blocks[static_cast<char*>(block)] = bytes;
    }
    return {block, block, &Pinned::release, c10::DeviceType::CPU};
  }
  static void release(void* block);
  c10::DeleterFnPtr raw_deleter() const override { return &Pinned::release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
  bool holds(const void* data) {
    const std::lock_guard lock(mutex);
    const auto* at = static_cast<const char*>(data);
    const auto after = blocks.upper_bound(at);
    return after != blocks.begin() && at < std::prev(after)->first + std::prev(after)->second;
  }
};
Pinned pinned;

void Pinned::release(void* block) {
  if (!block) return;
  const std::lock_guard lock(pinned.mutex);
  pinned.blocks.erase(static_cast<char*>(block));
  std::free(block);
}

}  // namespace

// In the namespace and under the name that libtorch looks for.
namespace at::cuda::detail {
struct CUDAHooks : at::CUDAHooksInterface {
  explicit CUDAHooks(at::CUDAHooksArgs) {}
  void init() const override {
    TORCH_CHECK(devices() > 0, "No CUDA GPUs are available");
    memory.ready = true;
  }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex device) const override { return generator(device); }
  at::Generator getNewGenerator(c10::DeviceIndex) const override { return at::make_generator<at::CPUGeneratorImpl>(); }
  c10::Device getDeviceFromPtr(void*) const override { return c10::Device(c10::DeviceType::CUDA, ::current_device); }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return devices() > 0; }
  bool hasCUDA() const override { return devices() > 0; }
  c10::DeviceIndex getCurrentDevice() const override { return ::current_device; }
  bool hasCuSOLVER() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex current_device() const override { return ::current_device; }
  at::Allocator* getCUDADeviceAllocator() const override { return &memory; }
  c10::DeviceIndex deviceCount() const override { return devices(); }
  int getNumGPUs() const override { return devices(); }
  at::Allocator* getPinnedMemoryAllocator() const override { return &pinned; }
  bool isPinnedPtr(const void* data) const override { return pinned.holds(data); }
  void deviceSynchronize(c10::DeviceIndex) const override {}
};
using at::CUDAHooksRegistry;
using at::RegistererCUDAHooksRegistry;
REGISTER_CUDA_HOOKS(CUDAHooks)
}  // namespace at::cuda::detail

namespace {

const bool allocates = [] {
  c10::SetAllocator(CUDA, &memory);
  return true;
}();

// Recording

void note(std::function<void()> step) {
  if (auto* steps = recording()) steps->push_back(std::move(step));
}

// A recording does not survive what it cannot hold.
bool is_spoilt = false;
void refuse_recording(const char* what) {
  if (recording()) is_spoilt = true;
  TORCH_CHECK(!recording(), "CUDA error: operation not permitted when stream is capturing: ", what);
}

// Operators

// The tensor's memory as a tensor of the CPU.
Tensor on_cpu(const Tensor& x) {
  if (!x.defined() || !x.is_cuda()) return x;
  return at::from_blob(x.data_ptr(), x.sizes(), x.strides(), [kept = x.storage()](void*) {}, x.options().device(at::kCPU));
}

// The same tensor without its place in a graph of gradients, which a recording must not keep alive.
Tensor bare(const Tensor& x) { return x.defined() ? Tensor(x.unsafeGetTensorImpl()->shallow_copy_and_detach(0, false)) : x; }
c10::SmallVector<Tensor> bare(const c10::SmallVector<Tensor>& all) {
  c10::SmallVector<Tensor> found;
  for (const Tensor& x : all) found.push_back(bare(x));
  return found;
}
OptTensor bare(const OptTensor& x) { return x ? OptTensor(bare(*x)) : x; }

Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> kind, std::optional<c10::Device> device) {
  at::globalContext().lazyInitDevice(CUDA);
  const c10::DeviceGuard guard(device.value_or(c10::Device(CUDA, current_device)));
  return at::detail::empty_generic(size, &memory, c10::DispatchKeySet(c10::DispatchKey::CUDA), kind.value_or(at::kFloat), std::nullopt);
}

Tensor empty_memory_format(at::IntArrayRef size, std::optional<at::ScalarType> kind, std::optional<at::Layout>, std::optional<c10::Device> device,
                           std::optional<bool>, std::optional<at::MemoryFormat>) {
  return empty(size, kind, device);
}

Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> kind, std::optional<at::Layout>,
                     std::optional<c10::Device> device, std::optional<bool>) {
  at::globalContext().lazyInitDevice(CUDA);
  const c10::DeviceGuard guard(device.value_or(c10::Device(CUDA, current_device)));
  return at::detail::empty_strided_generic(size, stride, &memory, c10::DispatchKeySet(c10::DispatchKey::CUDA), kind.value_or(at::kFloat));
}

Tensor to_cuda(const Tensor& x, c10::Device device) {
  if (!x.defined() || x.is_cuda()) return x;
  Tensor y = x.is_non_overlapping_and_dense() ? at::empty_strided(x.sizes(), x.strides(), x.options().device(device))
                                              : at::empty(x.sizes(), x.options().device(device));
  on_cpu(y).copy_(x);
  return y;
}

Tensor& copy(Tensor& self, const Tensor& from, bool does_not_wait) {
  const char* kind = !from.is_cuda()                    ? "host to device"
                     : !self.is_cuda()                  ? "device to host"
                     : self.device() != from.device() ? "device to device"
                                                        : "aten::copy_";
  count_on(self.is_cuda() ? self.device() : from.device(), kind);
  if (!from.is_cuda() && from.numel() > 0 && !pinned.holds(from.data_ptr())) count_on(self.device(), "host to device, pageable");
  if (!does_not_wait && from.is_cuda() != self.is_cuda()) count("blocking copies");
  if (!from.is_cuda() || !self.is_cuda()) refuse_recording(kind);
  on_cpu(self).copy_(on_cpu(from));
  note([self = bare(self), from = bare(from)] { on_cpu(self).copy_(on_cpu(from)); });
  return self;
}

at::Scalar to_number(const Tensor& self) {
  count_on(self.device(), "device to host");
  refuse_recording("a number for the host");
  return on_cpu(self).item();
}

const Tensor& resized(const Tensor& self, at::IntArrayRef size, std::optional<at::MemoryFormat>) {
  const int64_t bytes = c10::multiply_integers(size) * static_cast<int64_t>(self.element_size());
  auto* storage = self.storage().unsafeGetStorageImpl();
  if (static_cast<int64_t>(storage->nbytes()) < bytes) {
    const c10::DeviceGuard guard(self.device());
    storage->set_data_ptr_noswap(memory.allocate(bytes));
    storage->set_nbytes(bytes);
  }
  self.unsafeGetTensorImpl()->set_sizes_contiguous(size);
  return self;
}

Tensor& set_storage(Tensor& self, at::Storage source, int64_t offset, at::IntArrayRef size, at::IntArrayRef stride) {
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(source));
  impl->set_storage_offset(offset);
  stride.empty() ? impl->set_sizes_contiguous(size) : impl->set_sizes_and_strides(size, stride);
  return self;
}

// One call of an operator whose tensors lie on the device, run on the CPU over the same memory.
struct Call {
  const c10::OperatorHandle& op;
  std::optional<c10::Device> device;
  std::vector<std::pair<Tensor, Tensor>> given;  // as given, on the CPU

  Tensor take(const Tensor& x, bool written) {
    if (!x.defined()) return x;
    const std::string name = op.schema().name();
    if (!x.is_cuda()) {
      TORCH_CHECK(x.dim() == 0, "Expected all tensors to be on the same device, but got one on cpu of shape ", x.sizes(), " in ", name);
      return x;
    }
    TORCH_CHECK(!device || *device == x.device(), "Expected all tensors to be on the same device, but found two, in ", name);
    device = x.device();
    // What an operator may resize has memory of its own there.
    given.emplace_back(x, written && x.numel() == 0 ? at::empty({0}, x.options().device(at::kCPU)) : on_cpu(x));
    return given.back().second;
  }

  c10::IValue take(const c10::IValue& value, bool written) {
    if (value.isTensor()) return take(value.toTensor(), written);
    if (value.isTensorList()) {
      c10::List<Tensor> list;
      for (const Tensor& x : value.toTensorVector()) list.push_back(take(x, written));
      return list;
    }
    if (value.isOptionalTensorList()) {
      c10::List<OptTensor> list;
      for (const OptTensor& x : value.toOptionalTensorVector()) list.push_back(x ? OptTensor(take(*x, written)) : x);
      return list;
    }
    if (value.isDevice() && value.toDevice().is_cuda()) {
      device = value.toDevice();
      return c10::Device(at::kCPU);
    }
    return value;
  }

  Tensor give(const Tensor& x) const {
    if (!x.defined()) return x;
    for (const auto& [original, mirror] : given) {
      if (x.is_same(mirror)) {
        if (original.numel() == 0 && x.numel() > 0) {
          resized(original, x.sizes(), std::nullopt);
          on_cpu(original).copy_(x);
        }
        return original;
      }
      if (mirror.numel() > 0 && x.storage().data() == mirror.storage().data()) {
        return at::native::as_strided_tensorimpl(original, x.sizes(), x.strides(), original.storage_offset() + x.storage_offset());
      }
    }
    return to_cuda(x, device.value_or(c10::Device(CUDA, current_device)));
  }
};

void run(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  Call call{op, std::nullopt, {}};
  torch::jit::Stack inner;
  const size_t first = stack->size() - schema.arguments().size();
  for (size_t i = 0; i < schema.arguments().size(); ++i) {
    const auto* alias = schema.arguments()[i].alias_info();
    inner.push_back(call.take((*stack)[first + i], alias && alias->isWrite()));
  }
  const c10::Device device = call.device.value_or(c10::Device(CUDA, current_device));
  count_on(device, schema.overload_name().empty() ? schema.name() : schema.name() + "." + schema.overload_name());
  const bool draws = op.hasTag(at::Tag::nondeterministic_seeded);
  if (draws) generator(device.index());
  torch::jit::Stack again = recording() ? inner : torch::jit::Stack();
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), &inner);
  torch::jit::drop(*stack, schema.arguments().size());
  std::vector<Tensor> results;
  for (c10::IValue& value : inner) {
    if (value.isTensor()) {
      const Tensor result = call.give(value.toTensor());
      if (schema.name() == "aten::index_select") count("selected bytes", result.nbytes());
      stack->push_back(result);
      results.push_back(bare(result));
    } else if (value.isTensorList()) {
      c10::List<Tensor> list;
      for (const Tensor& x : value.toTensorVector()) list.push_back(call.give(x));
      stack->push_back(list);
    } else {
      stack->push_back(value);
    }
  }
  if (!recording()) return;
  note([op, again, results, draws, device] {
    torch::jit::Stack inner = again;
    if (draws) generator(device.index());
    op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), &inner);
    size_t at = 0;
    for (c10::IValue& value : inner) {
      if (!value.isTensor()) continue;
      const Tensor made = value.toTensor(), kept = on_cpu(results[at++]);
      if (made.defined() && made.data_ptr() != kept.data_ptr()) kept.copy_(made);
    }
  });
}

// Runs `body`, now and whenever what is recorded is replayed; it returns results on the CPU.
template <typename F>
std::vector<Tensor> computed(const char* name, c10::Device device, F body) {
  count_on(device, name);
  std::vector<Tensor> results, kept;
  for (const Tensor& x : body()) {
    results.push_back(to_cuda(x, device));
    kept.push_back(bare(results.back()));
  }
  note([body, kept] {
    const auto again = body();
    for (size_t i = 0; i < again.size(); ++i) on_cpu(kept[i]).copy_(again[i]);
  });
  return results;
}

// Products of fp16 with sums and results in fp32, which only a GPU has. Tensor cores add sixteen terms to a sum, then cut it off.

Tensor cut_off(const Tensor& x) {
  const Tensor nearest = x.to(at::kFloat);
  return at::where(nearest.abs() > x.abs(), at::nextafter(nearest, at::zeros_like(nearest)), nearest).to(at::kDouble);
}

Tensor wide_products(const Tensor& a, const Tensor& b, at::ScalarType kind) {
  TORCH_CHECK(a.scalar_type() == at::kHalf && b.scalar_type() == at::kHalf && kind == at::kFloat, "no such product");
  return computed("aten::bmm.dtype", a.device(), [a = bare(a), b = bare(b)] {
    const Tensor left = on_cpu(a).to(at::kDouble), right = on_cpu(b).to(at::kDouble);
    Tensor sum = at::zeros({a.size(0), a.size(1), b.size(2)}, left.options());
    for (int64_t k = 0; k < a.size(2); k += 16) {
      const int64_t terms = std::min<int64_t>(16, a.size(2) - k);
      sum = cut_off(sum + at::bmm(left.narrow(2, k, terms), right.narrow(1, k, terms)));
    }
    return std::vector<Tensor>{sum.to(at::kFloat)};
  })[0];
}

// Attention

struct Bounded {
  int64_t q, queries, k, keys;
};

std::vector<int64_t> numbers(const Tensor& x) {
  const Tensor wide = on_cpu(x).to(at::kLong).contiguous();
  return {wide.data_ptr<int64_t>(), wide.data_ptr<int64_t>() + wide.numel()};
}

std::vector<Bounded> bounded(const Tensor& queries, const Tensor& keys, const OptTensor& used) {
  TORCH_CHECK(queries.scalar_type() == at::kInt && keys.scalar_type() == at::kInt, "boundaries must be int32");
  const auto q = numbers(queries), k = numbers(keys), seen = used && used->defined() ? numbers(*used) : std::vector<int64_t>();
  std::vector<Bounded> all;
  for (size_t i = 0; i + 1 < q.size(); ++i) all.push_back({q[i], q[i + 1] - q[i], k[i], seen.empty() ? k[i + 1] - k[i] : seen[i]});
  return all;
}

// Zeros and 1 / (1 − p), by a hash of seed and place.
Tensor masks(uint64_t seed, int64_t heads, int64_t queries, int64_t keys, double p, const std::function<uint64_t(int64_t, int64_t, int64_t)>& place) {
  Tensor mask = at::ones({heads, queries, keys}, at::kDouble);
  if (p == 0.0) return mask;
  double* at = mask.data_ptr<double>();
  for (int64_t h = 0; h < heads; ++h) {
    for (int64_t i = 0; i < queries; ++i) {
      for (int64_t j = 0; j < keys; ++j) {
        uint64_t x = seed + 0x9e3779b97f4a7c15u * (place(h, i, j) + 1);
        x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
        x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
        *at++ = static_cast<double>((x ^ (x >> 31)) >> 11) / 9007199254740992.0 < p ? 0.0 : 1.0 / (1.0 - p);
      }
    }
  }
  return mask;
}

struct Rules {
  bool causal;
  int64_t left;  // positions before a token's own that it sees; -1 = all
  double scale;
};

// Attention of one sequence: q [n, h, d], k and v [m, kv, d], bias [h, n, m] or undefined, mask [h, n, m]; all on the CPU.
struct One {
  Tensor q, k, v, weights, mask;
  Rules rules;

  One(const Tensor& queries, const Tensor& keys, const Tensor& values, const Tensor& bias, Tensor dropped, Rules by) : mask(std::move(dropped)), rules(by) {
    const int64_t h = queries.size(1), n = queries.size(0), m = keys.size(0);
    const auto wide = [&](const Tensor& x) { return x.to(at::kDouble).repeat_interleave(h / x.size(1), 1).transpose(0, 1); };
    q = wide(queries), k = wide(keys), v = wide(values);
    Tensor scores = at::matmul(q, k.transpose(1, 2)) * rules.scale;
    if (bias.defined()) scores = scores + bias.to(at::kDouble);
    if (rules.causal || rules.left >= 0) {
      // Aligned at the end: the last query is the last key's.
      const Tensor own = at::arange(n).unsqueeze(1) + (m - n), all = at::arange(m).unsqueeze(0);
      Tensor seen = rules.causal ? all.le(own) : at::ones({n, m}, at::kBool);
      if (rules.left >= 0) seen = seen.logical_and(all.ge(own - rules.left));
      scores = scores.masked_fill(seen.logical_not(), -INFINITY);
    }
    weights = at::softmax(scores, -1);
  }
  Tensor forward() const { return at::matmul(weights * mask, v).transpose(0, 1); }
  std::vector<Tensor> backward(const Tensor& gradient, int64_t kv) const {
    const Tensor dy = gradient.to(at::kDouble).transpose(0, 1);
    const Tensor dv = at::matmul((weights * mask).transpose(1, 2), dy), dw = at::matmul(dy, v.transpose(1, 2)) * mask;
    const Tensor ds = weights * (dw - (dw * weights).sum(-1, true)) * rules.scale;
    const auto narrow = [&](const Tensor& x) { return x.view({kv, -1, x.size(1), x.size(2)}).sum(1).transpose(0, 1); };
    return {at::matmul(ds, k).transpose(0, 1), narrow(at::matmul(ds.transpose(1, 2), q)), narrow(dv)};
  }
};

void check_devices(std::initializer_list<OptTensor> all) {
  for (const OptTensor& x : all) {
    TORCH_CHECK(!x || !x->defined() || x->device() == (*all.begin())->device(), "Expected all tensors to be on the same device, but found two, in attention");
  }
}

void check_rows(const Tensor& x, const char* kernel) {
  const int64_t vector = 16 / static_cast<int64_t>(x.element_size());
  TORCH_CHECK(x.stride(-1) == 1 && x.size(-1) % vector == 0 && reinterpret_cast<uintptr_t>(x.data_ptr()) % 16 == 0, kernel,
              ": rows must be whole vectors of 16 bytes");
  for (int64_t i = 0; i + 1 < x.dim(); ++i) TORCH_CHECK(x.size(i) == 1 || x.stride(i) % vector == 0, kernel, ": rows must begin at vectors");
}

// Draws the seed of an attention's masks into a tensor of the device, anew in each replay.
uint64_t draw(const Tensor& seed, double p) {
  if (p <= 0.0) {
    on_cpu(seed).fill_(0);
    return 0;
  }
  auto cpu = generator(seed.device().index());
  const std::lock_guard lock(cpu.mutex());
  const uint64_t drawn = at::check_generator<at::CPUGeneratorImpl>(cpu)->random64() >> 1;
  on_cpu(seed).fill_(static_cast<int64_t>(drawn));
  return drawn;
}

using Six = std::tuple<Tensor, Tensor, Tensor, Tensor, c10::SymInt, c10::SymInt>;

Tensor bias_of(const OptTensor& bias, int64_t sequence) { return bias && bias->defined() ? on_cpu(*bias).select(0, sequence) : Tensor(); }

Six efficient_forward(const Tensor& q, const Tensor& k, const Tensor& v, const OptTensor& bias, const OptTensor& starts, const OptTensor& key_starts,
                      std::optional<c10::SymInt> longest_q, std::optional<c10::SymInt> longest_k, double p, int64_t form, bool, std::optional<double> scale,
                      const OptTensor& used, std::optional<int64_t> window) {
  check_devices({q, k, v, bias, starts, key_starts, used});
  for (const Tensor* x : {&q, &k, &v}) check_rows(*x, "the memory-efficient kernel");
  TORCH_CHECK(q.size(2) == k.size(2), "the memory-efficient kernel wants as many heads of keys as of queries");
  if (bias && bias->defined()) {
    TORCH_CHECK(bias->stride(3) == 1 && bias->stride(2) % 4 == 0 && bias->scalar_type() == q.scalar_type(), "the bias is not aligned");
    TORCH_CHECK((bias->sizes() == at::IntArrayRef{q.size(0), q.size(2), q.size(1), k.size(1)}), "the bias has another shape");
  }
  const double factor = scale.value_or(1.0 / std::sqrt(q.size(3)));
  const bool over = starts && starts->defined();
  const Tensor seeded = at::empty({}, q.options().dtype(at::kLong));
  const auto results = computed("aten::_efficient_attention_forward", q.device(), [=, q = bare(q), k = bare(k), v = bare(v), bias = bare(bias)] {
    const uint64_t seed = draw(seeded, p);
    const Tensor a = on_cpu(q), b = on_cpu(k), c = on_cpu(v);
    Tensor out = at::empty(q.sizes(), a.options());
    const Rules rules = {form == 1 || form == 2, window ? *window - 1 : -1, factor};
    if (over) {
      for (const Bounded& s : bounded(*starts, *key_starts, used)) {
        // The kernel is given no number of keys, so that all sequences and heads share one stream.
        const Tensor mask = masks(seed, q.size(2), s.queries, s.keys, p, [&](int64_t, int64_t i, int64_t j) { return i * s.keys + j; });
        const One one(a[0].narrow(0, s.q, s.queries), b[0].narrow(0, s.k, s.keys), c[0].narrow(0, s.k, s.keys), Tensor(), mask, rules);
        out[0].narrow(0, s.q, s.queries).copy_(one.forward());
      }
      return std::vector<Tensor>{out};
    }
    for (int64_t s = 0; s < q.size(0); ++s) {
      const int64_t n = q.size(1), m = k.size(1), h = q.size(2);
      const Tensor mask = masks(seed, h, n, m, p, [&](int64_t head, int64_t i, int64_t j) { return ((s * h + head) * n + i) * m + j; });
      out[s].copy_(One(a[s], b[s], c[s], bias_of(bias, s), mask, rules).forward());
    }
    return std::vector<Tensor>{out};
  });
  const auto options = q.options().dtype(at::kLong);
  return {results[0], at::empty({0}, q.options().dtype(at::kFloat)), seeded, at::empty({}, options), longest_q.value_or(q.size(1)), longest_k.value_or(k.size(1))};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> efficient_backward(const Tensor& dy, const Tensor& q, const Tensor& k, const Tensor& v, const OptTensor& bias,
                                                              const Tensor&, const OptTensor& starts, const OptTensor& key_starts, c10::SymInt longest_q,
                                                              c10::SymInt longest_k, const Tensor&, double p, const Tensor& seeded, const Tensor&, int64_t form,
                                                              bool, std::optional<double> scale, std::optional<int64_t>, std::optional<int64_t> window, bool) {
  const double factor = scale.value_or(1.0 / std::sqrt(q.size(3)));
  const int64_t n = longest_q.expect_int(), m = longest_k.expect_int(), h = q.size(2);
  const auto results = computed("aten::_efficient_attention_backward", q.device(), [=, q = bare(q), k = bare(k), v = bare(v), dy = bare(dy), bias = bare(bias)] {
    const uint64_t seed = numbers(seeded.view({1}))[0];
    const Tensor a = on_cpu(q), b = on_cpu(k), c = on_cpu(v), d = on_cpu(dy);
    std::vector<Tensor> made{at::zeros(q.sizes(), a.options()), at::zeros(k.sizes(), a.options()), at::zeros(v.sizes(), a.options())};
    const Rules rules = {form == 1 || form == 2, window ? *window - 1 : -1, factor};
    const bool over = starts && starts->defined();
    std::vector<Bounded> all;
    if (over) all = bounded(*starts, *key_starts, std::nullopt);
    for (int64_t s = 0; s < (over ? static_cast<int64_t>(all.size()) : q.size(0)); ++s) {
      const Bounded at = over ? all[s] : Bounded{0, n, 0, m};
      const int64_t row = over ? 0 : s;
      const Tensor mask = masks(seed, h, at.queries, at.keys, p, [&](int64_t head, int64_t i, int64_t j) { return ((s * h + head) * n + i) * m + j; });
      const One one(a[row].narrow(0, at.q, at.queries), b[row].narrow(0, at.k, at.keys), c[row].narrow(0, at.k, at.keys),
                    over ? Tensor() : bias_of(bias, s), mask, rules);
      const auto found = one.backward(d[row].narrow(0, at.q, at.queries), k.size(2));
      made[0][row].narrow(0, at.q, at.queries).copy_(found[0]);
      made[1][row].narrow(0, at.k, at.keys).copy_(found[1]);
      made[2][row].narrow(0, at.k, at.keys).copy_(found[2]);
    }
    return made;
  });
  return {results[0], results[1], results[2], Tensor()};
}

// Compute capability, as 90 for 9.0, or what STANDIN_TURING stands for.
int capability() {
  if (std::getenv("STANDIN_TURING")) return 75;
  const char* number = std::getenv("STANDIN_CAPABILITY");
  return number ? std::atoi(number) : 90;
}

void check_flash(const Tensor& q, const Tensor& k) {
  TORCH_CHECK(q.scalar_type() == at::kHalf || q.scalar_type() == at::kBFloat16, "FlashAttention only support fp16 and bf16 data type");
  TORCH_CHECK(capability() >= 80, "FlashAttention only supports Ampere GPUs or newer.");
  TORCH_CHECK(q.size(-1) % 8 == 0 && q.size(-1) <= 256, "FlashAttention takes head widths of multiples of 8 up to 256");
  TORCH_CHECK(q.size(1) % k.size(1) == 0, "Number of heads in key/value must divide number of heads in query");
}

// A query alone sees all keys; the kernel drops the causal rule then.
Rules flash_rules(bool causal, std::optional<c10::SymInt> left, double scale) {
  return {causal, left ? left->expect_int() : -1, scale};
}

using Five = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

Five flash_forward(const Tensor& q, const Tensor& k, const Tensor& v, const OptTensor& starts, const OptTensor& key_starts, c10::SymInt, c10::SymInt, double p,
                   bool causal, bool, std::optional<double> scale, std::optional<c10::SymInt> left, std::optional<c10::SymInt>, const OptTensor& used,
                   const OptTensor&) {
  check_flash(q, k);
  check_devices({q, k, v, starts, key_starts, used});
  for (const Tensor* x : {&q, &k, &v}) TORCH_CHECK(x->stride(-1) == 1, "Input tensor must have contiguous last dimension");
  const Rules rules = flash_rules(causal, left, scale.value_or(1.0 / std::sqrt(q.size(2))));
  const Tensor state = at::empty({1}, q.options().dtype(at::kLong));
  const auto results = computed("aten::_flash_attention_forward", q.device(), [=, q = bare(q), k = bare(k), v = bare(v)] {
    const uint64_t seed = draw(state, p);
    const Tensor a = on_cpu(q), b = on_cpu(k), c = on_cpu(v);
    Tensor out = at::empty(q.sizes(), a.options());
    int64_t number = 0;
    for (const Bounded& s : bounded(*starts, *key_starts, used)) {
      const uint64_t own = number++ << 40;
      const Tensor mask =
          masks(seed, q.size(1), s.queries, s.keys, p, [&](int64_t h, int64_t i, int64_t j) { return own + (h << 32) + (i << 16) + j; });
      const One one(a.narrow(0, s.q, s.queries), b.narrow(0, s.k, s.keys), c.narrow(0, s.k, s.keys), Tensor(), mask, rules);
      out.narrow(0, s.q, s.queries).copy_(one.forward());
    }
    if (std::getenv("STANDIN_WRONG")) out.mul_(1.1);
    return std::vector<Tensor>{out};
  });
  return {results[0], at::empty({0}, q.options().dtype(at::kFloat)), state, at::empty({0}, state.options()), at::empty({0}, q.options())};
}

std::tuple<Tensor, Tensor, Tensor> flash_backward(const Tensor& dy, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor&, const Tensor&,
                                                  const Tensor& starts, const Tensor& key_starts, c10::SymInt, c10::SymInt, double p, bool causal,
                                                  const Tensor& state, const Tensor&, std::optional<double> scale, std::optional<c10::SymInt> left,
                                                  std::optional<c10::SymInt>) {
  check_flash(q, k);
  const Rules rules = flash_rules(causal, left, scale.value_or(1.0 / std::sqrt(q.size(2))));
  const auto results = computed("aten::_flash_attention_backward", q.device(), [=, q = bare(q), k = bare(k), v = bare(v), dy = bare(dy)] {
    const uint64_t seed = numbers(state)[0];
    const Tensor a = on_cpu(q), b = on_cpu(k), c = on_cpu(v), d = on_cpu(dy);
    std::vector<Tensor> made{at::zeros(q.sizes(), a.options()), at::zeros(k.sizes(), a.options()), at::zeros(v.sizes(), a.options())};
    // Where a block has less than 144 KiB of shared memory, no kernel is launched for wide heads with dropout, and nothing says so.
    if (p > 0 && q.size(2) > 192 && (capability() == 86 || capability() == 89 || capability() >= 120)) {
      for (Tensor& gradient : made) gradient.fill_(NAN);
      return made;
    }
    int64_t number = 0;
    for (const Bounded& s : bounded(starts, key_starts, std::nullopt)) {
      const uint64_t own = number++ << 40;
      const Tensor mask =
          masks(seed, q.size(1), s.queries, s.keys, p, [&](int64_t h, int64_t i, int64_t j) { return own + (h << 32) + (i << 16) + j; });
      const One one(a.narrow(0, s.q, s.queries), b.narrow(0, s.k, s.keys), c.narrow(0, s.k, s.keys), Tensor(), mask, rules);
      const auto found = one.backward(d.narrow(0, s.q, s.queries), k.size(1));
      made[0].narrow(0, s.q, s.queries).copy_(found[0]);
      made[1].narrow(0, s.k, s.keys).copy_(found[1]);
      made[2].narrow(0, s.k, s.keys).copy_(found[2]);
    }
    return made;
  });
  return {results[0], results[1], results[2]};
}

// Root-mean-square norms: fused on CUDA, which libtorch's CPU part has no backward pass for.

std::tuple<Tensor, Tensor> rms_norm(const Tensor& x, at::IntArrayRef shape, const OptTensor& weight, std::optional<double> eps) {
  TORCH_CHECK(!weight || !weight->defined() || weight->scalar_type() == x.scalar_type(), "expected one kind of input and weight");
  const double small = eps.value_or(1e-6);
  const auto results = computed("aten::_fused_rms_norm", x.device(), [=, x = bare(x), size = shape.vec()] {
    const Tensor wide = on_cpu(x).to(at::kFloat);
    const Tensor scale = wide.square().mean(-1, true).add(small).rsqrt();
    Tensor y = wide * scale;
    if (weight && weight->defined()) y = y * on_cpu(*weight).to(at::kFloat);
    return std::vector<Tensor>{y.to(x.scalar_type()).contiguous(), scale};
  });
  return {results[0], results[1]};
}

std::tuple<Tensor, Tensor> rms_norm_backward(const Tensor& dy, const Tensor& x, at::IntArrayRef, const Tensor& scale, const OptTensor& weight,
                                             std::array<bool, 2> wanted) {
  const auto results = computed("aten::_fused_rms_norm_backward", x.device(), [=, x = bare(x), dy = bare(dy), scale = bare(scale)] {
    const Tensor wide = on_cpu(x).to(at::kFloat), inverse = on_cpu(scale), own = on_cpu(dy).to(at::kFloat);
    const Tensor weighted = weight && weight->defined() ? own * on_cpu(*weight).to(at::kFloat) : own, normed = wide * inverse;
    const Tensor dx = (weighted - normed * (weighted * normed).mean(-1, true)) * inverse;
    return std::vector<Tensor>{dx.to(x.scalar_type()).contiguous(), (own * normed).view({-1, x.size(-1)}).sum(0).to(x.scalar_type())};
  });
  return {wanted[0] ? results[0] : Tensor(), wanted[1] && weight && weight->defined() ? results[1] : Tensor()};
}

// Softmax of fp16 with results in fp32, which only a GPU has.

Tensor softmax(const Tensor& x, int64_t axis, bool widens) {
  return computed("aten::_softmax", x.device(), [=, x = bare(x)] {
    const Tensor own = on_cpu(x);
    return std::vector<Tensor>{at::_softmax(widens ? own.to(at::kFloat) : own, axis, false)};
  })[0];
}

Tensor softmax_backward(const Tensor& dy, const Tensor& y, int64_t axis, at::ScalarType kind) {
  return computed("aten::_softmax_backward_data", dy.device(), [=, dy = bare(dy), y = bare(y)] {
    return std::vector<Tensor>{at::_softmax_backward_data(on_cpu(dy), on_cpu(y), axis, dy.scalar_type()).to(kind)};
  })[0];
}

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&run>()); }

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", &empty_memory_format);
  m.impl("empty_strided", &empty_strided);
  m.impl("as_strided", &at::native::as_strided_tensorimpl);
  m.impl("view", &at::native::view);
  m.impl("_reshape_alias", &at::native::_reshape_alias);
  m.impl("unfold", &at::native::unfold);
  m.impl("copy_", &copy);
  m.impl("_local_scalar_dense", &to_number);
  m.impl("resize_", &resized);
  m.impl("set_.source_Storage_storage_offset", &set_storage);
  m.impl("_efficient_attention_forward", &efficient_forward);
  m.impl("_efficient_attention_backward", &efficient_backward);
  m.impl("_flash_attention_forward", &flash_forward);
  m.impl("_flash_attention_backward", &flash_backward);
  m.impl("bmm.dtype", &wide_products);
  m.impl("_softmax", &softmax);
  m.impl("_softmax_backward_data", &softmax_backward);
  m.impl("_fused_rms_norm", &rms_norm);
  m.impl("_fused_rms_norm_backward", &rms_norm_backward);
}

}  // namespace

// NVRTC and the driver (src/torch/cuda_kernels.h). A program is compiled for CPUs, after cuda_on_cpu.h, which lies beside this library, and kept
// there.

namespace {

struct Program {
  std::string source, library, log;
};

struct Compiled {
  std::string name;
  size_t size;  // of its argument
  void (*start)(const void*, unsigned, unsigned);
};

std::string folder() {
  Dl_info found;
  TORCH_CHECK(dladdr(reinterpret_cast<void*>(&folder), &found), "where is the stand-in?");
  const std::string path = found.dli_fname;
  return path.substr(0, path.rfind('/'));
}

// The source with a function for each kernel that takes its argument by address.
std::string with_starts(const std::string& source) {
  std::string all = "#include \"cuda_on_cpu.h\"\n" + source;
  const char* const meets = source.find("_sync") == std::string::npos ? "false" : "true";
  const std::regex kernel("__global__ void (?:__launch_bounds__\\([^)]*\\) )?(\\w+)\\((\\w+) job\\)");
  for (auto at = std::sregex_iterator(source.begin(), source.end(), kernel); at != std::sregex_iterator(); ++at) {
    const std::string name = (*at)[1], job = (*at)[2];
    all += "#pragma GCC visibility push(default)\nextern \"C\" void " + name + "_start(const void* job, unsigned blocks, unsigned threads) { cuda_on_cpu::run<" + job + ">(&" + name +
           ", job, blocks, threads, " + meets + "); }\nextern \"C\" const unsigned long " + name + "_size = sizeof(" + job + ");\n#pragma GCC visibility pop\n";
  }
  return all;
}

bool build(Program& program) {
  const std::string source = with_starts(program.source), base = folder() + "/kernels-" + std::to_string(std::hash<std::string>()(source));
  program.library = base + ".so";
  if (access(program.library.c_str(), R_OK) == 0) return true;
  const std::string own = base + "." + std::to_string(getpid());
  std::ofstream(own + ".cpp") << source;
  const std::string command = STANDIN_COMPILER " -std=c++17 -O2 -fPIC -shared -fvisibility=hidden -fno-gnu-unique -fno-strict-aliasing -U_FORTIFY_SOURCE -I" + folder() + " " + own + ".cpp -o " + own + ".so 2> " + own + ".log";
  const bool made = std::system(command.c_str()) == 0;
  std::ostringstream log;
  log << std::ifstream(own + ".log").rdbuf();
  program.log = log.str();
  if (made) std::rename((own + ".so").c_str(), program.library.c_str());
  for (const char* end : {".cpp", ".log", ".so"}) std::remove((own + end).c_str());
  return made;
}

}  // namespace

extern "C" {
int nvrtcCreateProgram(Program** program, const char* source, const char*, int, const char* const*, const char* const*) {
  return *program = new Program{source, "", ""}, 0;
}
int nvrtcCompileProgram(Program* program, int, const char* const*) {
  if (build(*program)) return 0;
  // No test may pass without the kernels.
  std::fputs(program->log.c_str(), stderr);
  std::abort();
}
int nvrtcGetProgramLogSize(Program* program, size_t* size) { return *size = program->log.size() + 1, 0; }
int nvrtcGetProgramLog(Program* program, char* log) { return std::strcpy(log, program->log.c_str()), 0; }
int nvrtcGetCUBINSize(Program* program, size_t* size) { return *size = program->library.size() + 1, 0; }
int nvrtcGetCUBIN(Program* program, char* binary) { return std::strcpy(binary, program->library.c_str()), 0; }
int nvrtcDestroyProgram(Program** program) { return delete *program, 0; }
int cuInit(unsigned) { return 0; }
int cuDeviceGetCount(int* count) { return *count = DEVICES, 0; }
// Memory that can be mapped, but for STANDIN_VIRTUAL; four multiprocessors, so that sequences are divided into few parts or none.
int cuDeviceGetAttribute(int* value, int which, int) {
  switch (which) {
    case 75: return *value = capability() / 10, 0;
    case 76: return *value = capability() % 10, 0;
    case 102: return *value = !std::getenv("STANDIN_VIRTUAL"), 0;
    default: return *value = 4, 0;
  }
}
int cuDevicePrimaryCtxRetain(void**, int) { return 0; }
int cuCtxGetCurrent(void** context) { return *context = nullptr, 0; }
int cuCtxSetCurrent(void*) { return 0; }
int cuModuleLoadData(void** module, const void* binary) { return (*module = dlopen(static_cast<const char*>(binary), RTLD_NOW)) ? 0 : 200; }
int cuModuleGetFunction(Compiled** function, void* module, const char* name) {
  const std::string named = name;
  const auto start = dlsym(module, (named + "_start").c_str()), size = dlsym(module, (named + "_size").c_str());
  if (!start || !size) return 500;  // CUDA_ERROR_NOT_FOUND
  *function = new Compiled{named, *static_cast<const size_t*>(size), reinterpret_cast<void (*)(const void*, unsigned, unsigned)>(start)};
  return 0;
}
int cuLaunchKernel(const Compiled* kernel, unsigned blocks, unsigned, unsigned, unsigned threads, unsigned, unsigned, unsigned, void*, void** arguments, void**) {
  count_on({CUDA, current_device}, kernel->name);
  const auto* bytes = static_cast<const char*>(arguments[0]);
  const auto step = [kernel, blocks, threads, job = std::vector<char>(bytes, bytes + kernel->size)] { kernel->start(job.data(), blocks, threads); };
  step();
  note(step);
  return 0;
}
}

// What libtorch_cuda is asked for by name (src/torch/on_cuda.h, src/torch/glue.cpp).
namespace at::cuda {

__attribute__((visibility("default"))) c10::SmallVector<Tensor> CompileAndLaunchKernel(const std::string&, const std::string& name, int,
                                                                                      const c10::SmallVector<Tensor>& inputs,
                                                                                      const c10::SmallVector<Scalar>&, bool) {
  const auto made = computed(name.c_str(), inputs[0].device(), [inputs = bare(inputs), name]() -> std::vector<Tensor> {
    const auto wide = [&](size_t i) { return on_cpu(inputs[i]).to(at::kFloat); };
    const auto narrow = [&](const Tensor& x) { return x.to(inputs[0].scalar_type()); };
    if (name == "lx_swiglu") return {narrow(at::silu(wide(0)) * wide(1))};
    TORCH_CHECK(name == "lx_swiglu_back", "the stand-in has no kernel ", name);
    return {narrow(at::silu_backward(wide(0) * wide(2), wide(1))), narrow(wide(0) * at::silu(wide(1)))};
  });
  return {made.begin(), made.end()};
}

struct __attribute__((visibility("default"))) CUDAGraph {
  std::vector<std::function<void()>>* steps;
  int64_t own;

  explicit CUDAGraph(bool);
  ~CUDAGraph();
  void capture_begin(c10::MempoolId_t, int);
  void capture_end();
  void replay();
  c10::MempoolId_t pool();
};

// Memory and generator at the beginning of a recording.
std::map<void*, std::vector<char>> before;
Tensor drawn;

CUDAGraph::CUDAGraph(bool) : steps(new std::vector<std::function<void()>>), own(0) {}
CUDAGraph::~CUDAGraph() {
  delete steps;
  const std::lock_guard lock(memory.mutex);
  if (own) --memory.recordings[own];
}
void CUDAGraph::capture_begin(c10::MempoolId_t pool, int) {
  TORCH_CHECK(current_stream[::current_device] != 0, "CUDA graphs must be captured on a non-default stream.");
  // What is recorded does not run.
  const std::lock_guard lock(memory.mutex);
  for (const auto& [at, block] : memory.blocks) before[at].assign(static_cast<char*>(at), static_cast<char*>(at) + block.bytes);
  drawn = generator(::current_device).get_state();
  static int64_t last = 0;
  own = pool.first ? static_cast<int64_t>(pool.first) : ++last;
  ++memory.recordings[own];
  memory.pool = own;
  recorded = steps;
  is_spoilt = std::getenv("STANDIN_UNRECORDED");
}
void CUDAGraph::capture_end() {
  recorded = nullptr;
  const std::lock_guard lock(memory.mutex);
  for (const auto& [at, block] : memory.blocks) {
    const auto found = before.find(at);
    if (found == before.end() || found->second.size() != block.bytes) {
      std::memset(at, 0xff, block.bytes);
    } else {
      std::memcpy(at, found->second.data(), block.bytes);
    }
  }
  before.clear();
  at::Generator(generator(::current_device)).set_state(drawn);
  TORCH_CHECK(!is_spoilt, "CUDA error: operation failed due to a previous error during capture");
}
c10::MempoolId_t CUDAGraph::pool() { return {static_cast<c10::CaptureId_t>(own), 0}; }
void CUDAGraph::replay() {
  ++given;
  count("replay");
  for (const auto& step : *steps) step();
}

}  // namespace at::cuda

// The real function's second parameter is an enumeration of the CUDA runtime.
extern "C" __attribute__((visibility("default"))) void standin_capture_begin(at::cuda::CUDAGraph* graph, c10::MempoolId_t pool, int mode)
    __asm__("_ZN2at4cuda9CUDAGraph13capture_beginESt4pairIyyE21cudaStreamCaptureMode");
void standin_capture_begin(at::cuda::CUDAGraph* graph, c10::MempoolId_t pool, int mode) { graph->capture_begin(pool, mode); }

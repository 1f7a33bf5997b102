// c10d's TCPStore and ProcessGroupGloo of libtorch_cpu 2.11, as C functions (src/torch/world/ declares them).

#define USE_C10D_GLOO 1

#include <ATen/ATen.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <sstream>
#include <string>
#include <vector>

#include "guarded.h"

namespace {

using c10d::ProcessGroupGloo;
using std::chrono::milliseconds;
using StorePtr = c10::intrusive_ptr<c10d::Store>;
using GroupPtr = c10::intrusive_ptr<ProcessGroupGloo>;

const StorePtr& store_of(const void* store) { return *static_cast<const StorePtr*>(store); }
ProcessGroupGloo& group_of(void* group) { return **static_cast<GroupPtr*>(group); }

// An operation under way. `c10d::Work::wait` throws when its time is up, which is slow and ends the work.
struct Pending {
  struct Signal {
    std::mutex lock;
    std::condition_variable changed;
    bool done = false;
  };
  c10::intrusive_ptr<c10d::Work> work;
  std::shared_ptr<Signal> signal = std::make_shared<Signal>();

  explicit Pending(c10::intrusive_ptr<c10d::Work> started) : work(std::move(started)) {
    work->getFuture()->addCallback([signal = signal](c10::ivalue::Future&) {
      const std::lock_guard<std::mutex> held(signal->lock);
      signal->done = true;
      signal->changed.notify_all();
    });
  }
};

using Take = void (*)(void*, const uint8_t*, size_t);

}  // namespace

extern "C" {

// role: -1 = connect to a store, 0 = make it at `port`, else a socket that listens there, at which to make it.
int lx_store_open(void** out, const char* host, int port, int role, int64_t millis, const char* prefix) {
  return guarded([&] {
    // c10d prints each failure with a stack, though it is told by an exception as well.
    constexpr int fatal = 3;
    if (std::getenv("TORCH_CPP_LOG_LEVEL") == nullptr) FLAGS_caffe2_log_level = fatal;
    c10d::TCPStoreOptions options;
    options.port = static_cast<uint16_t>(port);
    options.isServer = role >= 0;
    if (role > 0) options.masterListenFd = role;
    options.waitWorkers = false;
    options.timeout = milliseconds(millis);
    auto store = c10::make_intrusive<c10d::TCPStore>(host, options);
    // The time to connect is not that of later calls.
    store->setTimeout(c10d::Store::kDefaultTimeout);
    *out = new StorePtr(c10::make_intrusive<c10d::PrefixStore>(prefix, store));
  });
}

int lx_store_set(void* store, const char* key, const uint8_t* bytes, size_t count) {
  return guarded([&] { store_of(store)->set(key, std::vector<uint8_t>(bytes, bytes + count)); });
}

// Sets a key that has no value; `take` gets its value then.
int lx_store_set_first(void* store, const char* key, const uint8_t* bytes, size_t count, void* sink, Take take) {
  return guarded([&] {
    const auto found = store_of(store)->compareSet(key, std::vector<uint8_t>(), std::vector<uint8_t>(bytes, bytes + count));
    take(sink, found.data(), found.size());
  });
}

// Waits for a key.
int lx_store_get(void* store, const char* key, int64_t millis, void* sink, Take take) {
  return guarded([&] {
    store_of(store)->wait({key}, milliseconds(millis));
    const auto found = store_of(store)->get(key);
    take(sink, found.data(), found.size());
  });
}

int lx_store_get_many(void* store, const char* const* keys, size_t count, void* sink, Take take) {
  return guarded([&] {
    for (const auto& found : store_of(store)->multiGet(std::vector<std::string>(keys, keys + count))) {
      take(sink, found.data(), found.size());
    }
  });
}

int lx_store_has(void* store, const char* key, int* found) {
  return guarded([&] { *found = store_of(store)->check({key}); });
}

int lx_store_remove(void* store, const char* key) {
  return guarded([&] { store_of(store)->deleteKey(key); });
}

int lx_store_add(void* store, const char* key, int64_t number, int64_t* sum) {
  return guarded([&] { *sum = store_of(store)->add(key, number); });
}

// Connects all processes. `interfaces`: names of network interfaces, by commas; if empty, the one with the address `host`.
int lx_group_open(void** out, const void* store, int rank, int size, int64_t millis, const char* interfaces, const char* host) {
  return guarded([&] {
    auto options = ProcessGroupGloo::Options::create(milliseconds(millis));
    std::istringstream names(interfaces);
    for (std::string name; std::getline(names, name, ',');) {
      options->devices.push_back(ProcessGroupGloo::createDeviceForInterface(name));
    }
    if (options->devices.empty()) options->devices.push_back(ProcessGroupGloo::createDeviceForHostname(host));
    *out = new GroupPtr(c10::make_intrusive<ProcessGroupGloo>(store_of(store), rank, size, options));
  });
}

int lx_group_all_reduce(void** out, void* group, const at::Tensor* tensor) {
  return guarded([&] {
    std::vector<at::Tensor> tensors{*tensor};
    *out = new Pending(group_of(group).allreduce(tensors));
  });
}

int lx_group_broadcast(void** out, void* group, const at::Tensor* tensor, int from) {
  return guarded([&] {
    std::vector<at::Tensor> tensors{*tensor};
    c10d::BroadcastOptions options;
    options.rootRank = from;
    *out = new Pending(group_of(group).broadcast(tensors, options));
  });
}

// all: [n, ...], one row from each of n processes.
int lx_group_gather(void** out, void* group, const at::Tensor* all, const at::Tensor* own) {
  return guarded([&] {
    std::vector<std::vector<at::Tensor>> rows{all->unbind(0)};
    std::vector<at::Tensor> tensors{*own};
    *out = new Pending(group_of(group).allgather(rows, tensors));
  });
}

// Waits for so long; fails if the operation did.
int lx_work_wait(void* work, int64_t millis, int* done) {
  return guarded([&] {
    auto& [pending, signal] = *static_cast<Pending*>(work);
    {
      std::unique_lock<std::mutex> held(signal->lock);
      *done = signal->changed.wait_for(held, milliseconds(millis), [&] { return signal->done; });
    }
    if (*done) pending->wait();
  });
}

void lx_work_free(void* work) { delete static_cast<Pending*>(work); }

}  // extern "C"

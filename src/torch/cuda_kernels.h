// Kernels of our own on a GPU, in CUDA C++: NVRTC, which libtorch_cuda brings for its own, compiles them when they are first needed.
#pragma once

#include <ATen/ATen.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <dlfcn.h>

#include <array>
#include <map>
#include <mutex>
#include <string>
#include <vector>

// Functions of NVRTC and of the driver; their headers, nvrtc.h and cuda.h, are not needed otherwise.
template <typename F>
F toolkit_function(const char* name) {
  void* found = nullptr;
  for (const char* library : {"libcaffe2_nvrtc.so", "libnvrtc.so.13", "libcuda.so.1"}) {
    void* const handle = dlopen(library, RTLD_NOW);
    if (handle && (found = dlsym(handle, name))) break;
  }
  TORCH_CHECK(found, "no ", name, " in the libraries of CUDA");
  return reinterpret_cast<F>(found);
}

// Calls a function of the driver or of NVRTC, whose results are 0 on success.
template <typename... A>
void call_toolkit(const char* name, A... arguments) {
  const int failed = toolkit_function<int (*)(A...)>(name)(arguments...);
  TORCH_CHECK(failed == 0, name, " failed with ", failed);
}

// The compute capability of a device, as 90 for 9.0.
inline int capability(int device) {
  int major = 0, minor = 0;
  call_toolkit("cuDeviceGetAttribute", &major, 75, device);
  call_toolkit("cuDeviceGetAttribute", &minor, 76, device);
  return 10 * major + minor;
}

// The kernels of one source on each device.
class CudaKernels {
 public:
  CudaKernels(const char* source, std::vector<const char*> names) : source(source), names(std::move(names)) {}

  // Launches kernel `which` with one argument, a struct, on the current stream of the device.
  template <typename Job>
  void launch(int which, Job job, int64_t blocks, int threads, c10::Device device) {
    const auto function = on(device.index())[which];
    const c10::impl::VirtualGuardImpl cuda(c10::DeviceType::CUDA);
    void* const stream = cuda.getStream(device).native_handle();
    void* arguments[] = {&job};
    static const auto start =
        toolkit_function<int (*)(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**, void**)>(
            "cuLaunchKernel");
    const int failed = start(function, static_cast<unsigned>(blocks), 1, 1, threads, 1, 1, 0, stream, arguments, nullptr);
    TORCH_CHECK(failed == 0, "CUDA error: the kernel ", names[which], " cannot be launched: ", failed);
  }

  // Compiles the kernels for a device, unless it was done.
  const std::vector<void*>& on(int device) {
    const std::lock_guard lock(mutex);
    auto [at, is_new] = compiled.try_emplace(device);
    if (is_new || at->second.empty()) at->second = compile(device);
    return at->second;
  }

 private:
  std::vector<void*> compile(int device) const {
    const std::string architecture = "--gpu-architecture=sm_" + std::to_string(capability(device));
    const std::array<const char*, 1> options{architecture.c_str()};
    void *program = nullptr, *module = nullptr, *context = nullptr;
    call_toolkit("nvrtcCreateProgram", &program, source, names[0], 0, nullptr, nullptr);
    call_toolkit("nvrtcCompileProgram", program, static_cast<int>(options.size()), options.data());
    size_t size = 0;
    call_toolkit("nvrtcGetCUBINSize", program, &size);
    std::vector<char> binary(size);
    call_toolkit("nvrtcGetCUBIN", program, binary.data());
    call_toolkit("nvrtcDestroyProgram", &program);
    // The context that libtorch uses, which a new thread may not have yet.
    call_toolkit("cuDevicePrimaryCtxRetain", &context, device);
    call_toolkit("cuCtxSetCurrent", context);
    call_toolkit("cuModuleLoadData", &module, static_cast<const void*>(binary.data()));
    std::vector<void*> functions;
    for (const char* name : names) {
      functions.emplace_back();
      call_toolkit("cuModuleGetFunction", &functions.back(), module, name);
    }
    return functions;
  }

  const char* source;
  std::vector<const char*> names;
  std::mutex mutex;
  std::map<int, std::vector<void*>> compiled;
};

// Kernels of our own on a GPU, in CUDA C++: NVRTC, which libtorch_cuda brings for its own, compiles them when they are first needed.
#pragma once

#include <ATen/ATen.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <dlfcn.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <map>
#include <mutex>
#include <string>
#include <vector>

// Declares the struct that a kernel takes, here and, as NAME_SOURCE, for the kernel.
#define LX_JOB(name, ...)   \
  struct name {             \
    __VA_ARGS__             \
  };                        \
  constexpr const char* name##_SOURCE = "struct " #name " {" #__VA_ARGS__ "};\n";

// What all sources begin with: names that CUDA's headers would bring, and instructions that have no name in C++. Where a compiler for CPUs
// defines LX_ON_CPU, it has them already.
constexpr const char* BASIS = R"(
#ifndef LX_ON_CPU
typedef unsigned short uint16_t;
typedef long long int64_t;
#define INFINITY __uint_as_float(0x7f800000u)
__device__ float from_f16(uint16_t x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
  return y;
}
__device__ uint16_t to_f16(float x) {
  uint16_t y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
  return y;
}
__device__ float from_bf16(uint16_t x) { return __uint_as_float((unsigned)x << 16); }
#define LX_MULTIPLY(kind)                                                                                                                 \
  __device__ void multiply_##kind(float (&sum)[4], const unsigned (&a)[4], unsigned b_low, unsigned b_high) {                             \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." #kind "." #kind ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])                                                                          \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b_low), "r"(b_high));                                                           \
  }
LX_MULTIPLY(bf16)
LX_MULTIPLY(f16)
#endif

// Kinds of numbers: how one is read, and what another is rounded to.
struct F32 {
  typedef float Number;
  static __device__ float read(float x) { return x; }
  static __device__ float rounded(float x) { return x; }
};
struct Bf16 {
  typedef uint16_t Number;
  static __device__ float read(uint16_t x) { return from_bf16(x); }
  static __device__ uint16_t rounded(float x) {
    const unsigned bits = __float_as_uint(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;
    return (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
  }
};
struct F16 {
  typedef uint16_t Number;
  static __device__ float read(uint16_t x) { return from_f16(x); }
  static __device__ uint16_t rounded(float x) { return to_f16(x); }
};
)";

// The place of a tensor's kind among those above; -1 for none.
inline int kind_of(const at::Tensor& x) {
  switch (x.scalar_type()) {
    case at::kFloat: return 0;
    case at::kBFloat16: return 1;
    case at::kHalf: return 2;
    default: return -1;
  }
}

// Where a tensor's numbers begin; null if it is undefined.
inline void* begin(const at::Tensor& x) { return x.defined() ? x.data_ptr() : nullptr; }

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

// A result of the driver's in words by which a lack of memory is known (CUDA_ERROR_OUT_OF_MEMORY).
inline std::string told(int result) { return std::to_string(result) + (result == 2 ? ", out of memory" : ""); }

// Calls a function of the driver or of NVRTC, whose results are 0 on success.
template <typename... A>
void call_toolkit(const char* name, A... arguments) {
  const int failed = toolkit_function<int (*)(A...)>(name)(arguments...);
  TORCH_CHECK(failed == 0, name, " failed with ", name[0] == 'c' ? told(failed) : std::to_string(failed));
}

// The compute capability of a device, as 90 for 9.0.
inline int capability_of(int device) {
  // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR.
  int major = 0, minor = 0;
  call_toolkit("cuDeviceGetAttribute", &major, 75, device);
  call_toolkit("cuDeviceGetAttribute", &minor, 76, device);
  return 10 * major + minor;
}

// Makes a device's context, which libtorch shares, the current one of this thread, which may have that of another device or none yet.
class InContext {
 public:
  explicit InContext(void* context) {
    static const auto current = toolkit_function<int (*)(void**)>("cuCtxGetCurrent");
    TORCH_CHECK(current(&before) == 0, "CUDA error: no context");
    changed = before != context;
    if (changed) TORCH_CHECK(set(context) == 0, "CUDA error: a context cannot be made current");
  }
  ~InContext() {
    if (changed) set(before);
  }
  InContext(const InContext&) = delete;
  InContext& operator=(const InContext&) = delete;

 private:
  static int set(void* context) {
    static const auto set = toolkit_function<int (*)(void*)>("cuCtxSetCurrent");
    return set(context);
  }

  void* before = nullptr;
  bool changed = false;
};

// The kernels of one source on each device.
class CudaKernels {
 public:
  // The source consists of settings, the structs and the kernels, which serve devices from a compute capability on, as 80 for 8.0.
  CudaKernels(std::initializer_list<const char*> parts, std::vector<const char*> names, int least = 0) : names(std::move(names)), least(least) {
    for (const char* part : parts) source += part;
  }

  // Launches kernel `which` with one argument, a struct, on the current stream of the device.
  template <typename Job>
  void launch(int which, Job job, int64_t blocks, int threads, c10::Device device) {
    const Compiled& all = on(device.index());
    const c10::impl::VirtualGuardImpl cuda(c10::DeviceType::CUDA);
    void* const stream = cuda.getStream(device).native_handle();
    void* arguments[] = {&job};
    static const auto start =
        toolkit_function<int (*)(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**, void**)>(
            "cuLaunchKernel");
    const InContext here(all.context);
    const int failed = start(all.functions[which], static_cast<unsigned>(blocks), 1, 1, threads, 1, 1, 0, stream, arguments, nullptr);
    TORCH_CHECK(failed == 0, "CUDA error: the kernel ", names[which], " cannot be launched: ", told(failed));
  }

  // True if the kernels can be launched on a device; compiles them the first time.
  bool serve(int device) { return !on(device).functions.empty(); }

  // What serves a device, for a report.
  std::string state(int device) {
    if (!are_wanted()) return "libtorch's, by LORAXS_CUDA_KERNELS";
    return serve(device) ? "own, compiled" : "libtorch's: own ones cannot be compiled";
  }

  // The compute capability of a device that they serve, as 90 for 9.0.
  int capability(int device) { return on(device).capability; }

  // How many blocks a device computes side by side, at least.
  int multiprocessors(int device) { return on(device).multiprocessors; }

 private:
  struct Compiled {
    std::vector<void*> functions;  // none where CUDA's libraries do not compile
    void* context = nullptr;
    int capability = 0, multiprocessors = 0;
  };

  static bool are_wanted() {
    const char* told = std::getenv("LORAXS_CUDA_KERNELS");
    return !told || std::strcmp(told, "0") != 0;
  }

  const Compiled& on(int device) {
    const std::lock_guard lock(mutex);
    auto [at, is_new] = compiled.try_emplace(device);
    if (!is_new) return at->second;
    try {
      at->second = compile(device);
    } catch (const c10::Error& error) {
      TORCH_WARN("slower kernels are used on this GPU: ", error.what_without_backtrace());
    }
    return at->second;
  }

  Compiled compile(int device) const {
    // CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT.
    int multiprocessors = 0;
    call_toolkit("cuDeviceGetAttribute", &multiprocessors, 16, device);
    Compiled made{{}, nullptr, capability_of(device), multiprocessors};
    if (made.capability < least || !are_wanted()) return made;
    const std::string architecture = "--gpu-architecture=sm_" + std::to_string(made.capability);
    const std::array<const char*, 1> options{architecture.c_str()};
    void *program = nullptr, *module = nullptr;
    call_toolkit("nvrtcCreateProgram", &program, source.c_str(), names[0], 0, nullptr, nullptr);
    size_t size = 0;
    if (toolkit_function<int (*)(void*, int, const char* const*)>("nvrtcCompileProgram")(program, options.size(), options.data()) != 0) {
      call_toolkit("nvrtcGetProgramLogSize", program, &size);
      std::string log(size, ' ');
      call_toolkit("nvrtcGetProgramLog", program, log.data());
      call_toolkit("nvrtcDestroyProgram", &program);
      TORCH_CHECK(false, "NVRTC says: ", log);
    }
    call_toolkit("nvrtcGetCUBINSize", program, &size);
    std::vector<char> binary(size);
    call_toolkit("nvrtcGetCUBIN", program, binary.data());
    call_toolkit("nvrtcDestroyProgram", &program);
    call_toolkit("cuDevicePrimaryCtxRetain", &made.context, device);
    const InContext here(made.context);
    call_toolkit("cuModuleLoadData", &module, static_cast<const void*>(binary.data()));
    for (const char* name : names) {
      made.functions.emplace_back();
      call_toolkit("cuModuleGetFunction", &made.functions.back(), module, name);
    }
    return made;
  }

  std::string source = BASIS;
  std::vector<const char*> names;
  int least;
  std::mutex mutex;
  std::map<int, Compiled> compiled;
};

// Functions of libtorch_cuda, which is not linked but loaded where there is a GPU. Their names are those of version 2.11.
#pragma once

#include <ATen/ATen.h>
#include <dlfcn.h>

#include <string>

template <typename F>
F cuda_function(const char* name) {
  void* found = dlsym(RTLD_DEFAULT, name);
  TORCH_CHECK(found, "libtorch_cuda has no ", name);
  return reinterpret_cast<F>(found);
}

// Computes `outputs` tensors element by element in one kernel, compiled when it is first used: `code` is a template function over the
// kind of the inputs, as torch.cuda.jiterator takes it (ATen/cuda/jiterator.h).
inline c10::SmallVector<at::Tensor> elementwise(const char* name, const char* code, int outputs, at::TensorList inputs) {
  using Tensors = c10::SmallVector<at::Tensor>;
  using Scalars = c10::SmallVector<at::Scalar>;
  using Launch = Tensors (*)(const std::string&, const std::string&, int, const Tensors&, const Scalars&, bool);
  static const auto launch = cuda_function<Launch>(
      "_ZN2at4cuda22CompileAndLaunchKernelERKNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEES8_iRKN3c1011SmallVectorINS_6TensorELj6EEERK"
      "NSA_INS9_6ScalarELj1EEEb");
  return launch(code, name, outputs, Tensors(inputs.begin(), inputs.end()), Scalars(), outputs > 1);
}

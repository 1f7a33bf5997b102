// Functions over `at::Tensor*` return 0, or 1 after keeping the message of the C++ exception for `lx_last_error`.

#pragma once

#include <c10/util/Exception.h>

#include <string>

inline std::string& last_error() {
  thread_local std::string message;
  return message;
}

template <typename F>
int guarded(F&& body) {
  try {
    body();
    return 0;
  } catch (const c10::Error& e) {
    last_error() = e.what_without_backtrace();
  } catch (const std::exception& e) {
    last_error() = e.what();
  }
  return 1;
}

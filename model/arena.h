// One buffer, many tensors: how a model plans its memory before the first step.
#pragma once

#include <cstdint>

#include "kernels/tensor.h"

namespace outeffhop {

/// Hands out consecutive, 64-byte aligned tensors of one buffer. Without a base it only counts, so the same layout code runs
/// twice: once to learn how large the buffer must be, once to place the tensors in it.
class Arena {
 public:
  explicit Arena(void* base = nullptr) : base_(static_cast<char*>(base)) {}

  Tensor take(std::int64_t count, DType dtype) {
    const std::size_t offset = used_;
    used_ += (static_cast<std::size_t>(count) * size_of(dtype) + 63) / 64 * 64;
    return {base_ ? base_ + offset : nullptr, dtype};
  }
  std::size_t used() const { return used_; }

 private:
  char* base_;
  std::size_t used_ = 0;
};

}  // namespace outeffhop

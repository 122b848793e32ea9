// What an op needs of the device it runs on.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace outeffhop::cuda {

/// Device memory that ops work in, grown where one asks for more than there was. Ops use it one after the other, on one
/// stream: what an op left in it is gone when the next one begins.
class Workspace {
 public:
  Workspace() = default;
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  ~Workspace();

  /// At least `bytes` bytes, 256-byte aligned, of any content. Growing allocates, which a stream that is being captured
  /// may not: run a step once before it is recorded.
  void* bytes(std::size_t bytes);
  template <class T>
  T* array(std::size_t count) {
    return static_cast<T*>(bytes(count * sizeof(T)));
  }
  std::size_t capacity() const { return capacity_; }
  /// Another number after each time that it moved.
  std::int64_t generation() const { return generation_; }

 private:
  void* data_ = nullptr;
  std::size_t capacity_ = 0;
  std::int64_t generation_ = 0;
};

struct Context {
  cudaStream_t stream = nullptr;
  Workspace& workspace;
  std::size_t shared_bytes = 48 * 1024;  ///< of shared memory that a block can have
  int multiprocessors = 1;  ///< to choose among kernels of the same results by; no sum's order may depend on it
};

}  // namespace outeffhop::cuda

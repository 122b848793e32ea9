// Copies from the host that do not make it wait for the device: through pinned memory, which the device reads by itself.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <vector>

namespace outeffhop::cuda {

class Staging {
 public:
  /// With buffers for `slots` copies of up to `largest` bytes, each made and grown when it is needed.
  explicit Staging(std::size_t slots = kSlots, std::size_t largest = kLargest) : slots_(slots), largest_(largest) {}
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;
  ~Staging();

  /// Copies in the stream's order; `from` may be changed at once. Waits only for the copy that was `slots` before, whose
  /// buffer it takes. A copy of more than `largest` bytes takes no buffer and is waited for.
  void copy_in(void* to, const void* from, std::size_t bytes, cudaStream_t stream);

  static constexpr std::size_t kSlots = 16;  ///< two micro-batches of a model's inputs
  static constexpr std::size_t kLargest = std::size_t{1} << 20;

 private:
  struct Slot {
    void* data = nullptr;
    std::size_t capacity = 0;
    cudaEvent_t copied = nullptr;
  };

  std::vector<Slot> slots_;
  std::size_t largest_, next_ = 0;
};

}  // namespace outeffhop::cuda

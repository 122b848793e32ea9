#include "kernels/cuda/staging.h"

#include <cstring>

#include "kernels/cuda/check.h"

namespace outeffhop::cuda {

Staging::~Staging() {
  for (Slot& slot : slots_) {
    if (!slot.copied) continue;
    cudaEventSynchronize(slot.copied);
    cudaEventDestroy(slot.copied);
    cudaFreeHost(slot.data);
  }
}

void Staging::copy_in(void* to, const void* from, std::size_t bytes, cudaStream_t stream) {
  if (bytes == 0) return;
  if (bytes > largest_) {
    OUTEFFHOP_CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream));
    OUTEFFHOP_CUDA(cudaStreamSynchronize(stream));  // pageable memory has been read by now, pinned memory need not have been
    return;
  }
  Slot& slot = slots_[next_];
  next_ = (next_ + 1) % slots_.size();
  if (slot.copied)
    OUTEFFHOP_CUDA(cudaEventSynchronize(slot.copied));
  else
    OUTEFFHOP_CUDA(cudaEventCreateWithFlags(&slot.copied, cudaEventDisableTiming));
  if (bytes > slot.capacity) {
    OUTEFFHOP_CUDA(cudaFreeHost(slot.data));
    slot.data = nullptr;
    slot.capacity = 0;
    OUTEFFHOP_CUDA(cudaMallocHost(&slot.data, bytes));
    slot.capacity = bytes;
  }
  std::memcpy(slot.data, from, bytes);
  OUTEFFHOP_CUDA(cudaMemcpyAsync(to, slot.data, bytes, cudaMemcpyHostToDevice, stream));
  OUTEFFHOP_CUDA(cudaEventRecord(slot.copied, stream));
}

}  // namespace outeffhop::cuda

#include "kernels/cuda/copies_ahead.h"

#include "kernels/cuda/check.h"

namespace outeffhop::cuda {

CopiesAhead::~CopiesAhead() {
  if (copied_) cudaEventDestroy(copied_);
  if (free_) cudaEventDestroy(free_);
  if (stream_) cudaStreamDestroy(stream_);  // its copies still run: the pinned buffers wait for them
}

void CopiesAhead::copy_in(void* to, const void* from, std::size_t bytes, cudaStream_t ops) {
  if (bytes == 0) return;
  if (!stream_) {
    for (cudaEvent_t* event : {&free_, &copied_})
      if (!*event) OUTEFFHOP_CUDA(cudaEventCreateWithFlags(event, cudaEventDisableTiming));
    OUTEFFHOP_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    follow(ops);
  }
  OUTEFFHOP_CUDA(cudaStreamWaitEvent(stream_, free_, 0));
  staging_.copy_in(to, from, bytes, stream_);
  pending_ = true;
}

void CopiesAhead::await(cudaStream_t ops) {
  follow(ops);
  if (!pending_) return;
  OUTEFFHOP_CUDA(cudaEventRecord(copied_, stream_));
  OUTEFFHOP_CUDA(cudaStreamWaitEvent(ops, copied_, 0));
  pending_ = false;
}

void CopiesAhead::follow(cudaStream_t ops) {
  if (stream_) OUTEFFHOP_CUDA(cudaEventRecord(free_, ops));
}

}  // namespace outeffhop::cuda

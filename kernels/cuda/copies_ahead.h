// Copies from the host beside the ops that run: Device::copy_in_ahead.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <limits>

#include "kernels/cuda/staging.h"

namespace outeffhop::cuda {

/// Copies on a stream of their own, which two events tie to the stream of the ops: a copy waits for what that stream had
/// been given by the latest await() or follow(), and what it is given after an await() waits for the copies before it.
class CopiesAhead {
 public:
  CopiesAhead() = default;
  CopiesAhead(const CopiesAhead&) = delete;
  CopiesAhead& operator=(const CopiesAhead&) = delete;
  ~CopiesAhead();

  /// `from` may be changed at once. Waits for the copy before the last, whose pinned buffer it takes.
  void copy_in(void* to, const void* from, std::size_t bytes, cudaStream_t ops);
  void await(cudaStream_t ops);
  /// Later copies come after all that `ops` has been given: what they write may just have been allocated, and zeroed.
  void follow(cudaStream_t ops);

 private:
  Staging staging_{2, std::numeric_limits<std::size_t>::max()};
  cudaStream_t stream_ = nullptr;  ///< null before the first copy
  cudaEvent_t free_ = nullptr;     ///< what the copies write is read no more
  cudaEvent_t copied_ = nullptr;
  bool pending_ = false;  ///< there were copies since the latest await()
};

}  // namespace outeffhop::cuda

#include "kernels/cuda/plan_tuning.h"

#include <algorithm>
#include <limits>

#include "kernels/cuda/check.h"

namespace outeffhop::cuda {
namespace {

// Rounds of all algorithms one after the other, so that what changes with time (clocks, heat) meets them all alike. In the
// first, which does not count, kernels are loaded and caches filled.
constexpr int kRounds = 4, kRepetitions = 3;
/// What a later algorithm has to take less than, of the time of the best before it: measured differences below are noise.
constexpr float kFaster = 0.98f;
constexpr float kNever = std::numeric_limits<float>::infinity();

/// Memory for a result that nobody reads; null where there is none to be had.
class SecondResult {
 public:
  explicit SecondResult(std::size_t bytes) {
    if (cudaMalloc(&data_, bytes) == cudaSuccess) return;
    data_ = nullptr;
    (void)cudaGetLastError();
  }
  SecondResult(const SecondResult&) = delete;
  ~SecondResult() { cudaFree(data_); }
  void* data() const { return data_; }

 private:
  void* data_ = nullptr;
};

class Event {
 public:
  Event() { OUTEFFHOP_CUDA(cudaEventCreate(&event_)); }
  Event(const Event&) = delete;
  ~Event() { cudaEventDestroy(event_); }
  operator cudaEvent_t() const { return event_; }  // NOLINT: implicit by intent

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace

std::size_t fastest(const ProductStream& on, const ProductPlan& plan, const std::vector<cublasLtMatmulAlgo_t>& algorithms,
                    const Product& product) {
  if (algorithms.size() < 2) return 0;
  // The product may be an accumulating one, which has to happen once.
  const std::int64_t stride = product.out_stride ? product.out_stride : product.N;
  const std::size_t bytes = static_cast<std::size_t>(product.M * stride) * size_of(product.out.dtype);
  const SecondResult second(bytes);
  if (!second.data()) return 0;
  Product timed = product;
  timed.out.data = second.data();
  OUTEFFHOP_CUDA(cudaMemsetAsync(second.data(), 0, bytes, on.stream));

  const Event begin, end;
  std::vector<float> times(algorithms.size(), kNever);
  std::vector<bool> fails(algorithms.size(), false);
  for (int round = 0; round < kRounds; ++round) {
    for (std::size_t i = 0; i < algorithms.size(); ++i) {
      if (fails[i]) continue;
      OUTEFFHOP_CUDA(cudaEventRecord(begin, on.stream));
      for (int k = 0; k < kRepetitions && !fails[i]; ++k)
        fails[i] = multiply(on, plan, algorithms[i], timed) != CUBLAS_STATUS_SUCCESS;
      OUTEFFHOP_CUDA(cudaEventRecord(end, on.stream));
      OUTEFFHOP_CUDA(cudaEventSynchronize(end));
      float milliseconds = 0;
      OUTEFFHOP_CUDA(cudaEventElapsedTime(&milliseconds, begin, end));
      if (round > 0) times[i] = fails[i] ? kNever : std::min(times[i], milliseconds);
    }
  }
  std::size_t best = 0;
  for (std::size_t i = 1; i < times.size(); ++i)
    if (times[i] < kFaster * times[best]) best = i;
  return times[best] < kNever ? best : algorithms.size();
}

}  // namespace outeffhop::cuda

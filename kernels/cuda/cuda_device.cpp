#include "kernels/cuda/cuda_device.h"

#include <optional>

#include "kernels/cuda/check.h"
#include "kernels/cuda/copies_ahead.h"
#include "kernels/cuda/graphs.h"
#include "kernels/cuda/linear_engine.h"
#include "kernels/cuda/peak_flops.h"
#include "kernels/cuda/profiler_ranges.h"
#include "kernels/cuda/staging.h"

namespace outeffhop::cuda {
namespace {

constexpr int kLeastMajor = 8;  // of the compute capability

/// cudaSuccess where there is a driver and at least one GPU.
cudaError_t find_devices() {
  int devices = 0;  // stays as it is where there is no driver
  const cudaError_t status = cudaGetDeviceCount(&devices);
  return status == cudaSuccess && devices == 0 ? cudaErrorNoDevice : status;
}

class CudaDevice final : public Device {
 public:
  explicit CudaDevice(bool eager) : eager_(eager) {
    check(find_devices(), "cudaGetDeviceCount");
    OUTEFFHOP_CUDA(cudaSetDevice(0));
    OUTEFFHOP_CUDA(cudaGetDeviceProperties(&properties_, 0));
    if (properties_.major < kLeastMajor)
      fail(ErrorKind::unsupported,
           "device \"cuda\" needs a GPU of compute capability 8.0 or newer, and {} has {}.{}: train on the CPU (--device cpu)",
           properties_.name, properties_.major, properties_.minor);
    OUTEFFHOP_CUDA(cudaDeviceGetAttribute(&kilohertz_, cudaDevAttrClockRate, 0));
    context_.shared_bytes = properties_.sharedMemPerBlockOptin;
    context_.multiprocessors = properties_.multiProcessorCount;
    linear_.emplace();
    // The last, as nothing destroys it when this constructor throws.
    OUTEFFHOP_CUDA(cudaStreamCreateWithFlags(&context_.stream, cudaStreamNonBlocking));
  }
  ~CudaDevice() override { cudaStreamDestroy(context_.stream); }  // its work still runs; freeing the workspace waits for it

  std::string description() const override {
    return fmt::format("CUDA, {}, compute capability {}.{}, {} multiprocessors at up to {:.2f} GHz, {:.1f} GB, cuBLASLt {}",
                       properties_.name, properties_.major, properties_.minor, properties_.multiProcessorCount,
                       kilohertz_ * 1e-6, static_cast<double>(properties_.totalGlobalMem) * 1e-9, cublaslt_version());
  }

  double peak_flops(DType storage) const override {
    return cuda::peak_flops(
        {properties_.name, properties_.major, properties_.minor, properties_.multiProcessorCount, kilohertz_ * 1e3},
        storage);
  }

  DeviceMemory memory() const override {
    DeviceMemory memory;
    OUTEFFHOP_CUDA(cudaMemGetInfo(&memory.available, &memory.total));
    return memory;
  }

  std::size_t logit_bytes() const override { return kGpuLogitBytes; }
  std::string plans() const override { return linear_->plans(); }
  bool use_plans(std::string_view plans) override { return linear_->use_plans(plans); }
  std::size_t workspace_bytes() const override { return workspace_.capacity() + LinearEngine::kWorkspaceBytes; }

  void* allocate(std::size_t bytes) override {
    void* data = nullptr;
    if (const cudaError_t status = cudaMalloc(&data, bytes); status != cudaSuccess) {
      (void)cudaGetLastError();  // the failure is told here, and not again by whoever asks next
      fail(ErrorKind::unsupported, "cannot allocate {} bytes on {}: {}", bytes, properties_.name,
           cudaGetErrorString(status));
    }
    zero(data, bytes);
    ahead_.follow(context_.stream);
    return data;
  }
  void release(void* data) noexcept override {
    graphs_.clear();  // one of them may use it
    cudaFree(data);
  }
  void copy_in(void* to, const void* from, std::size_t bytes) override {
    staging_.copy_in(to, from, bytes, context_.stream);
  }
  void copy_out(void* to, const void* from, std::size_t bytes) override {
    if (bytes) OUTEFFHOP_CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, context_.stream));
    synchronize();
  }
  void copy(void* to, const void* from, std::size_t bytes) override {
    if (bytes) OUTEFFHOP_CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, context_.stream));
  }
  void zero(void* data, std::size_t bytes) override {
    if (bytes) OUTEFFHOP_CUDA(cudaMemsetAsync(data, 0, bytes, context_.stream));
  }
  void synchronize() override { OUTEFFHOP_CUDA(cudaStreamSynchronize(context_.stream)); }
  void copy_in_ahead(void* to, const void* from, std::size_t bytes) override {
    ahead_.copy_in(to, from, bytes, context_.stream);
  }
  void await_copies_ahead() override { ahead_.await(context_.stream); }

  void repeat(const WorkKey& key, const std::function<void()>& work) override {
    if (!eager_) return graphs_.repeat(key, work);
    const Range range(*this, std::string(key.name).c_str());
    work();
  }
  void begin_range(const char* name) override {
    if (eager_) begin_profiler_range(name);
  }
  void end_range() override {
    if (eager_) end_profiler_range();
  }

  void run(const EmbeddingForward& op) override { embedding_forward(context_, op); }
  void run(const EmbeddingBackward& op) override { embedding_backward(context_, op); }
  void run(const LayerNormForward& op) override { layernorm_forward(context_, op); }
  void run(const LayerNormBackward& op) override { layernorm_backward(context_, op); }
  void run(const LinearForward& op) override { linear_forward(context_, *linear_, op); }
  void run(const LinearBackward& op) override { linear_backward(context_, *linear_, op); }
  void run(const ActivationForward& op) override { activation_forward(context_, op); }
  void run(const ActivationBackward& op) override { activation_backward(context_, op); }
  void run(const AttentionForward& op) override { attention_forward(context_, op); }
  void run(const AttentionBackward& op) override { attention_backward(context_, op); }
  void run(const AttentionScores& op) override { attention_scores(context_, op); }
  void run(const AttentionProbabilities& op) override { attention_probabilities(context_, op); }
  void run(const AttentionContext& op) override { attention_context(context_, op); }
  void run(const DropoutAdd& op) override { dropout_add(context_, op); }
  void run(const GatherRows& op) override { gather_rows(context_, op); }
  void run(const ScatterRows& op) override { scatter_rows(context_, op); }
  void run(const CrossEntropy& op) override { cross_entropy(context_, op); }
  void run(const GlobalNorm& op) override { global_norm(context_, op); }
  void run(const StepDecision& op) override { step_decision(context_, op); }
  void run(const AdamW& op) override { adamw(context_, op); }
  void run(const RowMoments& op) override { row_moments(context_, op); }
  void run(const Cast& op) override { cast(context_, op); }

 private:
  const bool eager_;
  cudaDeviceProp properties_{};
  int kilohertz_ = 0;  // of the multiprocessors, at most
  Workspace workspace_;
  Staging staging_;
  CopiesAhead ahead_;
  Context context_{nullptr, workspace_};
  GraphCache graphs_{context_};
  std::optional<LinearEngine> linear_;  // made when the device is chosen
};

}  // namespace

std::string obstacle() {
  cudaDeviceProp properties{};
  cudaError_t status = find_devices();
  if (status == cudaSuccess) status = cudaGetDeviceProperties(&properties, 0);
  if (status != cudaSuccess) {
    (void)cudaGetLastError();
    return fmt::format("CUDA finds no GPU: {}", cudaGetErrorString(status));
  }
  if (properties.major < kLeastMajor)
    return fmt::format("{} has compute capability {}.{}, less than {}.0", properties.name, properties.major,
                       properties.minor, kLeastMajor);
  return "";
}

std::unique_ptr<Device> make_cuda_device(bool eager) { return std::make_unique<CudaDevice>(eager); }

Workspace::~Workspace() { cudaFree(data_); }

void* Workspace::bytes(std::size_t bytes) {
  if (bytes > capacity_) {
    OUTEFFHOP_CUDA(cudaDeviceSynchronize());  // ops may still use it
    OUTEFFHOP_CUDA(cudaFree(data_));
    data_ = nullptr;
    capacity_ = 0;
    ++generation_;
    OUTEFFHOP_CUDA(cudaMalloc(&data_, bytes));
    capacity_ = bytes;
  }
  return data_;
}

}  // namespace outeffhop::cuda

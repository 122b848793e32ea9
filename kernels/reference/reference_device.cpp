#include <cstdlib>
#include <cstring>

#include "kernels/reference/ops.h"
#include "kernels/reference/reference.h"

namespace outeffhop {
namespace {

template <class Real>
class ReferenceDevice final : public Device {
 public:
  std::string description() const override {
    return fmt::format("the plain formulas in {}, one thread", sizeof(Real) == 8 ? "fp64" : "fp32");
  }

  void* allocate(std::size_t bytes) override {
    const std::size_t rounded = (bytes + 63) / 64 * 64;
    void* data = std::aligned_alloc(64, rounded);
    if (!data) fail(ErrorKind::unsupported, "cannot allocate {} bytes of host memory: there is none left", bytes);
    std::memset(data, 0, rounded);
    return data;
  }
  void release(void* data) noexcept override { std::free(data); }
  void copy_in(void* destination, const void* source, std::size_t bytes) override {
    if (bytes) std::memcpy(destination, source, bytes);
  }
  void copy_out(void* destination, const void* source, std::size_t bytes) override {
    if (bytes) std::memcpy(destination, source, bytes);
  }
  void copy(void* destination, const void* source, std::size_t bytes) override { copy_in(destination, source, bytes); }
  void zero(void* data, std::size_t bytes) override { std::memset(data, 0, bytes); }
  void synchronize() override {}

  void run(const EmbeddingForward& op) override { Ops::run(op); }
  void run(const EmbeddingBackward& op) override { Ops::run(op); }
  void run(const LayerNormForward& op) override { Ops::run(op); }
  void run(const LayerNormBackward& op) override { Ops::run(op); }
  void run(const LinearForward& op) override { Ops::run(op); }
  void run(const LinearBackward& op) override { Ops::run(op); }
  void run(const ActivationForward& op) override { Ops::run(op); }
  void run(const ActivationBackward& op) override { Ops::run(op); }
  void run(const AttentionForward& op) override { Ops::run(op); }
  void run(const AttentionBackward& op) override { Ops::run(op); }
  void run(const AttentionScores& op) override { Ops::run(op); }
  void run(const AttentionProbabilities& op) override { Ops::run(op); }
  void run(const AttentionContext& op) override { Ops::run(op); }
  void run(const DropoutAdd& op) override { Ops::run(op); }
  void run(const GatherRows& op) override { Ops::run(op); }
  void run(const ScatterRows& op) override { Ops::run(op); }
  void run(const CrossEntropy& op) override { Ops::run(op); }
  void run(const GlobalNorm& op) override { Ops::run(op); }
  void run(const StepDecision& op) override { Ops::run(op); }
  void run(const AdamW& op) override { Ops::run(op); }
  void run(const RowMoments& op) override { Ops::run(op); }
  void run(const Cast& op) override { Ops::run(op); }

 private:
  using Ops = reference::Ops<Real>;
};

}  // namespace

std::unique_ptr<Device> make_reference_device(DType compute) {
  require(compute == DType::f64 || compute == DType::f32,
          "the reference was asked to compute in {}; it computes in fp64 or fp32", name_of(compute));
  if (compute == DType::f64) return std::make_unique<ReferenceDevice<double>>();
  return std::make_unique<ReferenceDevice<float>>();
}

}  // namespace outeffhop

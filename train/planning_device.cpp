#include "train/planning_device.h"

#include <cstdlib>
#include <new>

namespace outeffhop {
namespace {

[[noreturn]] void refuse() { fail(ErrorKind::internal, "an op was run on the device that only plans"); }

class PlanningDevice final : public Device {
 public:
  explicit PlanningDevice(const DeviceOptions& options) : options_(options) {}

  std::string description() const override { return "no device, only a plan"; }
  std::size_t logit_bytes() const override { return outeffhop::logit_bytes(options_); }

  // Every allocation has an address of its own, as views are tested for null; nobody may look behind it.
  void* allocate(std::size_t) override {
    void* address = std::aligned_alloc(64, 64);
    if (!address) throw std::bad_alloc();
    return address;
  }
  void release(void* data) noexcept override { std::free(data); }
  void copy_in(void*, const void*, std::size_t) override {}
  void copy_out(void*, const void*, std::size_t) override {}
  void copy(void*, const void*, std::size_t) override {}
  void zero(void*, std::size_t) override {}
  void synchronize() override {}

  void run(const EmbeddingForward&) override { refuse(); }
  void run(const EmbeddingBackward&) override { refuse(); }
  void run(const LayerNormForward&) override { refuse(); }
  void run(const LayerNormBackward&) override { refuse(); }
  void run(const LinearForward&) override { refuse(); }
  void run(const LinearBackward&) override { refuse(); }
  void run(const ActivationForward&) override { refuse(); }
  void run(const ActivationBackward&) override { refuse(); }
  void run(const AttentionForward&) override { refuse(); }
  void run(const AttentionBackward&) override { refuse(); }
  void run(const AttentionScores&) override { refuse(); }
  void run(const AttentionProbabilities&) override { refuse(); }
  void run(const AttentionContext&) override { refuse(); }
  void run(const DropoutAdd&) override { refuse(); }
  void run(const GatherRows&) override { refuse(); }
  void run(const ScatterRows&) override { refuse(); }
  void run(const CrossEntropy&) override { refuse(); }
  void run(const GlobalNorm&) override { refuse(); }
  void run(const StepDecision&) override { refuse(); }
  void run(const AdamW&) override { refuse(); }
  void run(const RowMoments&) override { refuse(); }
  void run(const Cast&) override { refuse(); }

 private:
  const DeviceOptions options_;
};

}  // namespace

std::unique_ptr<Device> make_planning_device(const DeviceOptions& options) {
  return std::make_unique<PlanningDevice>(options);
}

}  // namespace outeffhop

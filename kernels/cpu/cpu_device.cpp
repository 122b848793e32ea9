#include "kernels/cpu/cpu_device.h"

#include <omp.h>
#include <sys/mman.h>

#include <cstdlib>
#include <cstring>

#include "kernels/cpu/isa.h"
#include "kernels/cpu/parallel.h"

namespace outeffhop::cpu {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;

std::string display_name(Isa isa) {
  switch (isa) {
    case Isa::baseline: return "baseline instructions";
    case Isa::avx2: return "AVX2";
    case Isa::avx512: return "AVX-512";
  }
  return "?";
}

class CpuDevice final : public Device {
 public:
  explicit CpuDevice(int threads) : threads_(threads), products_(threads) {}

  std::string description() const override {
    return fmt::format("CPU, {} thread{}, {} ({}), {}", threads_, threads_ == 1 ? "" : "s", display_name(detected_isa()),
                       products_.multiplies_bf16() ? "bf16 products" : "bf16 is stored, products are made in fp32",
                       products_.description());
  }

  void* allocate(std::size_t bytes) override {
    // Large arenas on huge pages: products walk through them with far fewer TLB misses.
    const bool large = bytes >= 2 * kHugePage;
    const std::size_t alignment = large ? kHugePage : 64;
    const std::size_t rounded = (bytes + alignment - 1) / alignment * alignment;
    void* data = rounded < bytes ? nullptr : std::aligned_alloc(alignment, rounded);
    if (data == nullptr) fail(ErrorKind::unsupported, "cannot allocate {} bytes of memory on the CPU", bytes);
    if (large) (void)madvise(data, rounded, MADV_HUGEPAGE);  // a hint: where it is refused, small pages serve
    zero(data, rounded);
    return data;
  }
  void release(void* data) noexcept override { std::free(data); }
  void copy_in(void* to, const void* from, std::size_t bytes) override {
    if (bytes) std::memcpy(to, from, bytes);  // of nothing, either pointer may be null
  }
  void copy_out(void* to, const void* from, std::size_t bytes) override { copy_in(to, from, bytes); }
  void copy(void* to, const void* from, std::size_t bytes) override { copy_in(to, from, bytes); }
  void zero(void* data, std::size_t bytes) override {
    parallel_ranges(threads_, static_cast<std::int64_t>(bytes), 1 << 16,
                    [&](std::int64_t begin, std::int64_t end, int) {
                      std::memset(static_cast<char*>(data) + begin, 0, static_cast<std::size_t>(end - begin));
                    });
  }
  void synchronize() override {}

  void run(const EmbeddingForward& op) override { embedding_forward(threads_, op); }
  void run(const EmbeddingBackward& op) override { embedding_backward(threads_, op); }
  void run(const LayerNormForward& op) override { layernorm_forward(threads_, scratch_, op); }
  void run(const LayerNormBackward& op) override { layernorm_backward(threads_, scratch_, op); }
  void run(const LinearForward& op) override { linear_forward(threads_, products_, op); }
  void run(const LinearBackward& op) override { linear_backward(threads_, products_, op); }
  void run(const ActivationForward& op) override { activation_forward(threads_, op); }
  void run(const ActivationBackward& op) override { activation_backward(threads_, op); }
  void run(const AttentionForward& op) override { attention_forward(threads_, op); }
  void run(const AttentionBackward& op) override { attention_backward(threads_, op); }
  void run(const AttentionScores& op) override { attention_scores(threads_, op); }
  void run(const AttentionProbabilities& op) override { attention_probabilities(threads_, op); }
  void run(const AttentionContext& op) override { attention_context(threads_, op); }
  void run(const DropoutAdd& op) override { dropout_add(threads_, op); }
  void run(const GatherRows& op) override { gather_rows(threads_, op); }
  void run(const ScatterRows& op) override { scatter_rows(threads_, op); }
  void run(const CrossEntropy& op) override { cross_entropy(threads_, scratch_, op); }
  void run(const GlobalNorm& op) override { global_norm(threads_, scratch_, op); }
  void run(const StepDecision& op) override { step_decision(op); }
  void run(const AdamW& op) override { adamw(threads_, op); }
  void run(const RowMoments& op) override { row_moments(threads_, op); }
  void run(const Cast& op) override { cast(threads_, op); }

 private:
  int threads_;
  Scratch scratch_;
  ProductEngine products_;
};

}  // namespace

std::unique_ptr<Device> make_cpu_device(int threads) {
  const int available = omp_get_num_procs();  // honours the affinity mask of the process
  if (threads < 0 || threads > available)
    fail(ErrorKind::usage, "cannot use {} CPU threads: this process may run on {}; ask for 1 to {}, or 0 for all", threads,
         available, available);
  return std::make_unique<CpuDevice>(threads == 0 ? available : threads);
}

Scratch::~Scratch() { std::free(data_); }

void* Scratch::bytes(std::size_t size) {
  if (size > capacity_) {
    std::free(data_);
    capacity_ = 0;
    const std::size_t rounded = (size + 63) / 64 * 64;
    data_ = std::aligned_alloc(64, rounded);
    if (data_ == nullptr) fail(ErrorKind::unsupported, "cannot allocate {} bytes of working memory on the CPU", rounded);
    capacity_ = rounded;
  }
  return data_;
}

void require_storage(DType dtype, const char* op) {
  if (dtype != DType::f32 && dtype != DType::bf16)
    fail(ErrorKind::unsupported, "{} on the CPU takes fp32 or bf16 elements, not {}", op, name_of(dtype));
}

void require_same(DType expected, const ConstTensor& given, const char* op, const char* name) {
  if (given && given.dtype != expected)
    fail(ErrorKind::unsupported, "{} on the CPU needs {} in {}, but it is {}", op, name, name_of(expected),
         name_of(given.dtype));
}

}  // namespace outeffhop::cpu

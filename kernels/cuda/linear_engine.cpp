#include "kernels/cuda/linear_engine.h"

#include <cublasLt.h>

#include <algorithm>
#include <map>
#include <optional>

#include "kernels/cuda/check.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/plan_text.h"
#include "kernels/cuda/plan_tuning.h"
#include "kernels/cuda/product_plans.h"
#include "kernels/cuda/storage.h"

namespace outeffhop::cuda {
namespace {

bool is_aligned(const void* data, std::uintptr_t bytes) { return reinterpret_cast<std::uintptr_t>(data) % bytes == 0; }

std::int64_t a_stride(const Product& product) {
  return product.a_stride ? product.a_stride : product.a_transposed ? product.M : product.K;
}
std::int64_t out_stride(const Product& product) { return product.out_stride ? product.out_stride : product.N; }

/// What cuBLASLt calls the product's bias and activation; none where it cannot do them all. It has no erf form of GELU,
/// and how exact its tanh form is nobody promises: enough for a result in bf16. Its ReLU is max(x, 0), which may make 0 of
/// NaN.
std::optional<std::uint32_t> epilogue_of(const Product& product) {
  std::uint32_t epilogue = 0;
  if (product.bias) {
    if (product.bias.dtype != product.out.dtype || !is_aligned(product.bias.data, kEpilogueAlignment)) return {};
    epilogue |= kBiasBit;
  }
  switch (product.activation) {
    case Activation::none:
      break;
    case Activation::gelu_tanh:
      if (product.out.dtype != DType::bf16) return {};
      epilogue |= CUBLASLT_EPILOGUE_GELU;
      break;
    case Activation::gelu_erf:
    case Activation::relu:
      return {};
  }
  return epilogue ? epilogue : std::uint32_t{CUBLASLT_EPILOGUE_DEFAULT};
}

/// The largest power of two, up to 16, that divides an address. No kernel asks for more, and where an arena put a tensor
/// should not decide which algorithm it gets.
std::uint32_t alignment_of(const void* data) {
  std::uint32_t alignment = 16;
  while (!is_aligned(data, alignment)) alignment /= 2;
  return alignment;
}

void check_product(const Product& product) {
  require(product.M > 0 && product.N > 0 && product.K > 0, "a product of ({} x {}) and ({} x {}) has no elements", product.M,
          product.K, product.K, product.N);
  const char* name = "a matrix product";
  if (product.a.dtype != DType::f32 && product.a.dtype != DType::bf16) refuse_storage(name, product.a.dtype);
  require_same(product.a.dtype, product.b, name, "its second operand");
  if (product.a.dtype != DType::bf16 || product.out.dtype != DType::f32)
    require_same(product.a.dtype, product.out, name, "its result");
}

bool is_captured(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  OUTEFFHOP_CUDA(cudaStreamIsCapturing(stream, &status));
  return status != cudaStreamCaptureStatusNone;
}

}  // namespace

class LinearEngine::Plans {
 public:
  Plans() {
    cublasLtHandle_t handle = nullptr;
    OUTEFFHOP_CUBLASLT(cublasLtCreate(&handle));
    handle_.reset(handle);
    workspace_.bytes(kWorkspaceBytes);
  }

  std::size_t size() const { return plans_.size(); }

  bool try_run(cudaStream_t stream, const Product& product) {
    check_product(product);
    const std::optional<std::uint32_t> epilogue = epilogue_of(product);
    if (!epilogue) return false;
    const ProductKey key{product.M,
                         product.N,
                         product.K,
                         a_stride(product),
                         out_stride(product),
                         product.a.dtype,
                         product.out.dtype,
                         product.a_transposed,
                         product.b_transposed,
                         *epilogue,
                         alignment_of(product.a.data),
                         alignment_of(product.b.data),
                         alignment_of(product.out.data)};
    const ProductStream on{handle_.get(), stream, workspace_.bytes(kWorkspaceBytes)};
    auto position = plans_.find(key);
    if (position == plans_.end()) position = plans_.emplace(key, make_plan(on, key, product)).first;
    const ProductPlan& plan = position->second;
    if (plan.found) OUTEFFHOP_CUBLASLT(multiply(on, plan, plan.algorithm, product));
    return plan.found;
  }

  std::string text() const {
    Algorithms algorithms;
    for (const auto& [key, plan] : plans_)
      if (plan.found) algorithms[key] = plan.algorithm;
    return algorithms.empty() ? "" : write_algorithms(algorithms);
  }

  bool use(std::string_view text) {
    if (text.empty()) return true;
    const std::optional<Algorithms> algorithms = read_algorithms(text);
    if (!algorithms) return false;
    std::map<ProductKey, ProductPlan> given;
    for (const auto& [key, algorithm] : *algorithms) {
      ProductPlan& plan = given[key] = describe(key);
      plan.algorithm = algorithm;
      plan.found = accepts(handle_.get(), plan, algorithm);
      if (!plan.found) return false;
    }
    for (auto& [key, plan] : given) plans_[key] = std::move(plan);
    return true;
  }

 private:
  static ProductPlan make_plan(const ProductStream& on, const ProductKey& key, const Product& product) {
    // What is recorded is not run, so nothing can be measured; and a plan that was not measured would stay.
    require(!is_captured(on.stream),
            "a ({} x {}) by ({} x {}) product was recorded before it was run: its plan cannot be measured", key.M, key.K,
            key.K, key.N);
    ProductPlan plan = describe(key);
    const std::vector<cublasLtMatmulAlgo_t> algorithms = candidates(on.handle, key, plan);
    const std::size_t best = fastest(on, plan, algorithms, product);
    plan.found = best < algorithms.size();
    if (plan.found) plan.algorithm = algorithms[best];
    return plan;
  }

  Handle handle_;
  Workspace workspace_;
  std::map<ProductKey, ProductPlan> plans_;
};

LinearEngine::LinearEngine() : plans_(std::make_unique<Plans>()) {}
LinearEngine::~LinearEngine() = default;

std::size_t LinearEngine::plan_count() const { return plans_->size(); }
std::string LinearEngine::plans() const { return plans_->text(); }
bool LinearEngine::use_plans(std::string_view text) { return plans_->use(text); }

bool LinearEngine::try_run(cudaStream_t stream, const Product& product) { return plans_->try_run(stream, product); }

void LinearEngine::run(cudaStream_t stream, const Product& product) {
  if (!try_run(stream, product))
    fail(ErrorKind::unsupported, "cuBLASLt has no algorithm for a ({} x {}) by ({} x {}) product of {} into {} on this GPU",
         product.M, product.K, product.K, product.N, name_of(product.a.dtype), name_of(product.out.dtype));
}

}  // namespace outeffhop::cuda

// ProductEngine: oneDNN matmul primitives, cached by shape, with our own product behind them.
#include "kernels/cpu/product.h"

#include <omp.h>

#include "kernels/cpu/isa.h"
#include "kernels/error.h"

#if defined(OUTEFFHOP_HAS_ONEDNN)
#include <cstring>
#include <dnnl.hpp>
#include <unordered_map>
#endif

namespace outeffhop::cpu {

#if defined(OUTEFFHOP_HAS_ONEDNN)

namespace {

/// What a primitive is made for. Plain bytes, compared and hashed as such.
struct Key {
  std::int64_t M, N, K, a_stride, c_stride;
  DType a, b, c, bias;
  bool a_transposed, b_transposed, accumulate, has_bias;

  bool operator==(const Key&) const = default;
};

struct KeyHash {
  std::size_t operator()(const Key& key) const {
    std::uint64_t hash = 0;
    const auto mix = [&](std::uint64_t value) { hash = (hash ^ value) * 0x9E3779B97F4A7C15u, hash ^= hash >> 29; };
    mix(static_cast<std::uint64_t>(key.M));
    mix(static_cast<std::uint64_t>(key.N));
    mix(static_cast<std::uint64_t>(key.K));
    mix(static_cast<std::uint64_t>(key.a_stride));
    mix(static_cast<std::uint64_t>(key.c_stride));
    std::uint64_t flags = 0;
    for (const DType dtype : {key.a, key.b, key.c, key.bias}) flags = flags * 8 + static_cast<std::uint64_t>(dtype);
    for (const bool flag : {key.a_transposed, key.b_transposed, key.accumulate, key.has_bias}) flags = flags * 2 + flag;
    mix(flags);
    return hash;
  }
};

dnnl::memory::data_type onednn_type(DType dtype) {
  return dtype == DType::bf16 ? dnnl::memory::data_type::bf16 : dnnl::memory::data_type::f32;
}

/// A (rows, columns) matrix, stored row by row or, transposed, column by column, `stride` elements apart; 0: end to end.
dnnl::memory::desc matrix(std::int64_t rows, std::int64_t columns, DType dtype, bool transposed, std::int64_t stride = 0) {
  if (stride == 0) stride = transposed ? rows : columns;
  return {{rows, columns}, onednn_type(dtype), transposed ? dnnl::memory::dims{1, stride} : dnnl::memory::dims{stride, 1}};
}

/// oneDNN sizes its team by the caller's OpenMP setting; ours for the length of a call, then the caller's again.
class TeamSize {
 public:
  explicit TeamSize(int threads) : before_(omp_get_max_threads()) { omp_set_num_threads(threads); }
  ~TeamSize() { omp_set_num_threads(before_); }

 private:
  int before_;
};

}  // namespace

class ProductEngine::OneDnn {
 public:
  OneDnn() : engine_(dnnl::engine::kind::cpu, 0), stream_(engine_) {}

  /// False where oneDNN has no primitive for this product.
  bool run(const Product& product, Scratch& scratch) {
    const Key key{product.M, product.N, product.K, product.a_stride, product.c_stride, product.a.dtype, product.b.dtype,
                  product.c.dtype, product.bias ? product.bias.dtype : DType::f32, product.a_transposed,
                  product.b_transposed, product.accumulate, static_cast<bool>(product.bias)};
    auto found = cache_.find(key);
    if (found == cache_.end()) found = cache_.emplace(key, prepare(key)).first;
    Prepared& prepared = found->second;
    if (!prepared.usable) return false;
    prepared.memories[0].set_data_handle(const_cast<void*>(product.a.data));
    prepared.memories[1].set_data_handle(const_cast<void*>(product.b.data));
    prepared.memories[2].set_data_handle(product.c.data);
    prepared.memories[3].set_data_handle(scratch.get<char>(static_cast<std::int64_t>(prepared.scratch_bytes)));
    if (product.bias) prepared.memories[4].set_data_handle(const_cast<void*>(product.bias.data));
    // The C call: the C++ one would build a map and a vector each time.
    const dnnl_status_t status = dnnl_primitive_execute(prepared.primitive.get(), stream_.get(), prepared.argument_count,
                                                        prepared.arguments);
    if (status == dnnl_success) stream_.wait();
    require(status == dnnl_success, "oneDNN failed with status {} on a product of {} x {} x {}", static_cast<int>(status),
            product.M, product.N, product.K);
    return true;
  }

 private:
  struct Prepared {
    bool usable = false;
    dnnl::matmul primitive;
    dnnl::memory memories[5];
    dnnl_exec_arg_t arguments[5];
    int argument_count = 0;
    std::size_t scratch_bytes = 0;
  };

  Prepared prepare(const Key& key) {
    Prepared prepared;
    try {
      dnnl::primitive_attr attributes;
      attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
      if (key.accumulate) {
        dnnl::post_ops accumulate;
        accumulate.append_sum(1.0f);
        attributes.set_post_ops(accumulate);
      }
      const auto a = matrix(key.M, key.K, key.a, key.a_transposed, key.a_stride),
                 b = matrix(key.K, key.N, key.b, key.b_transposed), c = matrix(key.M, key.N, key.c, false, key.c_stride),
                 bias = matrix(1, key.N, key.bias, false);
#if DNNL_VERSION_MAJOR >= 3
      const auto chosen = key.has_bias ? dnnl::matmul::primitive_desc(engine_, a, b, bias, c, attributes)
                                       : dnnl::matmul::primitive_desc(engine_, a, b, c, attributes);
#else
      const auto description = key.has_bias ? dnnl::matmul::desc(a, b, bias, c) : dnnl::matmul::desc(a, b, c);
      const dnnl::matmul::primitive_desc chosen(description, attributes, engine_);
#endif
      prepared.primitive = dnnl::matmul(chosen);
      const auto scratchpad = chosen.scratchpad_desc();
      prepared.scratch_bytes = scratchpad.get_size();
      const dnnl::memory::desc descriptions[5] = {a, b, c, scratchpad, bias};
      const int names[5] = {DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DST, DNNL_ARG_SCRATCHPAD, DNNL_ARG_BIAS};
      prepared.argument_count = key.has_bias ? 5 : 4;
      for (int i = 0; i < prepared.argument_count; ++i) {
        prepared.memories[i] = dnnl::memory(descriptions[i], engine_, nullptr);
        prepared.arguments[i] = {names[i], prepared.memories[i].get()};
      }
      prepared.usable = true;
    } catch (const dnnl::error&) {
      // No primitive for this type or shape (bf16 on a processor without it): the caller multiplies by its own loops.
    }
    return prepared;
  }

  dnnl::engine engine_;
  dnnl::stream stream_;
  std::unordered_map<Key, Prepared, KeyHash> cache_;
};

ProductEngine::ProductEngine(int threads) : threads_(threads) {
  // Without effect once another device has used oneDNN: the cap is the same for the whole process.
  if (detected_isa() == Isa::avx2) (void)dnnl::set_max_cpu_isa(dnnl::cpu_isa::avx2);
  if (detected_isa() == Isa::baseline) (void)dnnl::set_max_cpu_isa(dnnl::cpu_isa::sse41);
  const TeamSize team(threads_);
  onednn_ = std::make_unique<OneDnn>();
}

void ProductEngine::run(const Product& product) {
  if (product.M == 0 || product.N == 0) return;
  const bool all_fp32 = product.a.dtype == DType::f32 && product.b.dtype == DType::f32;
  const bool all_bf16 = product.a.dtype == DType::bf16 && product.b.dtype == DType::bf16;
  if (product.K > 0 && ((all_fp32 && product.c.dtype == DType::f32) || (all_bf16 && has_bf16_products()))) {
    const TeamSize team(threads_);
    if (onednn_->run(product, scratch_)) return;
  }
  blocked_product(threads_, scratch_, product);
}

std::string ProductEngine::description() const {
  const dnnl_version_t* version = dnnl::version();
  return fmt::format("oneDNN {}.{}.{}", version->major, version->minor, version->patch);
}

bool ProductEngine::multiplies_bf16() const { return has_bf16_products(); }

#else

class ProductEngine::OneDnn {};

ProductEngine::ProductEngine(int threads) : threads_(threads) {}
void ProductEngine::run(const Product& product) { blocked_product(threads_, scratch_, product); }
std::string ProductEngine::description() const { return "matrix products of its own"; }
bool ProductEngine::multiplies_bf16() const { return false; }

#endif

ProductEngine::~ProductEngine() = default;

}  // namespace outeffhop::cpu

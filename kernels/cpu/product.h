// Matrix products of dense matrices: by oneDNN where it serves, otherwise by our own blocked SIMD loops.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "kernels/cpu/scratch.h"
#include "kernels/tensor.h"

namespace outeffhop::cpu {

/// c (M, N) = a b + bias, or c += a b + bias. Operands fp32 or bf16, c fp32 or bf16; sums are made in fp32 and rounded once.
struct Product {
  std::int64_t M = 0, N = 0, K = 0;
  ConstTensor a;              ///< (M, K); stored (K, M) when a_transposed
  bool a_transposed = false;
  std::int64_t a_stride = 0;  ///< elements from one stored row of a to the next; 0: they lie end to end
  ConstTensor b;              ///< (K, N); stored (N, K) when b_transposed
  bool b_transposed = false;
  ConstTensor bias;           ///< (N) or null
  Tensor c;                   ///< (M, N)
  std::int64_t c_stride = 0;  ///< elements from one row of c to the next; 0: N
  bool accumulate = false;
};

/// Our own product. Serves every combination of the types above; its bits do not depend on the thread count.
void blocked_product(int threads, Scratch& scratch, const Product& product);

/// Serves products with whatever is best, and keeps what it prepared for each shape.
class ProductEngine {
 public:
  explicit ProductEngine(int threads);
  ~ProductEngine();

  void run(const Product& product);
  /// For the device's description: "oneDNN 2.6.3", or that products are our own.
  std::string description() const;
  /// True where bf16 operands are multiplied as bf16, false where they are converted to fp32 first.
  bool multiplies_bf16() const;

 private:
  class OneDnn;  // empty in a build without oneDNN
  int threads_;
  Scratch scratch_;
  std::unique_ptr<OneDnn> onednn_;
};

}  // namespace outeffhop::cpu

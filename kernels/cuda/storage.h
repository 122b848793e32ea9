// Which element types kernels are compiled for.
#pragma once

#include "kernels/tensor.h"

namespace outeffhop::cuda {

/// Throws Error(unsupported): `op` does not take elements of this type.
[[noreturn]] void refuse_storage(const char* op, DType dtype);

/// Throws Error(unsupported) unless `given` is absent or has the element type `expected`.
void require_same(DType expected, const ConstTensor& given, const char* op, const char* name);

/// `rows` as kernels count them that give a row to a warp or a block. Throws Error(unsupported) where a grid has not as many
/// blocks.
std::uint32_t row_count(std::int64_t rows, const char* op);

/// Calls f(T{}) with the C++ type of a storage dtype, float or bf16. Throws Error(unsupported) for others.
template <class Function>
void with_storage(DType dtype, const char* op, Function&& f) {
  if (dtype == DType::f32) return f(float{});
  if (dtype == DType::bf16) return f(bf16{});
  refuse_storage(op, dtype);
}

}  // namespace outeffhop::cuda

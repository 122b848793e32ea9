// How the reference ops read and write: a view becomes a vector of the compute type, the formula runs on vectors, and the
// result is rounded once into the view. Reading everything first makes every allowed aliasing right without a thought.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/attention.h"
#include "kernels/error.h"
#include "kernels/tensor.h"

namespace outeffhop::reference {

/// The value nearest to `value`; bf16 through a float rounded to odd, so that a double is rounded once and not twice.
inline bf16 nearest_bf16(double value) {
  float f = static_cast<float>(value);
  if (value == value && static_cast<double>(f) != value) {
    auto bits = std::bit_cast<std::uint32_t>(f);
    if (std::fabs(static_cast<double>(f)) > std::fabs(value)) --bits;  // truncated ...
    f = std::bit_cast<float>(bits | 1u);                               // ... and sticky
  }
  return bf16(f);
}

template <class Real>
Real read(ConstTensor tensor, std::int64_t i) {
  switch (tensor.dtype) {
    case DType::f64:
      return static_cast<Real>(static_cast<const double*>(tensor.data)[i]);
    case DType::f32:
      return static_cast<Real>(static_cast<const float*>(tensor.data)[i]);
    case DType::bf16:
      return static_cast<Real>(static_cast<float>(static_cast<const bf16*>(tensor.data)[i]));
    case DType::i32:
      break;
  }
  fail(ErrorKind::internal, "the reference ops were given a tensor of dtype {}; they take fp64, fp32 and bf16",
       name_of(tensor.dtype));
}

template <class Real>
void write(Tensor tensor, std::int64_t i, Real value) {
  switch (tensor.dtype) {
    case DType::f64:
      static_cast<double*>(tensor.data)[i] = static_cast<double>(value);
      return;
    case DType::f32:
      static_cast<float*>(tensor.data)[i] = static_cast<float>(value);
      return;
    case DType::bf16:
      static_cast<bf16*>(tensor.data)[i] = nearest_bf16(static_cast<double>(value));
      return;
    case DType::i32:
      break;
  }
  fail(ErrorKind::internal, "the reference ops were given a tensor of dtype {}; they take fp64, fp32 and bf16",
       name_of(tensor.dtype));
}

/// What write() and read() make of `value`.
template <class Real>
Real rounded(DType dtype, Real value) {
  if (dtype == DType::f32) return static_cast<Real>(static_cast<float>(value));
  if (dtype == DType::bf16) return static_cast<Real>(static_cast<float>(nearest_bf16(static_cast<double>(value))));
  return value;
}

/// The first `count` elements; empty for a null view.
template <class Real>
std::vector<Real> load(ConstTensor tensor, std::int64_t count) {
  std::vector<Real> values(tensor ? static_cast<std::size_t>(count) : 0);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = read<Real>(tensor, static_cast<std::int64_t>(i));
  return values;
}

/// The same, with zeros for a null view: a term that is left out.
template <class Real>
std::vector<Real> load_or_zero(ConstTensor tensor, std::int64_t count) {
  return tensor ? load<Real>(tensor, count) : std::vector<Real>(static_cast<std::size_t>(count), Real(0));
}

/// Writes all of `values`; nothing for a null view.
template <class Real>
void store(Tensor tensor, const std::vector<Real>& values) {
  if (!tensor) return;
  for (std::size_t i = 0; i < values.size(); ++i) write(tensor, static_cast<std::int64_t>(i), values[i]);
}

/// A (B, T, H, D) view as a dense array of that order. Batch rows of a view with batch stride 0 come out as copies.
template <class Real>
std::vector<Real> load_heads(const ConstHeadView& view, std::int64_t B, std::int64_t T, std::int64_t H, std::int64_t D) {
  std::vector<Real> values;
  values.reserve(static_cast<std::size_t>(B * T * H * D));
  for (std::int64_t b = 0; b < B; ++b)
    for (std::int64_t t = 0; t < T; ++t)
      for (std::int64_t h = 0; h < H; ++h)
        for (std::int64_t d = 0; d < D; ++d)
          values.push_back(
              read<Real>({view.data, view.dtype}, b * view.batch_stride + t * view.row_stride + h * view.head_stride + d));
  return values;
}

}  // namespace outeffhop::reference

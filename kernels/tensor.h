// Element types and untyped tensor views. A view is a pointer and an element type; shapes travel in the argument
// struct of each op, where they have names. Device memory is addressed by ordinary pointers that only the device's own
// ops (and Device::copy_*) may dereference.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/host_device.h"

namespace outeffhop {

/// Element types. `f64` exists for the reference backend only; `bf16` and `f32` are the storage dtypes of training.
enum class DType : std::uint8_t { f64, f32, bf16, i32 };

constexpr std::size_t size_of(DType dtype) {
  switch (dtype) {
    case DType::f64: return 8;
    case DType::f32: return 4;
    case DType::bf16: return 2;
    case DType::i32: return 4;
  }
  return 0;
}

constexpr const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::f64: return "fp64";
    case DType::f32: return "fp32";
    case DType::bf16: return "bf16";
    case DType::i32: return "int32";
  }
  return "?";
}

/// bfloat16: the upper half of an IEEE fp32. Conversion from float rounds to nearest, ties to even; NaN stays NaN.
struct bf16 {
  std::uint16_t bits = 0;

  bf16() = default;
  OUTEFFHOP_HOST_DEVICE explicit bf16(float value) {
    const auto u = __builtin_bit_cast(std::uint32_t, value);
    if ((u & 0x7fffffffu) > 0x7f800000u) {
      bits = static_cast<std::uint16_t>((u >> 16) | 0x40u);
    } else {
      bits = static_cast<std::uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
    }
  }
  OUTEFFHOP_HOST_DEVICE explicit operator float() const {
    return __builtin_bit_cast(float, static_cast<std::uint32_t>(bits) << 16);
  }
};

/// A writable view: where the elements are and what they are.
struct Tensor {
  void* data = nullptr;
  DType dtype = DType::f32;

  explicit operator bool() const { return data != nullptr; }
  /// The view that starts `elements` further on.
  Tensor at(std::int64_t elements) const {
    if (!data) return *this;
    return {static_cast<char*>(data) + elements * static_cast<std::int64_t>(size_of(dtype)), dtype};
  }
};

/// A read-only view.
struct ConstTensor {
  const void* data = nullptr;
  DType dtype = DType::f32;

  ConstTensor() = default;
  ConstTensor(const void* d, DType t) : data(d), dtype(t) {}
  ConstTensor(const Tensor& t) : data(t.data), dtype(t.dtype) {}  // NOLINT: implicit by intent, as T* to const T*
  explicit operator bool() const { return data != nullptr; }
  ConstTensor at(std::int64_t elements) const {
    if (!data) return *this;
    return {static_cast<const char*>(data) + elements * static_cast<std::int64_t>(size_of(dtype)), dtype};
  }
};

}  // namespace outeffhop

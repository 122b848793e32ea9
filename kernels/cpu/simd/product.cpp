// The inner loops of our own matrix product: packing into fp32 panels and the microkernel (Goto, van de Geijn 2008).
#include "kernels/cpu/simd/loop.h"
#include "kernels/cpu/simd/tables.h"

namespace outeffhop::cpu::OUTEFFHOP_ISA {

extern const ProductTable product_table;

namespace {

// Vectors as wide as a register of this level, and as many accumulators as its register file holds beside the operands.
#if defined(__AVX512F__)
constexpr int kLanes = 16, kRows = 12, kVectors = 2;
#elif defined(__AVX__)
constexpr int kLanes = 8, kRows = 6, kVectors = 2;
#else
constexpr int kLanes = 4, kRows = 3, kVectors = 4;
#endif
constexpr int kColumns = kLanes * kVectors;

using Vector = float __attribute__((vector_size(4 * kLanes)));

OUTEFFHOP_INLINE Vector load_vector(const float* p) {
  Vector v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

/// packed[panel][k][Width] from `count` lines of `depth` elements; a panel holds Width lines.
template <class S, int Width>
void pack(const S* from, std::int64_t line_stride, std::int64_t depth_stride, std::int64_t count, std::int64_t depth,
          float* packed) {
  for (std::int64_t first = 0; first < count; first += Width, packed += Width * depth) {
    const std::int64_t lines = count - first < Width ? count - first : Width;
    const S* panel = from + first * line_stride;
    if (lines < Width)
      for (std::int64_t i = 0; i < Width * depth; ++i) packed[i] = 0.0f;
    if (line_stride == 1) {
      for (std::int64_t k = 0; k < depth; ++k) {
        const S* source = panel + k * depth_stride;
        float* to = packed + k * Width;
        if (lines == Width)
          for (int i = 0; i < Width; ++i) to[i] = static_cast<float>(source[i]);
        else
          for (std::int64_t i = 0; i < lines; ++i) to[i] = static_cast<float>(source[i]);
      }
    } else {
      for (std::int64_t i = 0; i < lines; ++i) {
        const S* source = panel + i * line_stride;
        for (std::int64_t k = 0; k < depth; ++k) packed[k * Width + i] = static_cast<float>(source[k * depth_stride]);
      }
    }
  }
}

void pack_a(const void* a, DType dtype, std::int64_t row_stride, std::int64_t depth_stride, std::int64_t rows,
            std::int64_t depth, float* packed) {
  OUTEFFHOP_FOR_STORAGE(dtype,
                        (pack<S, kRows>(static_cast<const S*>(a), row_stride, depth_stride, rows, depth, packed)));
}

void pack_b(const void* b, DType dtype, std::int64_t depth_stride, std::int64_t column_stride, std::int64_t depth,
            std::int64_t columns, float* packed) {
  OUTEFFHOP_FOR_STORAGE(dtype,
                        (pack<S, kColumns>(static_cast<const S*>(b), column_stride, depth_stride, columns, depth, packed)));
}

/// tile (kRows, kColumns) += one panel of a times one panel of b. The accumulators stay in registers over the whole depth.
void microkernel(const float* a, const float* b, std::int64_t depth, float* tile, std::int64_t stride) {
  Vector sum[kRows][kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) sum[i][j] = Vector{};
  for (std::int64_t k = 0; k < depth; ++k, a += kRows, b += kColumns) {
    Vector right[kVectors];
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) right[j] = load_vector(b + j * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const Vector left = Vector{} + a[i];
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) sum[i][j] = sum[i][j] + left * right[j];
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      float* to = tile + i * stride + j * kLanes;
      const Vector v = load_vector(to) + sum[i][j];
      std::memcpy(to, &v, sizeof v);
    }
}

void multiply(const float* a, const float* b, std::int64_t rows, std::int64_t columns, std::int64_t depth, float* tile,
              std::int64_t stride) {
  for (std::int64_t j = 0; j < columns; j += kColumns)
    for (std::int64_t i = 0; i < rows; i += kRows)
      microkernel(a + i * depth, b + j * depth, depth, tile + i * stride + j, stride);
}

template <class S>
void finish_row(const float* tile, const ConstTensor& bias, void* c, std::int64_t columns, bool accumulate) {
  S* to = static_cast<S*>(c);
  for_vectors(0, columns, [&](std::int64_t j, auto extent) OUTEFFHOP_BODY {
    vf v = load(tile + j, extent);
    if (bias.data)
      v = v + (bias.dtype == DType::bf16 ? load(static_cast<const bf16*>(bias.data) + j, extent)
                                         : load(static_cast<const float*>(bias.data) + j, extent));
    if (accumulate) v = v + load(to + j, extent);
    store(to + j, v, extent);
  });
}

void finish(const float* tile, const ConstTensor& bias, const Tensor& c, std::int64_t columns, bool accumulate) {
  OUTEFFHOP_FOR_STORAGE(c.dtype, finish_row<S>(tile, bias, c.data, columns, accumulate));
}

}  // namespace

const ProductTable product_table = {kRows, kColumns, pack_a, pack_b, multiply, finish};

}  // namespace outeffhop::cpu::OUTEFFHOP_ISA

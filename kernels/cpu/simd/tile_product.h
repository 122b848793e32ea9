// Small fp32 matrix products in registers, for operands that lie in cache: C = A B or C += A B, with a block of C held in
// accumulators while the inner dimension runs (Goto, van de Geijn 2008). An element of C is one running sum over k in
// ascending order, whatever the tile it falls in.
//
// The vectors here are as wide as the registers of this level, not always 16 lanes: GCC keeps wider ones in memory.
#pragma once

#include "kernels/cpu/simd/vector.h"

namespace outeffhop::cpu::OUTEFFHOP_ISA {

// Accumulators + one row of B + one broadcast fit the registers: 24 + 4 + 1 of 32, or 12 + 2 + 1 of 16.
#if defined(__AVX512F__)
constexpr int kNativeLanes = 16, kTileRows = 6, kTileVectors = 4;
#elif defined(__AVX__)
constexpr int kNativeLanes = 8, kTileRows = 6, kTileVectors = 2;
#else
constexpr int kNativeLanes = 4, kTileRows = 6, kTileVectors = 2;
#endif
constexpr int kPanel = kNativeLanes * kTileVectors;  ///< columns of a tile; divides or is a multiple of 16

using NativeVector = float __attribute__((vector_size(4 * kNativeLanes)));

OUTEFFHOP_INLINE NativeVector load_native(const float* p) {
  NativeVector r;
  std::memcpy(&r, p, sizeof r);
  return r;
}
OUTEFFHOP_INLINE void store_native(float* p, NativeVector x) { std::memcpy(p, &x, sizeof x); }

/// One step of a sum as the tiles below round it: fused where this level has the instruction, which the compiler would not
/// promise for a plain a * b + c in a loop of scalars.
OUTEFFHOP_INLINE float multiply_add(float a, float b, float c) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

constexpr std::int64_t round_up(std::int64_t x, std::int64_t multiple) { return (x + multiple - 1) / multiple * multiple; }

/// The right operand, (inner x columns): element (k, c) lies at data[(c / kPanel) panel_stride + k row_stride + c % kPanel].
struct RightOperand {
  const float* data;
  std::int64_t row_stride, panel_stride;
};

/// A row-major matrix as it is.
OUTEFFHOP_INLINE RightOperand row_major(const float* data, std::int64_t row_stride) { return {data, row_stride, kPanel}; }
/// Panels of kPanel columns, each (inner x kPanel), one after another (see transpose_rows).
OUTEFFHOP_INLINE RightOperand panels(const float* data, std::int64_t inner) { return {data, kPanel, inner * kPanel}; }

/// Rows x Vectors native vectors of C. Transposed: A is given as (inner x rows), element (r, k) at a[k a_stride + r].
template <int Rows, int Vectors, bool Transposed>
static inline void tile(std::int64_t inner, const float* a, std::int64_t a_stride, const float* b, std::int64_t b_stride,
                        float* c, std::int64_t c_stride, bool accumulate) {
  NativeVector sums[Rows][Vectors];
  for (int r = 0; r < Rows; ++r)
    for (int v = 0; v < Vectors; ++v) sums[r][v] = NativeVector{};
  for (std::int64_t k = 0; k < inner; ++k) {
    NativeVector right[Vectors];
    for (int v = 0; v < Vectors; ++v) right[v] = load_native(b + k * b_stride + v * kNativeLanes);
    for (int r = 0; r < Rows; ++r) {
      const NativeVector left = (Transposed ? a[k * a_stride + r] : a[r * a_stride + k]) - NativeVector{};  // a broadcast
      for (int v = 0; v < Vectors; ++v) sums[r][v] += left * right[v];
    }
  }
  for (int r = 0; r < Rows; ++r)
    for (int v = 0; v < Vectors; ++v) {
      float* to = c + r * c_stride + v * kNativeLanes;
      store_native(to, accumulate ? load_native(to) + sums[r][v] : sums[r][v]);
    }
}

template <int Rows, bool Transposed>
static inline void tile_of_width(int vectors, std::int64_t inner, const float* a, std::int64_t a_stride, const float* b,
                                 std::int64_t b_stride, float* c, std::int64_t c_stride, bool accumulate) {
  if constexpr (kTileVectors == 4) {
    if (vectors == 4) return tile<Rows, 4, Transposed>(inner, a, a_stride, b, b_stride, c, c_stride, accumulate);
    if (vectors == 3) return tile<Rows, 3, Transposed>(inner, a, a_stride, b, b_stride, c, c_stride, accumulate);
  }
  if (vectors == 2) return tile<Rows, 2, Transposed>(inner, a, a_stride, b, b_stride, c, c_stride, accumulate);
  return tile<Rows, 1, Transposed>(inner, a, a_stride, b, b_stride, c, c_stride, accumulate);
}

/// C (rows x columns, row-major) = or += A B. columns is a multiple of 16; a_stride as in `tile`.
template <bool Transposed>
static inline void product(std::int64_t rows, std::int64_t columns, std::int64_t inner, const float* a,
                           std::int64_t a_stride, RightOperand b, float* c, std::int64_t c_stride, bool accumulate) {
  for (std::int64_t column = 0; column < columns; column += kPanel) {
    const float* panel = b.data + (column / kPanel) * b.panel_stride;
    const std::int64_t left_over = columns - column;
    const int vectors = left_over < kPanel ? static_cast<int>(left_over / kNativeLanes) : kTileVectors;
    for (std::int64_t row = 0; row < rows; row += kTileRows) {
      const float* from = Transposed ? a + row : a + row * a_stride;
      float* to = c + row * c_stride + column;
      switch (rows - row) {
        case 1:
          tile_of_width<1, Transposed>(vectors, inner, from, a_stride, panel, b.row_stride, to, c_stride, accumulate);
          break;
        case 2:
          tile_of_width<2, Transposed>(vectors, inner, from, a_stride, panel, b.row_stride, to, c_stride, accumulate);
          break;
        case 3:
          tile_of_width<3, Transposed>(vectors, inner, from, a_stride, panel, b.row_stride, to, c_stride, accumulate);
          break;
        case 4:
          tile_of_width<4, Transposed>(vectors, inner, from, a_stride, panel, b.row_stride, to, c_stride, accumulate);
          break;
        case 5:
          tile_of_width<5, Transposed>(vectors, inner, from, a_stride, panel, b.row_stride, to, c_stride, accumulate);
          break;
        default:
          tile_of_width<kTileRows, Transposed>(vectors, inner, from, a_stride, panel, b.row_stride, to, c_stride,
                                               accumulate);
      }
    }
  }
}

/// `rows` row-major rows of `width` floats (a multiple of 4), as columns first_column ... of panels of inner size `inner`
/// (>= width). rows is a multiple of 4, as is first_column.
static inline void transpose_rows(const float* in, std::int64_t rows, std::int64_t width, std::int64_t inner,
                                  std::int64_t first_column, float* out) {
  using Quad = float __attribute__((vector_size(16)));
  for (std::int64_t row = 0; row < rows; row += 4) {
    const std::int64_t column = first_column + row;
    float* to = out + (column / kPanel) * inner * kPanel + column % kPanel;
    const float* from = in + row * width;
    for (std::int64_t k = 0; k < width; k += 4) {
      Quad r[4];
      for (int i = 0; i < 4; ++i) std::memcpy(&r[i], from + i * width + k, sizeof r[i]);
      const Quad low01 = __builtin_shufflevector(r[0], r[1], 0, 4, 1, 5),
                 high01 = __builtin_shufflevector(r[0], r[1], 2, 6, 3, 7);
      const Quad low23 = __builtin_shufflevector(r[2], r[3], 0, 4, 1, 5),
                 high23 = __builtin_shufflevector(r[2], r[3], 2, 6, 3, 7);
      const Quad c[4] = {
          __builtin_shufflevector(low01, low23, 0, 1, 4, 5), __builtin_shufflevector(low01, low23, 2, 3, 6, 7),
          __builtin_shufflevector(high01, high23, 0, 1, 4, 5), __builtin_shufflevector(high01, high23, 2, 3, 6, 7)};
      for (int i = 0; i < 4; ++i) std::memcpy(to + (k + i) * kPanel, &c[i], sizeof c[i]);
    }
  }
}

}  // namespace outeffhop::cpu::OUTEFFHOP_ISA

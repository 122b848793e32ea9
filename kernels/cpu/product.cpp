// Our own matrix product: c is cut into tiles, each the work of one team member, who packs what the tile needs, block by
// block of the depth, into panels of its own. Slower than oneDNN, but it takes every mixture of types.
#include "kernels/cpu/product.h"

#include <omp.h>

#include "kernels/cpu/cpu_device.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/simd/tables.h"

namespace outeffhop::cpu {

OUTEFFHOP_SIMD_TABLE(ProductTable, product_table)

namespace {

// A tile of c and a block of b fit the second-level cache together, a panel of a the first.
constexpr std::int64_t kDepth = 256, kTileColumns = 256, kTileRows = 384;

std::int64_t round_up(std::int64_t value, std::int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

}  // namespace

void blocked_product(int threads, Scratch& scratch, const Product& product) {
  const std::int64_t M = product.M, N = product.N, K = product.K;
  if (M == 0 || N == 0) return;
  for (const DType dtype : {product.a.dtype, product.b.dtype, product.c.dtype}) require_storage(dtype, "a matrix product");
  const auto& table = product_table();
  const std::int64_t panel_rows = table.panel_rows, panel_columns = table.panel_columns;
  const std::int64_t a_stride = product.a_stride ? product.a_stride : product.a_transposed ? M : K;
  const std::int64_t c_stride = product.c_stride ? product.c_stride : N;
  const std::int64_t a_row = product.a_transposed ? 1 : a_stride, a_depth = product.a_transposed ? a_stride : 1;
  const std::int64_t b_depth = product.b_transposed ? 1 : N, b_column = product.b_transposed ? K : 1;

  const std::int64_t tile_columns = std::min(round_up(N, panel_columns), round_up(kTileColumns, panel_columns));
  const std::int64_t column_tiles = (N + tile_columns - 1) / tile_columns;
  // Enough tiles for the team; how c is cut does not change any sum.
  const std::int64_t wanted_row_tiles = std::max<std::int64_t>((M + kTileRows - 1) / kTileRows,
                                                               (2 * threads + column_tiles - 1) / column_tiles);
  const std::int64_t tile_rows = round_up((M + wanted_row_tiles - 1) / wanted_row_tiles, panel_rows);
  const std::int64_t row_tiles = (M + tile_rows - 1) / tile_rows;

  const std::int64_t per_member = tile_rows * tile_columns + (tile_rows + tile_columns) * kDepth;
  float* memory = scratch.get<float>(per_member * threads);
#pragma omp parallel num_threads(threads)
  {
    float* tile = memory + per_member * omp_get_thread_num();
    float* packed_a = tile + tile_rows * tile_columns;
    float* packed_b = packed_a + tile_rows * kDepth;
#pragma omp for schedule(static, 1)
    for (std::int64_t t = 0; t < row_tiles * column_tiles; ++t) {
      const std::int64_t row = t % row_tiles * tile_rows, column = t / row_tiles * tile_columns;
      const std::int64_t rows = std::min(tile_rows, M - row), columns = std::min(tile_columns, N - column);
      std::fill(tile, tile + tile_rows * tile_columns, 0.0f);
      for (std::int64_t k = 0; k < K; k += kDepth) {
        const std::int64_t depth = std::min(kDepth, K - k);
        table.pack_a(product.a.at(row * a_row + k * a_depth).data, product.a.dtype, a_row, a_depth, rows, depth, packed_a);
        table.pack_b(product.b.at(k * b_depth + column * b_column).data, product.b.dtype, b_depth, b_column, depth, columns,
                     packed_b);
        table.multiply(packed_a, packed_b, rows, columns, depth, tile, tile_columns);
      }
      for (std::int64_t i = 0; i < rows; ++i)
        table.finish(tile + i * tile_columns, product.bias.at(column), product.c.at((row + i) * c_stride + column), columns,
                     product.accumulate);
    }
  }
}

}  // namespace outeffhop::cpu

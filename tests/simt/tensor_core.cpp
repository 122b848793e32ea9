#include "tests/simt/tensor_core.h"

#include <fmt/format.h>

#include <bit>
#include <cstring>

namespace outeffhop::simt {
namespace {

constexpr std::uint32_t kFullMask = 0xffffffffu;

float lower(std::uint32_t pair) { return std::bit_cast<float>(pair << 16); }
float upper(std::uint32_t pair) { return std::bit_cast<float>(pair & 0xffff0000u); }

struct Operands {
  const std::uint32_t *a, *b;
};

void multiply(const Collective&, const Lanes& lanes, const Where&) {
  float a[16][16], b[16][8], d[16][8];
  for (unsigned lane = 0; lane < kWarpSize; ++lane) {
    const Operands& from = *static_cast<const Operands*>(lanes.brought[lane]);
    const auto* c = static_cast<const float*>(lanes.taken[lane]);
    const unsigned g = lane / 4, t = lane % 4;
    for (unsigned i = 0; i < 4; ++i) {
      const unsigned row = g + i % 2 * 8, column = 2 * t + i / 2 * 8;
      a[row][column] = lower(from.a[i]);
      a[row][column + 1] = upper(from.a[i]);
    }
    for (unsigned i = 0; i < 2; ++i) {
      b[2 * t + 8 * i][g] = lower(from.b[i]);
      b[2 * t + 8 * i + 1][g] = upper(from.b[i]);
    }
    for (unsigned i = 0; i < 4; ++i) d[g + i / 2 * 8][2 * t + i % 2] = c[i];
  }
  for (unsigned row = 0; row < 16; ++row)
    for (unsigned k = 0; k < 16; ++k)
      for (unsigned column = 0; column < 8; ++column) d[row][column] += a[row][k] * b[k][column];
  for (unsigned lane = 0; lane < kWarpSize; ++lane) {
    auto* c = static_cast<float*>(lanes.taken[lane]);
    for (unsigned i = 0; i < 4; ++i) c[i] = d[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
  }
}

/// The rows of matrix j that a lane takes elements from: one, or with transposition two.
struct Rows {
  std::uint32_t offset[4][2];
};

void exchange_rows(const Collective& collective, const Lanes& lanes, const Where&) {
  const unsigned count = collective.parameter >> 1;
  const bool transposed = collective.parameter & 1u;
  const auto row = [&](unsigned j, unsigned r) { return *static_cast<const std::uint32_t*>(lanes.brought[8 * j + r]); };
  for (unsigned lane = 0; lane < kWarpSize; ++lane) {
    auto& rows = *static_cast<Rows*>(lanes.taken[lane]);
    const unsigned g = lane / 4, t = lane % 4;
    for (unsigned j = 0; j < count; ++j) {
      rows.offset[j][0] = row(j, transposed ? 2 * t : g);
      rows.offset[j][1] = row(j, transposed ? 2 * t + 1 : g);
    }
  }
}

}  // namespace

void multiply_fragments(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2], const Where& where) {
  const Operands operands{a, b};
  warp_collective({"mma.m16n8k16", kFullMask}, &operands, d, multiply, where);
}

void load_matrices(std::uint32_t* to, unsigned count, bool transposed, const void* row, const Where& where) {
  const unsigned self = lane();
  std::uint32_t offset = 0;
  if (self < 8 * count) {
    offset = static_cast<std::uint32_t>(shared_offset(row, 16, where));
    if (offset % 16 != 0)
      violate(fmt::format("ldmatrix is given a row at offset {} of shared memory; it must be a multiple of 16", offset),
              where);
  }
  Rows rows;
  warp_collective({"ldmatrix", kFullMask, count << 1 | (transposed ? 1u : 0u), true}, &offset, &rows, exchange_rows, where);
  // Each lane reads what it gets: from rows that other lanes may have written.
  for (unsigned j = 0; j < count; ++j) {
    const auto element = [&](unsigned i) {
      const std::uint32_t column = transposed ? self / 4 : self % 4 * 2 + i, at = rows.offset[j][i] + 2 * column;
      note_shared_read(at, 2, where);
      std::uint16_t bits;
      std::memcpy(&bits, shared_memory() + at, sizeof bits);
      return std::uint32_t{bits};
    };
    const std::uint32_t first = element(0);
    to[j] = first | element(1) << 16;
  }
}

void copy_async(void* shared, const void* global, int bytes, int source_bytes, const Where& where) {
  const std::size_t size = static_cast<std::size_t>(bytes), offset = shared_offset(shared, size, where);
  if (offset % size != 0 || reinterpret_cast<std::uintptr_t>(global) % size != 0)
    violate(fmt::format("cp.async of {} bytes needs both addresses to be multiples of {}", bytes, bytes), where);
  if (source_bytes < 0 || source_bytes > bytes)
    violate(fmt::format("cp.async of {} bytes is told to read {}", bytes, source_bytes), where);
  async_copy(offset, size, global, static_cast<std::size_t>(source_bytes), where);
}

}  // namespace outeffhop::simt

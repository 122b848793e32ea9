// Tile sizes of the attention kernels on tensor cores.
//
// A kernel is compiled for each entry, which its template arguments name (nvcc's host code cannot have the entry itself as
// one), and a launcher runs the first entry that serves the problem and for whose shared memory the device has room: the
// launch and the code it launches cannot differ, whatever the architecture.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/host_device.h"

namespace outeffhop::cuda {

/// A block of `warps` warps has 16 `row_blocks` queries a warp and takes `slice` keys at a time.
struct ForwardTile {
  int head_size;
  int warps;
  int row_blocks;  ///< 16 queries each: what is loaded of a key or value into registers serves them all
  int slice;       ///< keys whose scores are in registers together
  int tile;        ///< keys that are copied into shared memory together
  int blocks;      ///< that a multiprocessor holds: registers are limited to that

  OUTEFFHOP_HOST_DEVICE constexpr int queries() const { return 16 * row_blocks * warps; }
  OUTEFFHOP_HOST_DEVICE constexpr int threads() const { return 32 * warps; }
  /// Queries and what each of them sees, keys and values of `tiles` tiles.
  OUTEFFHOP_HOST_DEVICE constexpr int shared_bytes(int tiles) const {
    return queries() * (head_size * 2 + 8) + 2 * tiles * tile * head_size * 2;
  }
  /// Whether a multiprocessor holds as many blocks as it should with that. It has 1 KiB more than the `most` bytes that
  /// one block can have, and each block costs 1 KiB more than it asks for.
  constexpr bool fits(int tiles, std::size_t most) const {
    return static_cast<std::size_t>(blocks * (shared_bytes(tiles) + 1024)) <= most + 1024;
  }
};

/// Walking through keys: a block has queries() queries and two tiles.
constexpr ForwardTile kForwardTiles[] = {
    {.head_size = 32, .warps = 4, .row_blocks = 2, .slice = 32, .tile = 64, .blocks = 3},
    {.head_size = 64, .warps = 4, .row_blocks = 2, .slice = 32, .tile = 64, .blocks = 2},
    {.head_size = 80, .warps = 4, .row_blocks = 2, .slice = 32, .tile = 64, .blocks = 2},
    {.head_size = 96, .warps = 8, .row_blocks = 1, .slice = 64, .tile = 64, .blocks = 1},
    {.head_size = 128, .warps = 8, .row_blocks = 1, .slice = 64, .tile = 64, .blocks = 1},
};

/// All keys resident: a block has all queries of a head and as many tiles as there are. Several small blocks, or one that
/// has as many warps.
constexpr ForwardTile kResidentTiles[] = {
    {.head_size = 32, .warps = 4, .row_blocks = 2, .slice = 32, .tile = 64, .blocks = 2},
    {.head_size = 64, .warps = 4, .row_blocks = 2, .slice = 32, .tile = 64, .blocks = 2},
    {.head_size = 64, .warps = 8, .row_blocks = 2, .slice = 32, .tile = 64, .blocks = 1},
};
/// The entry of a head size and a number of warps.
template <std::size_t count>
constexpr ForwardTile entry_of(const ForwardTile (&table)[count], int head_size, int warps) {
  for (const ForwardTile& entry : table)
    if (entry.head_size == head_size && entry.warps == warps) return entry;
  return {};
}

/// Fewer keys are resident in two tiles anyway; more do not fit with heads of 64 channels.
constexpr int kLeastResidentKeys = 129, kMostResidentKeys = 512;

}  // namespace outeffhop::cuda

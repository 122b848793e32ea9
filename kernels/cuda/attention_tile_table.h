// Tile sizes of the attention kernels on tensor cores.
//
// A kernel is compiled for each entry, which it has as a template argument, and a launcher runs the first entry of a head
// size for whose shared memory the device has room: the launch and the code it launches cannot differ, whatever the
// architecture.
#pragma once

#include "kernels/host_device.h"

namespace outeffhop::cuda {

/// A block of `warps` warps has 16 `row_blocks` queries a warp and takes `slice` keys at a time.
struct ForwardTile {
  int head_size;
  int warps;
  int row_blocks;  ///< a key or value that is loaded into registers serves them all
  int slice;       ///< keys whose scores are in registers together
  int tile;        ///< keys that are copied into shared memory together
  int blocks;      ///< that a multiprocessor holds: registers are limited to that

  OUTEFFHOP_HOST_DEVICE constexpr int queries() const { return 16 * row_blocks * warps; }
  OUTEFFHOP_HOST_DEVICE constexpr int threads() const { return 32 * warps; }
  /// Queries, keys and values of two tiles, and what each query sees.
  OUTEFFHOP_HOST_DEVICE constexpr int shared_bytes() const { return (queries() + 4 * tile) * head_size * 2 + queries() * 8; }
};

constexpr ForwardTile kForwardTiles[] = {
    {.head_size = 32, .warps = 4, .row_blocks = 2, .slice = 32, .tile = 64, .blocks = 3},
    {.head_size = 64, .warps = 4, .row_blocks = 2, .slice = 32, .tile = 64, .blocks = 2},
    {.head_size = 80, .warps = 4, .row_blocks = 2, .slice = 32, .tile = 64, .blocks = 2},
    {.head_size = 96, .warps = 8, .row_blocks = 1, .slice = 64, .tile = 64, .blocks = 1},
    {.head_size = 128, .warps = 8, .row_blocks = 1, .slice = 64, .tile = 64, .blocks = 1},
};

}  // namespace outeffhop::cuda

#if defined(__CUDACC__)
// In the host code that nvcc makes of a kernel with such an argument the type has this name, and no declaration.
using _ZN9outeffhop4cuda11ForwardTileE = outeffhop::cuda::ForwardTile;
#endif

// Shuffles and votes, as the CUDA C++ Programming Guide defines them (warp shuffle functions, warp vote functions).
#include <fmt/format.h>

#include <cstring>

#include "tests/simt/builtins.h"

namespace outeffhop::simt {
namespace {

/// What a lane brings to a shuffle: its value, and the lane it wants to read.
struct Bid {
  std::uint64_t value = 0;
  std::uint32_t source = 0;
};

void exchange(const Collective& collective, const Lanes& lanes, const Where& where) {
  for (unsigned lane = 0; lane < kWarpSize; ++lane) {
    if (!(collective.mask >> lane & 1u)) continue;
    const std::uint32_t source = static_cast<const Bid*>(lanes.brought[lane])->source;
    if (!(collective.mask >> source & 1u))
      violate(fmt::format("in {} lane {} reads lane {}, which the mask {:#010x} leaves out", collective.name, lane, source,
                          collective.mask),
              where);
    *static_cast<std::uint64_t*>(lanes.taken[lane]) = static_cast<const Bid*>(lanes.brought[source])->value;
  }
}

void count_votes(const Collective& collective, const Lanes& lanes, const Where&) {
  std::uint32_t votes = 0;
  for (unsigned lane = 0; lane < kWarpSize; ++lane)
    if (collective.mask >> lane & 1u)
      votes |= static_cast<std::uint32_t>(*static_cast<const bool*>(lanes.brought[lane])) << lane;
  for (unsigned lane = 0; lane < kWarpSize; ++lane)
    if (collective.mask >> lane & 1u) *static_cast<std::uint32_t*>(lanes.taken[lane]) = votes;
}

}  // namespace

void shuffle_bits(ShuffleKind kind, const char* name, std::uint32_t mask, const void* value, std::size_t bytes, void* result,
                  int argument, int width, const Where& where) {
  if (width < 1 || width > 32 || (width & (width - 1)))
    violate(fmt::format("{} has the width {}; it must be a power of two up to 32", name, width), where);
  if (kind != ShuffleKind::index && (argument < 0 || argument >= 32))
    violate(fmt::format("{} is told {}; it must be from 0 to 31", name, argument), where);
  const int self = static_cast<int>(lane()), begin = self / width * width, end = begin + width;
  int source = self;
  switch (kind) {
    case ShuffleKind::index:
      source = begin + (argument & (width - 1));
      break;
    case ShuffleKind::up:
      source = self - argument;
      break;
    case ShuffleKind::down:
      source = self + argument;
      break;
    case ShuffleKind::exchange:
      source = self ^ argument;
      break;
  }
  // Beyond the end of its segment a lane reads itself; __shfl_xor_sync may read earlier segments.
  if (source >= end || (source < begin && kind != ShuffleKind::exchange)) source = self;
  Bid bid;
  std::memcpy(&bid.value, value, bytes);
  bid.source = static_cast<std::uint32_t>(source);
  std::uint64_t taken = 0;
  warp_collective({name, mask, static_cast<std::uint32_t>(width), true}, &bid, &taken, exchange, where);
  std::memcpy(result, &taken, bytes);
}

std::uint32_t ballot(const char* name, std::uint32_t mask, bool predicate, const Where& where) {
  std::uint32_t votes = 0;
  warp_collective({name, mask}, &predicate, &votes, count_votes, where);
  return votes;
}

}  // namespace outeffhop::simt

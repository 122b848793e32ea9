#include "tests/simt/shared_shadow.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <string_view>

namespace outeffhop::simt {

void SharedShadow::begin_launch(std::size_t bytes, unsigned threads) {
  bytes_ = bytes;
  const std::size_t cells = (bytes + kGranule - 1) / kGranule, warps = (threads + kLanes - 1) / kLanes;
  if (cells_.size() < cells) cells_.resize(cells);
  if (warps_.size() < warps) warps_.resize(warps);
}

void SharedShadow::begin_block() {
  constexpr Time kLate = 0x80000000u;  // a block does not come to as many barriers
  if (clock_ >= kLate) {
    std::fill(cells_.begin(), cells_.end(), Cell{});
    std::fill(warps_.begin(), warps_.end(), Warp{});
    clock_ = 0;
  }
  last_barrier_ = block_begin_ = ++clock_;
}

void SharedShadow::warp_barrier(unsigned warp, std::uint32_t mask) {
  Warp& known = warps_[warp];
  std::array<Time, kLanes> all{};
  ++clock_;
  for (std::uint32_t lanes = mask; lanes; lanes &= lanes - 1)
    for (unsigned other = 0; other < kLanes; ++other)
      all[other] = std::max(all[other], known.seen[static_cast<unsigned>(std::countr_zero(lanes))][other]);
  for (unsigned lane = 0; lane < kLanes; ++lane)
    if (mask >> lane & 1u) all[lane] = known.time[lane] = clock_;
  for (std::uint32_t lanes = mask; lanes; lanes &= lanes - 1)
    known.seen[static_cast<unsigned>(std::countr_zero(lanes))] = all;
}

/// Whether all of `party` came before what `self`, one thread, does now.
bool SharedShadow::before(const Party& party, const Party& self) const {
  if (party.time < last_barrier_) return true;
  if (party.warp != self.warp) return false;
  const auto& seen = warps_[static_cast<unsigned>(self.warp)].seen[static_cast<unsigned>(std::countr_zero(self.lanes))];
  for (std::uint32_t others = party.lanes & ~self.lanes; others; others &= others - 1)
    if (seen[static_cast<unsigned>(std::countr_zero(others))] <= party.time) return false;
  return true;
}

void SharedShadow::join(Party& party, const Party& self) const {
  if (before(party, self)) {
    party = self;
  } else {
    party.time = std::max(party.time, self.time);
    party.lanes |= self.lanes;
    if (party.warp != self.warp) party.warp = kSeveral;
  }
}

std::optional<std::string> SharedShadow::note(Access access, std::size_t offset, std::size_t bytes, unsigned thread) {
  const auto what = [&] {
    return access == Access::read ? "a read of" : access == Access::atomic ? "an atomic operation on" : "a write to";
  };
  if (offset + bytes > bytes_ || offset + bytes < offset)
    return fmt::format("{} {} bytes at offset {} of shared memory, of which the block has {} bytes", what(), bytes, offset,
                       bytes_);
  const unsigned warp = thread / kLanes, lane = thread % kLanes;
  const Party self{std::max(last_barrier_, warps_[warp].time[lane]), 1u << lane, static_cast<std::int32_t>(warp)};
  for (std::size_t k = offset / kGranule; k < (offset + bytes + kGranule - 1) / kGranule; ++k) {
    Cell& cell = cells_[k];
    const bool written = cell.writers.time >= block_begin_;
    const auto wrong = [&](std::string_view why) {
      return fmt::format("{} shared memory at offset {}, {}", what(), k * kGranule, why);
    };
    const auto race = [&](const Party& party, const char* does) {
      const std::uint32_t others = party.warp == self.warp ? party.lanes & ~self.lanes : party.lanes;
      const unsigned other = static_cast<unsigned>(party.warp) * kLanes + static_cast<unsigned>(std::countr_zero(others));
      return wrong(fmt::format("which {} with no barrier in between", party.warp == kSeveral
                                                                          ? fmt::format("other threads {}", does)
                                                                          : fmt::format("thread {} {}s", other, does)));
    };

    if (access != Access::land && written && cell.state == State::pending)
      return wrong(fmt::format(
          "where an asynchronous copy of thread {} has not been waited for",
          static_cast<unsigned>(cell.writers.warp) * kLanes + static_cast<unsigned>(std::countr_zero(cell.writers.lanes))));
    if (!written && (access == Access::read || access == Access::atomic)) return wrong("which this block has not written");
    const bool both_atomic = access == Access::atomic && cell.state == State::atomic;
    if (access != Access::land && !both_atomic && !before(cell.writers, self)) return race(cell.writers, "write");
    if (access == Access::read) {
      join(cell.readers, self);
      continue;
    }
    if (!before(cell.readers, self)) return race(cell.readers, "read");
    cell.readers = {};
    if (both_atomic) {
      join(cell.writers, self);
    } else {
      cell.writers = self;
    }
    cell.state = access == Access::pend ? State::pending : access == Access::atomic ? State::atomic : State::written;
  }
  return std::nullopt;
}

}  // namespace outeffhop::simt

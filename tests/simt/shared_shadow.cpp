#include "tests/simt/shared_shadow.h"

#include <fmt/format.h>

#include <algorithm>

namespace outeffhop::simt {
namespace {

constexpr unsigned kWarp = 32;

}  // namespace

void SharedShadow::begin_block(std::size_t bytes) {
  bytes_ = bytes;
  cells_.assign((bytes + kGranule - 1) / kGranule, {});
}

std::optional<std::string> SharedShadow::outside(std::size_t offset, std::size_t bytes, const char* what) const {
  if (offset + bytes <= bytes_ && offset + bytes >= offset) return std::nullopt;
  return fmt::format("{} of {} bytes at offset {} of shared memory, of which the block has {} bytes", what, bytes, offset,
                     bytes_);
}

std::optional<std::string> SharedShadow::read(std::size_t offset, std::size_t bytes, unsigned thread, Epoch epoch) {
  if (auto wrong = outside(offset, bytes, "a read")) return wrong;
  const auto self = static_cast<std::int16_t>(thread), warp = static_cast<std::int16_t>(thread / kWarp);
  for (std::size_t k = offset / kGranule; k < (offset + bytes + kGranule - 1) / kGranule; ++k) {
    Cell& cell = cells_[k];
    if (cell.pending)
      return fmt::format(
          "a read of shared memory at offset {}, where an asynchronous copy of thread {} has not been waited for",
          k * kGranule, cell.writer);
    if (!cell.written)
      return fmt::format("a read of shared memory at offset {}, which this block has not written", k * kGranule);
    const bool ordered = cell.writer == self || epoch.block > cell.write_epoch.block ||
                         (cell.writer / static_cast<int>(kWarp) == warp && epoch.warp > cell.write_epoch.warp);
    if (!ordered)
      return fmt::format("a read of shared memory at offset {}, which thread {} writes with no barrier in between",
                         k * kGranule, cell.writer);
    if (cell.reader == kNobody || epoch.block > cell.read_epoch.block) {
      cell.reader = self;
      cell.reader_warp = warp;
      cell.read_epoch = epoch;
    } else {
      if (cell.reader != self) cell.reader = kSeveral;
      if (cell.reader_warp != warp) cell.reader_warp = kSeveral;
      cell.read_epoch.warp = std::max(cell.read_epoch.warp, epoch.warp);
    }
  }
  return std::nullopt;
}

std::optional<std::string> SharedShadow::write(std::size_t offset, std::size_t bytes, unsigned thread, Epoch epoch) {
  if (auto wrong = outside(offset, bytes, "a write")) return wrong;
  const auto self = static_cast<std::int16_t>(thread), warp = static_cast<std::int16_t>(thread / kWarp);
  for (std::size_t k = offset / kGranule; k < (offset + bytes + kGranule - 1) / kGranule; ++k) {
    Cell& cell = cells_[k];
    const bool after_write = cell.writer == kNobody || cell.writer == self || epoch.block > cell.write_epoch.block ||
                             (cell.writer / static_cast<int>(kWarp) == warp && epoch.warp > cell.write_epoch.warp);
    if (!after_write)
      return fmt::format("a write to shared memory at offset {}, which thread {} writes with no barrier in between",
                         k * kGranule, cell.writer);
    const bool after_reads = cell.reader == kNobody || cell.reader == self || epoch.block > cell.read_epoch.block ||
                             (cell.reader_warp == warp && epoch.warp > cell.read_epoch.warp);
    if (!after_reads)
      return fmt::format(
          "a write to shared memory at offset {}, which {} with no barrier in between", k * kGranule,
          cell.reader == kSeveral ? std::string("other threads read") : fmt::format("thread {} reads", cell.reader));
    cell.written = true;
    cell.pending = false;
    cell.writer = self;
    cell.write_epoch = epoch;
    cell.reader = cell.reader_warp = kNobody;
  }
  return std::nullopt;
}

std::optional<std::string> SharedShadow::pend(std::size_t offset, std::size_t bytes, unsigned thread, Epoch epoch) {
  if (auto wrong = write(offset, bytes, thread, epoch)) return wrong;
  for (std::size_t k = offset / kGranule; k < (offset + bytes + kGranule - 1) / kGranule; ++k) {
    cells_[k].written = false;
    cells_[k].pending = true;
  }
  return std::nullopt;
}

}  // namespace outeffhop::simt

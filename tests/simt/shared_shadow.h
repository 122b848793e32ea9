// What is known of each two bytes of a block's shared memory: whether they were written, and who touched them since when.
//
// Two accesses are ordered when one thread made both; when the second comes after a barrier of the block that the first came
// before; or when both are of one warp and a __syncwarp of both lanes lies between. Two that are not ordered, one of them a
// write, are a race. As with any check of one execution, what the execution does not reach is not seen; the order in which
// threads have their turns does not matter.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace outeffhop::simt {

/// How many barriers of the block, and __syncwarps, a thread has behind it.
struct Epoch {
  std::uint32_t block = 0, warp = 0;
};

class SharedShadow {
 public:
  /// Nothing is written. Keeps its memory.
  void begin_block(std::size_t bytes);

  /// Each of the three: an access of `thread` to bytes [offset, offset + bytes). Says what is wrong with it, if anything is.
  std::optional<std::string> read(std::size_t offset, std::size_t bytes, unsigned thread, Epoch epoch);
  std::optional<std::string> write(std::size_t offset, std::size_t bytes, unsigned thread, Epoch epoch);
  /// As write, but the bytes count as unwritten until they are written again.
  std::optional<std::string> pend(std::size_t offset, std::size_t bytes, unsigned thread, Epoch epoch);

 private:
  static constexpr std::size_t kGranule = 2;  // bytes: a bf16
  static constexpr std::int16_t kNobody = -1, kSeveral = -2;

  struct Cell {
    Epoch write_epoch, read_epoch;
    std::int16_t writer = kNobody;
    std::int16_t reader = kNobody;       ///< in read_epoch.block; kSeveral: more than one thread
    std::int16_t reader_warp = kNobody;  ///< kSeveral: more than one warp
    bool written = false, pending = false;
  };

  std::optional<std::string> outside(std::size_t offset, std::size_t bytes, const char* what) const;

  std::size_t bytes_ = 0;
  std::vector<Cell> cells_;
};

}  // namespace outeffhop::simt

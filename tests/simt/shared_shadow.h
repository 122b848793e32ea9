// What is known of each two bytes of a block's shared memory: whether they were written, and who touched them since when.
//
// Two accesses are ordered when one thread made both; when the second comes after a barrier of the block that the first came
// before; or when both are of one warp and lead from one to the other by a chain of __syncwarps. Two that are not ordered
// are a race, unless both read or both are atomic. As with any check of one execution, what the execution does not reach is
// not seen; the order in which threads have their turns does not matter.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace outeffhop::simt {

enum class Access : std::uint8_t {
  read,
  write,
  atomic,  ///< reads and writes
  pend,    ///< an asynchronous copy sets out: until it lands nobody may touch its destination
  land,    ///< and arrives
};

class SharedShadow {
 public:
  void begin_launch(std::size_t bytes, unsigned threads);
  /// Nothing is written.
  void begin_block();

  /// All threads of the block are at a barrier.
  void block_barrier() { last_barrier_ = ++clock_; }
  /// The lanes of `mask` are at a __syncwarp.
  void warp_barrier(unsigned warp, std::uint32_t mask);

  /// `thread` touches bytes [offset, offset + bytes). Says what is wrong with that, if anything is.
  std::optional<std::string> note(Access access, std::size_t offset, std::size_t bytes, unsigned thread);

 private:
  static constexpr std::size_t kGranule = 2;  // bytes: a bf16
  static constexpr unsigned kLanes = 32;

  // Time is one number, that each barrier and each __syncwarp raises. A thread's time is that of the last one it came to.
  // Times of earlier blocks stay where they are: they are earlier than the block's beginning, so nothing has to be cleared.
  using Time = std::uint32_t;

  /// Threads that touched a cell with nothing to order them.
  struct Party {
    Time time = 0;            ///< of the last of them
    std::uint32_t lanes = 0;  ///< of `warp`
    std::int32_t warp = 0;    ///< kSeveral: threads of more than one
  };
  static constexpr std::int32_t kSeveral = -1;

  enum class State : std::uint8_t { written, atomic, pending };
  struct Cell {
    Party writers, readers;
    State state = State::written;
  };

  struct Warp {
    std::array<Time, kLanes> time{};  ///< of a lane's last __syncwarp
    std::array<std::array<Time, kLanes>, kLanes>
        seen{};  ///< [lane][other]: the last __syncwarp of `other` that `lane` knows of
  };

  bool before(const Party& party, const Party& self) const;
  void join(Party& party, const Party& self) const;

  std::size_t bytes_ = 0;
  Time clock_ = 1, last_barrier_ = 1, block_begin_ = 1;
  std::vector<Cell> cells_;
  std::vector<Warp> warps_;
};

}  // namespace outeffhop::simt

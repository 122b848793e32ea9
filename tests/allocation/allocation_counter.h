// Counts what every thread of this program asks of malloc and its kin: this program has versions of its own, which count and
// hand on to the C library. operator new has one too, so that what is counted is known by who asked.
#pragma once

#include <cstdint>
#include <string>

namespace outeffhop::test {

struct AllocationCount {
  std::int64_t calls = 0;         ///< allocations, by whomever but oneDNN
  std::int64_t onednn_calls = 0;  ///< allocations inside oneDNN
  std::int64_t onednn_kept = 0;   ///< of those, how many more there are than it freed: what it built and keeps
  std::string callers;            ///< where the first of `calls` came from
};

/// Counts from construction to stop(). One at a time.
class AllocationCounter {
 public:
  AllocationCounter();
  ~AllocationCounter() { stop(); }
  AllocationCount stop();
};

}  // namespace outeffhop::test

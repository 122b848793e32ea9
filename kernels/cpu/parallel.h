// Static shares of a loop for the members of an OpenMP team.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>

namespace outeffhop::cpu {

struct Range {
  std::int64_t begin = 0, end = 0;
};

/// The share of team member `index` of `members` in [0, count), cut at multiples of `grain`.
inline Range share_of(std::int64_t count, int index, int members, std::int64_t grain = 1) {
  const std::int64_t grains = (count + grain - 1) / grain;
  const std::int64_t begin = grains * index / members * grain, end = grains * (index + 1) / members * grain;
  return {std::min(begin, count), std::min(end, count)};
}

/// Calls body(begin, end, member) on each of `threads` team members, with shares of [0, count) cut at multiples of `grain`.
/// `body` must not throw. A count of at most one grain runs on the calling thread alone.
template <class Body>
void parallel_ranges(int threads, std::int64_t count, std::int64_t grain, const Body& body) {
  if (count <= 0) return;
  if (threads == 1 || count <= grain) {
    body(std::int64_t{0}, count, 0);
    return;
  }
#pragma omp parallel num_threads(threads)
  {
    const int member = omp_get_thread_num();
    const Range range = share_of(count, member, omp_get_num_threads(), grain);
    if (range.begin < range.end) body(range.begin, range.end, member);
  }
}

}  // namespace outeffhop::cpu

#include "tests/simt/profiler_ranges.h"

#include <utility>

#include "kernels/cuda/profiler_ranges.h"

namespace outeffhop::simt {
namespace {

constexpr std::size_t kKept = 4096;

std::vector<std::string> begun;
std::vector<std::string> open;

}  // namespace

std::vector<std::string> take_ranges() { return std::exchange(begun, {}); }
int open_ranges() { return static_cast<int>(open.size()); }

}  // namespace outeffhop::simt

namespace outeffhop::cuda {

using simt::begun;
using simt::open;

void begin_profiler_range(const char* name) {
  open.push_back(open.empty() ? name : open.back() + "/" + name);
  if (begun.size() < simt::kKept) begun.push_back(open.back());
}
void end_profiler_range() { open.pop_back(); }

}  // namespace outeffhop::cuda

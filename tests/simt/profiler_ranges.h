// In place of a profiler: which ranges were begun.
#pragma once

#include <string>
#include <vector>

namespace outeffhop::simt {

/// The ranges that were begun since the last call, in order, each behind those it is nested in: "micro-batch/forward".
std::vector<std::string> take_ranges();
/// Ranges that have not ended.
int open_ranges();

}  // namespace outeffhop::simt

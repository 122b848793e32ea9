// Named ranges of this thread, which profilers (Nsight Systems, Nsight Compute) show beside what was launched in them.
#pragma once

namespace outeffhop::cuda {

/// Without a profiler both do nothing but look whether there is one.
void begin_profiler_range(const char* name);
void end_profiler_range();

}  // namespace outeffhop::cuda

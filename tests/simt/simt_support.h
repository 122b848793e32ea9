// What the executor's own tests share.
#pragma once

#include <algorithm>
#include <array>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/cuda/launch_shape.h"
#include "tests/simt/executor.h"

namespace outeffhop::test {

/// As cuda::launch, but at once, and on ordinary memory: these tests are of the executor, not of streams.
template <class... Parameters, class... Arguments>
void launch(const cuda::LaunchShape& shape, void (*kernel)(Parameters...), Arguments... arguments) {
  simt::run({shape.kernel,
             {shape.grid.x, shape.grid.y, shape.grid.z},
             {shape.block.x, shape.block.y, shape.block.z},
             shape.shared_bytes},
            [&] { kernel(arguments...); });
}

/// A kernel that will be caught says in which line, by HERE at its beginning: of two accesses that race, in both.
inline std::set<unsigned> fault_lines;
#define HERE ::outeffhop::test::fault_lines.insert(__LINE__);

/// The schedules that kernels are run in.
inline const std::array<simt::Schedule, 4> kSchedules = {
    {{simt::Order::forward}, {simt::Order::reverse}, {simt::Order::random, 1}, {simt::Order::random, 2}}};

inline std::string name_of(const simt::Schedule& schedule) {
  return schedule.order == simt::Order::forward   ? "forward"
         : schedule.order == simt::Order::reverse ? "reverse"
                                                  : "random:" + std::to_string(schedule.seed);
}

/// Restores the schedule.
class Scheduled {
 public:
  explicit Scheduled(const simt::Schedule& schedule) : before_(simt::schedule()) { simt::set_schedule(schedule); }
  ~Scheduled() { simt::set_schedule(before_); }
  Scheduled(const Scheduled&) = delete;
  Scheduled& operator=(const Scheduled&) = delete;

 private:
  simt::Schedule before_;
};

/// The message of the Violation that `work` ends with, or "no violation".
template <class Work>
std::string violation(Work&& work) {
  fault_lines.clear();
  try {
    work();
  } catch (const simt::Violation& violation) {
    return violation.what();
  }
  return "no violation";
}

/// "" where `message` holds every one of `parts` and, if any line said HERE, one of those; else what it lacks.
inline std::string lacks(const std::string& message, const std::vector<std::string>& parts) {
  std::string lacking;
  for (const std::string& part : parts)
    if (message.find(part) == std::string::npos) lacking += "\"" + part + "\" ";
  const bool placed = std::any_of(fault_lines.begin(), fault_lines.end(), [&](unsigned line) {
    return message.find(".cpp:" + std::to_string(line) + ": ") != std::string::npos;
  });
  if (!placed && !fault_lines.empty()) lacking += "the line ";
  return lacking.empty() ? "" : lacking + "in \"" + message + "\"";
}

}  // namespace outeffhop::test

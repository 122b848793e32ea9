// The op tests' devices, here: the CUDA backend on the executor, whose kernels must give the same bits in whatever order
// warps and lanes have their turns.
#include "tests/ops/op_harness.h"
#include "tests/simt/executor.h"

namespace outeffhop::test {

std::vector<DeviceUnderTest>& devices_under_test() {
  static std::vector<DeviceUnderTest> devices = [] {
    std::vector<DeviceUnderTest> made;
    const auto add = [&](const char* name, simt::Schedule schedule) {
      made.push_back({name, make_device({"cuda", 0}), [schedule] { simt::set_schedule(schedule); }, true});
    };
    add("cuda, lanes forward", {simt::Order::forward});
#if !defined(__SANITIZE_ADDRESS__)  // what sanitizers find does not depend on the order, and they are slow
    add("cuda, lanes in reverse", {simt::Order::reverse});
    add("cuda, lanes in random order", {simt::Order::random, 20260101});
#endif
    return made;
  }();
  return devices;
}

}  // namespace outeffhop::test

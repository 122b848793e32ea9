#include <sched.h>

#include <algorithm>
#include <cstdlib>

#include "kernels/reference/reference.h"
#include "tests/ops/op_harness.h"

namespace outeffhop::test {

// OUTEFFHOP_TEST_DEVICE=reference in the environment puts the fp32 reference in the CPU's place, so that the harness and the
// cases can be tried without a backend.
std::vector<DeviceUnderTest>& devices_under_test() {
  static std::vector<DeviceUnderTest> devices = [] {
    std::vector<DeviceUnderTest> made;
    const char* chosen = std::getenv("OUTEFFHOP_TEST_DEVICE");
    if (chosen && std::string(chosen) == "reference") {
      made.push_back({"fp32 reference", make_reference_device(DType::f32)});
      return made;
    }
    require(!chosen || std::string(chosen) == "cpu", "OUTEFFHOP_TEST_DEVICE is \"{}\"; it may be \"cpu\" or \"reference\"",
            chosen);
    cpu_set_t cores;
    CPU_ZERO(&cores);
    sched_getaffinity(0, sizeof cores, &cores);
    for (int threads = 1; threads <= std::min(2, CPU_COUNT(&cores)); ++threads)
      made.push_back({fmt::format("cpu, threads {}", threads), make_device({"cpu", threads})});
    return made;
  }();
  return devices;
}

}  // namespace outeffhop::test

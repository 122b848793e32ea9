// The op tests' devices, here: a GPU. Its kernels run twice in every case, as those of any device under test.
#include "tests/ops/op_harness.h"

namespace outeffhop::test {

std::vector<DeviceUnderTest>& devices_under_test() {
  static std::vector<DeviceUnderTest> devices = [] {
    std::vector<DeviceUnderTest> made;
    made.push_back({"cuda", make_device({"cuda", 0})});
    return made;
  }();
  return devices;
}

}  // namespace outeffhop::test

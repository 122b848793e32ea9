// The one file that knows which backends this binary has.
#include "kernels/cpu/cpu_device.h"
#include "kernels/device.h"

namespace outeffhop {

std::unique_ptr<Device> make_device(const DeviceOptions& options) {
  if (options.kind == "auto" || options.kind == "cpu") return cpu::make_cpu_device(options.threads);
  if (options.kind == "cuda") {
    fail(ErrorKind::unsupported, "device \"{}\" is not in this build; it has \"cpu\"", options.kind);
  }
  fail(ErrorKind::usage, "device \"{}\" does not exist; expected \"auto\", \"cpu\" or \"cuda\"", options.kind);
}

}  // namespace outeffhop

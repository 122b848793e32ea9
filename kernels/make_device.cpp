// The one file that knows which backends this binary has.
#include "kernels/cpu/cpu_device.h"
#include "kernels/device.h"

#if OUTEFFHOP_HAS_CUDA
#include "kernels/cuda/make_cuda_device.h"
#endif

namespace outeffhop {

DeviceChoice choose_device(const std::string& kind) {
  if (kind != "auto") return {kind, ""};
#if OUTEFFHOP_HAS_CUDA
  const std::string obstacle = cuda::obstacle();
  return obstacle.empty() ? DeviceChoice{"cuda", "the first GPU"} : DeviceChoice{"cpu", obstacle};
#else
  return {"cpu", "this build has no other device"};
#endif
}

std::unique_ptr<Device> make_device(const DeviceOptions& asked) {
  DeviceOptions options = asked;
  options.kind = choose_device(asked.kind).kind;
  if (options.kind == "cpu") return cpu::make_cpu_device(options.threads);
  if (options.kind == "cuda") {
#if OUTEFFHOP_HAS_CUDA
    return cuda::make_cuda_device(options.eager);
#else
    fail(ErrorKind::unsupported, "device \"{}\" is not in this build; it has \"cpu\"", options.kind);
#endif
  }
  fail(ErrorKind::usage, "device \"{}\" does not exist; expected \"auto\", \"cpu\" or \"cuda\"", options.kind);
}

std::size_t logit_bytes(const DeviceOptions& options) {
  return choose_device(options.kind).kind == "cuda" ? kGpuLogitBytes : kHostLogitBytes;
}

std::string built_backends() {
#if OUTEFFHOP_HAS_CUDA
  return "CPU, CUDA (" OUTEFFHOP_CUDA_BUILD ")";
#else
  return "CPU";
#endif
}

}  // namespace outeffhop

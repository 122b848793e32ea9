// The backend tests' device, here: a GPU.
#include "tests/cuda/kernel_order.h"
#include "tests/model/model_support.h"

namespace outeffhop::test {

std::unique_ptr<Device> backend_under_test() { return make_device({"cuda", 0}); }

void set_kernel_order(unsigned) {}

}  // namespace outeffhop::test

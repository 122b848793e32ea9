#include "tests/cuda/kernel_order.h"
#include "tests/model/model_support.h"
#include "tests/simt/executor.h"

namespace outeffhop::test {

std::unique_ptr<Device> backend_under_test() { return make_device({"cuda", 0}); }

void set_kernel_order(unsigned number) {
  simt::set_schedule(number == 0 ? simt::Schedule{simt::Order::forward} : simt::Schedule{simt::Order::random, number});
}

}  // namespace outeffhop::test

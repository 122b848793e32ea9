#include "tests/model/model_support.h"

namespace outeffhop::test {

std::unique_ptr<Device> backend_under_test() { return make_device({"cpu", 2}); }

}  // namespace outeffhop::test

// What the CUDA backend says of a GPU's peak, against what NVIDIA's data sheets say.
#include "kernels/cuda/peak_flops.h"

#include "kernels/device.h"
#include "tests/catch.h"
#include "tests/simt/machine.h"

namespace outeffhop {
namespace {

double bf16(const char* name, int major, int minor, int multiprocessors, double gigahertz) {
  return 1e-12 * cuda::peak_flops({name, major, minor, multiprocessors, gigahertz * 1e9}, DType::bf16);
}

TEST_CASE("The peak of a GPU at the clock of its data sheet is the data sheet's") {
  CHECK(bf16("NVIDIA A100-SXM4-80GB", 8, 0, 108, 1.41) == Approx(312).epsilon(0.005));
  CHECK(bf16("NVIDIA GeForce RTX 3090", 8, 6, 82, 1.695) == Approx(71).epsilon(0.005));
  CHECK(bf16("NVIDIA A10", 8, 6, 72, 1.695) == Approx(125).epsilon(0.005));
  CHECK(bf16("NVIDIA GeForce RTX 4090", 8, 9, 128, 2.52) == Approx(165.2).epsilon(0.005));
  CHECK(bf16("NVIDIA L40", 8, 9, 142, 2.49) == Approx(181.05).epsilon(0.005));
  CHECK(bf16("NVIDIA L40S", 8, 9, 142, 2.49) == Approx(362.05).epsilon(0.005));
  CHECK(bf16("NVIDIA H100 80GB HBM3", 9, 0, 132, 1.83) == Approx(989.4).epsilon(0.005));
  CHECK(bf16("NVIDIA H200", 9, 0, 132, 1.83) == Approx(989.4).epsilon(0.005));
  CHECK(bf16("NVIDIA B200", 10, 0, 148, 1.86) == Approx(2250).epsilon(0.005));
  CHECK(bf16("NVIDIA GeForce RTX 5090", 12, 0, 170, 2.407) == Approx(209.5).epsilon(0.005));
  CHECK(1e-12 * cuda::peak_flops({"NVIDIA H100 80GB HBM3", 9, 0, 132, 1.98e9}, DType::f32) == Approx(66.9).epsilon(0.005));
}

TEST_CASE("A GPU that the table does not have has no known peak") {
  CHECK(bf16("NVIDIA RTX PRO 5000 Blackwell", 12, 0, 110, 2.6) == 0);
  for (const char* slower : {"NVIDIA H20", "NVIDIA L20", "NVIDIA A10G"})
    CHECK(bf16(slower, slower[7] == 'H' ? 9 : 8, slower[7] == 'H' ? 0 : slower[7] == 'L' ? 9 : 6, 80, 1.7) == 0);
  CHECK(bf16("Orin", 8, 7, 16, 1.3) == 0);
  CHECK(bf16("of another day", 20, 0, 200, 2) == 0);
}

TEST_CASE("The device's peak follows from its own clock and multiprocessors") {
  const test::Machine machine;  // of compute capability 9.0, 4 multiprocessors at 1 GHz
  simt::set_devices(1, std::size_t{64} << 20);
  const auto device = make_device({"cuda"});
  CHECK(device->peak_flops(DType::bf16) == 4096 * 4 * 1e9);
  CHECK(device->peak_flops(DType::f32) == 256 * 4 * 1e9);
  CHECK_THAT(device->description(), Catch::Matchers::Contains("4 multiprocessors at up to 1.00 GHz"));
}

}  // namespace
}  // namespace outeffhop

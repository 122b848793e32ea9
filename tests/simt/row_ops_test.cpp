// Layer norm, gathering, scattering and casts on CUDA beyond what tests/ops asks of every device: what they refuse, in which
// words, and that empty shapes write nothing.
#include <memory>
#include <vector>

#include "kernels/device.h"
#include "tests/simt/machine.h"

namespace outeffhop::test {
namespace {

constexpr std::size_t kMemory = std::size_t{64} << 20;
constexpr std::int64_t kChannels = 8;

/// A device with one tensor of a single row, 1 throughout, for every operand of an op.
struct OneRow {
  Machine machine{1, kMemory};
  std::unique_ptr<Device> device = make_device({"cuda"});
  Buffer data{*device, kChannels * sizeof(float)};
  Tensor tensor{data.data(), DType::f32};

  OneRow() {
    const std::vector<float> ones(kChannels, 1.0f);
    device->copy_in(data.data(), ones.data(), data.bytes());
  }
  bool untouched() {
    std::vector<float> now(kChannels);
    device->copy_out(now.data(), data.data(), data.bytes());
    return now == std::vector<float>(kChannels, 1.0f);
  }
  LayerNormForward forward() const {
    LayerNormForward op;
    op.B = op.T = 1;
    op.C = kChannels;
    op.x = op.weight = op.bias = tensor;
    op.out = op.mean = op.rstd = tensor;
    return op;
  }
  LayerNormBackward backward() const {
    LayerNormBackward op;
    op.B = op.T = 1;
    op.C = kChannels;
    op.d_out = op.sum = op.mean = op.rstd = op.weight = tensor;
    op.d_sum = op.d_weight = op.d_bias = tensor;
    return op;
  }
};

TEST_CASE("layer norm on CUDA refuses dtypes and row counts that it does not take, in a sentence") {
  OneRow row;
  LayerNormForward forward = row.forward();
  forward.weight.dtype = DType::bf16;
  CHECK_THROWS_WITH(row.device->run(forward), "layer norm on CUDA needs the weight in fp32, but it is bf16");
  forward = row.forward();
  forward.x.dtype = forward.weight.dtype = forward.bias.dtype = forward.out.dtype = DType::f64;
  CHECK_THROWS_WITH(row.device->run(forward), "layer norm on CUDA takes fp32 or bf16 elements, not fp64");
  forward = row.forward();
  forward.B = std::int64_t{1} << 31;
  CHECK_THROWS_WITH(row.device->run(forward), "layer norm on CUDA takes up to 2147483647 rows, not 2147483648");

  LayerNormBackward backward = row.backward();
  backward.d_bias.dtype = DType::bf16;
  CHECK_THROWS_WITH(row.device->run(backward), "layer norm backward on CUDA needs d_bias in fp32, but it is bf16");
  backward = row.backward();
  backward.T = std::int64_t{1} << 31;
  CHECK_THROWS_WITH(row.device->run(backward), "layer norm backward on CUDA takes up to 2147483647 rows, not 2147483648");
  CHECK(row.untouched());
}

TEST_CASE("copies of rows and casts on CUDA refuse what they do not take, in a sentence") {
  OneRow row;
  const std::int32_t* index = nullptr;
  const ConstTensor rounded{row.data.data(), DType::bf16}, exact{row.data.data(), DType::f64};
  CHECK_THROWS_WITH(row.device->run(GatherRows{1, 4, index, rounded, row.tensor}),
                    "gathering rows on CUDA needs x in fp32, but it is bf16");
  CHECK_THROWS_WITH(row.device->run(ScatterRows{1, 1, 4, index, rounded, row.tensor}),
                    "scattering rows on CUDA needs d_out in fp32, but it is bf16");
  CHECK_THROWS_WITH(row.device->run(Cast{1, exact, row.tensor}), "cast on CUDA takes fp32 or bf16 elements, not fp64");
  CHECK(row.untouched());
}

TEST_CASE("layer norm, gathering, scattering and casts of nothing write nothing") {
  OneRow row;
  LayerNormForward forward = row.forward();
  forward.B = 0;
  CHECK_NOTHROW(row.device->run(forward));
  LayerNormBackward backward = row.backward();
  backward.T = 0;
  CHECK_NOTHROW(row.device->run(backward));
  CHECK_NOTHROW(row.device->run(GatherRows{0, kChannels, nullptr, row.tensor, row.tensor}));
  CHECK_NOTHROW(row.device->run(ScatterRows{0, 0, kChannels, nullptr, row.tensor, row.tensor}));
  CHECK_NOTHROW(row.device->run(Cast{0, row.tensor, {row.data.data(), DType::bf16}}));
  CHECK_NOTHROW(row.device->run(Cast{0, row.tensor, row.tensor}));
  CHECK(row.untouched());
}

TEST_CASE("layer norm backward without gradients of its parameters leaves them out") {
  OneRow row;
  const Buffer result(*row.device, kChannels * sizeof(float));
  LayerNormBackward op = row.backward();
  op.d_sum = {result.data(), DType::f32};
  op.d_weight = op.d_bias = {};
  CHECK_NOTHROW(row.device->run(op));
  CHECK(row.untouched());
}

}  // namespace
}  // namespace outeffhop::test

// Which kernels serve attention on CUDA: those on tensor cores wherever they can.
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/device.h"
#include "tests/simt/machine.h"

namespace outeffhop::test {
namespace {

using Names = std::vector<std::string>;

const Names kForwardOnTensorCores = {"attention_forward_tensor"}, kForward = {"attention_forward"};
const Names kBackwardOnTensorCores = {"attention_output_dot", "attention_backward_queries_tensor",
                                      "attention_backward_keys_tensor"};
const Names kBackward = {"attention_output_dot", "attention_backward_queries", "attention_backward_keys"};

struct Launched {
  Names forward, backward;
};

/// Runs attention of two queries and two keys with heads of `D` channels that begin `offset` elements into their memory.
Launched run(DType dtype, std::int64_t D, std::int64_t offset = 0,
             const std::function<void(AttentionBackward&)>& change = {}) {
  Machine machine{1, std::size_t{64} << 20};
  const auto device = make_device({"cuda"});
  constexpr std::int64_t kTokens = 2;
  std::vector<Buffer> memory;
  const auto view = [&] {
    memory.emplace_back(*device, static_cast<std::size_t>(kTokens * D + offset) * size_of(dtype));
    const Tensor tensor = Tensor{memory.back().data(), dtype}.at(offset);
    return HeadView{tensor.data, dtype, kTokens * D, D, D};
  };
  Buffer lse(*device, kTokens * sizeof(float));
  AttentionForward forward;
  forward.problem.B = forward.problem.H = 1;
  forward.problem.Tq = forward.problem.Tk = kTokens;
  forward.problem.D = D;
  forward.q = view(), forward.k = view(), forward.v = view(), forward.o = view();
  forward.lse = {lse.data(), DType::f32};
  AttentionBackward backward;
  backward.problem = forward.problem;
  backward.q = forward.q, backward.k = forward.k, backward.v = forward.v, backward.o = forward.o, backward.d_o = view();
  backward.lse = forward.lse;
  backward.d_q = view(), backward.d_k = view(), backward.d_v = view();
  if (change) change(backward);
  Launched launched;
  simt::take_launched();
  device->run(forward);
  launched.forward = simt::take_launched();
  device->run(backward);
  launched.backward = simt::take_launched();
  device->synchronize();
  return launched;
}

}  // namespace

TEST_CASE("bf16 attention of the usual head sizes runs on tensor cores") {
  for (const std::int64_t D : {32, 64, 80, 96}) {
    INFO("D " << D);
    const Launched launched = run(DType::bf16, D);
    CHECK(launched.forward == kForwardOnTensorCores);
    CHECK(launched.backward == kBackwardOnTensorCores);
  }
  const Launched wide = run(DType::bf16, 128);
  CHECK(wide.forward == kForwardOnTensorCores);
  CHECK(wide.backward == kBackward);
}

TEST_CASE("attention that tensor cores cannot serve runs on the general kernels") {
  for (const Launched& launched : {run(DType::f32, 64), run(DType::bf16, 24), run(DType::bf16, 64, 1)}) {
    CHECK(launched.forward == kForward);
    CHECK(launched.backward == kBackward);
  }
  const auto backward = [](const std::function<void(AttentionBackward&)>& change) {
    return run(DType::bf16, 64, 0, change).backward;
  };
  CHECK(backward([](AttentionBackward& op) { op.accumulate_d_k = true; }) == kBackward);
  CHECK(backward([](AttentionBackward& op) { op.d_q.batch_stride = 0; }) == kBackward);
  CHECK(backward([](AttentionBackward& op) { op.d_k = op.d_v = {}; }) ==
        Names{"attention_output_dot", "attention_backward_queries_tensor"});
}

}  // namespace outeffhop::test

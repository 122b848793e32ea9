// Which kernels serve attention on CUDA: those on tensor cores wherever they can.
#include <algorithm>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/cuda/attention_resident.h"
#include "kernels/cuda/attention_tile_table.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/device.h"
#include "tests/simt/machine.h"

namespace outeffhop::test {
namespace {

using Names = std::vector<std::string>;

const Names kForwardOnTensorCores = {"attention_forward_tensor"}, kForward = {"attention_forward"};
const Names kBackwardOnTensorCores = {"attention_backward_queries_tensor", "attention_backward_keys_tensor"};
const Names kBackwardResident = {"attention_backward_resident"};
const Names kBackward = {"attention_output_dot", "attention_backward_queries", "attention_backward_keys"};

struct Launched {
  Names forward, backward;
};

/// Runs attention of two queries and `keys` keys with H heads of `D` channels that begin `offset` elements into their
/// memory, which has room for `tokens` of each.
Launched run(DType dtype, std::int64_t D, std::int64_t offset = 0,
             const std::function<void(AttentionBackward&)>& change = {}, std::int64_t tokens = 2, std::int64_t H = 1,
             std::int64_t keys = 2) {
  Machine machine{1, std::size_t{64} << 20};
  const auto device = make_device({"cuda"});
  std::vector<Buffer> memory;
  const auto view = [&] {
    memory.emplace_back(*device, static_cast<std::size_t>(tokens * H * D + offset) * size_of(dtype));
    const Tensor tensor = Tensor{memory.back().data(), dtype}.at(offset);
    return HeadView{tensor.data, dtype, tokens * H * D, H * D, D};
  };
  Buffer lse(*device, static_cast<std::size_t>(tokens * H) * sizeof(float));
  AttentionForward forward;
  forward.problem.B = 1, forward.problem.H = H;
  forward.problem.Tq = 2, forward.problem.Tk = keys;
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
    CHECK(launched.backward == (D == 64 ? kBackwardResident : kBackwardOnTensorCores));
  }
  const Launched wide = run(DType::bf16, 128);
  CHECK(wide.forward == kForwardOnTensorCores);
  CHECK(wide.backward == kBackwardOnTensorCores);
}

TEST_CASE("attention keeps keys and values resident where they and enough heads are there to fill the device") {
  // The executor's device has 227 KiB of shared memory a block, and four multiprocessors.
  struct Case {
    std::int64_t D, H, keys;
    const char* kernel;
  };
  for (const Case& c : {Case{64, 4, 128, "attention_forward_tensor"}, Case{64, 4, 129, "attention_forward_resident"},
                        Case{64, 3, 129, "attention_forward_tensor"}, Case{64, 4, 512, "attention_forward_resident"},
                        Case{64, 4, 513, "attention_forward_tensor"}, Case{32, 4, 512, "attention_forward_resident"},
                        Case{128, 4, 129, "attention_forward_tensor"}}) {
    INFO("D " << c.D << ", " << c.H << " heads, " << c.keys << " keys");
    CHECK(run(DType::bf16, c.D, 0, {}, c.keys, c.H, c.keys).forward == Names{c.kernel});
  }
}

TEST_CASE("attention has the same bits whether keys and values are resident or not") {
  Machine machine{1, std::size_t{64} << 20};
  constexpr std::int64_t H = 2, T = 200, D = 64, kRow = 3 * H * D;
  bf16* qkv = nullptr;
  REQUIRE(cudaMalloc(reinterpret_cast<void**>(&qkv), T * kRow * sizeof(bf16)) == cudaSuccess);
  std::mt19937 rng(7);
  std::normal_distribution<float> normal;
  for (std::int64_t i = 0; i < T * kRow; ++i) qkv[i] = bf16(normal(rng) * (i % kRow < H * D ? 4.0f : 1.0f));
  for (const bool causal : {false, true}) {
    std::vector<std::vector<float>> results;
    for (const int multiprocessors : {1, 1000}) {
      Floats o(T * H * D / 2), lse(T * H);
      AttentionForward op;
      op.problem.B = 1, op.problem.H = H, op.problem.Tq = op.problem.Tk = T, op.problem.D = D;
      op.problem.scale = 0.125f;
      op.problem.causal = causal;
      const auto view = [&](int which) { return ConstHeadView(qkv + which * H * D, DType::bf16, T * kRow, kRow, D); };
      op.q = view(0), op.k = view(1), op.v = view(2);
      op.o = {o.data(), DType::bf16, T * H * D, H * D, D};
      op.lse = {lse.data(), DType::f32};
      cuda::Workspace workspace;
      simt::take_launched();
      cuda::attention_forward({nullptr, workspace, 227 * 1024, multiprocessors}, op);
      CHECK(simt::take_launched() ==
            Names{multiprocessors == 1 ? "attention_forward_resident" : "attention_forward_tensor"});
      REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
      results.push_back(o.now());
      results.push_back(lse.now());
    }
    CHECK(std::memcmp(results[0].data(), results[2].data(), results[0].size() * sizeof(float)) == 0);
    CHECK(results[1] == results[3]);
  }
  cudaFree(qkv);
}

TEST_CASE("an entry of resident tiles serves where a multiprocessor holds as many blocks as it says") {
  const auto entry = [](int tiles, std::size_t most) {
    for (const cuda::ForwardTile& shape : cuda::kResidentTiles)
      if (shape.head_size == 64 && shape.fits(tiles, most)) return shape.warps;
    return 0;
  };
  constexpr std::size_t kH100 = 227 * 1024, kA100 = 163 * 1024, kConsumer = 99 * 1024;
  CHECK(entry(6, kH100) == 4);  // two blocks of 384 keys
  CHECK(entry(7, kH100) == 8);
  CHECK(entry(8, kH100) == 8);
  CHECK(entry(4, kA100) == 4);  // two blocks of 256 keys
  CHECK(entry(5, kA100) == 8);
  CHECK(entry(8, kA100) == 8);
  CHECK(entry(3, kConsumer) == 8);
  CHECK(entry(4, kConsumer) == 8);
  CHECK(entry(5, kConsumer) == 0);
  for (const cuda::ForwardTile& shape : cuda::kForwardTiles) {
    INFO("head size " << shape.head_size);
    CHECK(static_cast<std::size_t>(shape.shared_bytes(2)) <= kConsumer);  // every device that the program takes has a walk
  }
}

TEST_CASE("attention that tensor cores cannot serve runs on the general kernels") {
  for (const Launched& launched : {run(DType::f32, 64), run(DType::bf16, 24), run(DType::bf16, 64, 1)}) {
    CHECK(launched.forward == kForward);
    CHECK(launched.backward == kBackward);
  }
  const auto backward = [](const std::function<void(AttentionBackward&)>& change) {
    return run(DType::bf16, 64, 0, change, 3).backward;
  };
  CHECK(backward([](AttentionBackward& op) { op.d_k.data = static_cast<bf16*>(op.d_k.data) + 1; }) == kBackward);
}

TEST_CASE("gradients that are accumulated, shared by the batch or absent are summed on tensor cores") {
  const auto backward = [](const std::function<void(AttentionBackward&)>& change) {
    return run(DType::bf16, 64, 0, change, 513).backward;
  };
  CHECK(backward([](AttentionBackward& op) { op.accumulate_d_k = true; }) == kBackwardOnTensorCores);
  CHECK(backward([](AttentionBackward& op) { op.d_q.batch_stride = 0; }) == kBackwardOnTensorCores);
}

TEST_CASE("the backward of short sequences with heads of 64 channels is one kernel") {
  const auto backward = [](std::int64_t queries, std::int64_t keys, const std::function<void(AttentionBackward&)>& change) {
    const auto set = [&](AttentionBackward& op) {
      op.problem.Tq = queries, op.problem.Tk = keys;
      change(op);
    };
    return run(DType::bf16, 64, 0, set, std::max(queries, keys)).backward;
  };
  const auto as_it_is = [](AttentionBackward&) {};
  CHECK(backward(512, 512, as_it_is) == kBackwardResident);
  CHECK(backward(1, 300, as_it_is) == kBackwardResident);
  CHECK(backward(513, 2, as_it_is) == kBackwardOnTensorCores);
  CHECK(backward(2, 513, as_it_is) == kBackwardOnTensorCores);
  CHECK(backward(2, 2, [](AttentionBackward& op) { op.d_k = op.d_v = {}; }) == kBackwardResident);
  CHECK(backward(2, 2, [](AttentionBackward& op) { op.d_q = {}; }) == kBackwardResident);
  CHECK(backward(513, 2, [](AttentionBackward& op) { op.d_k = op.d_v = {}; }) == Names{"attention_backward_queries_tensor"});
  // It is the queries' kernel that leaves what the keys' needs of each query.
  CHECK(backward(513, 2, [](AttentionBackward& op) { op.d_q = {}; }) == kBackwardOnTensorCores);
}

TEST_CASE("the backward of short sequences is one kernel where the device has the shared memory") {
  Machine machine{1, std::size_t{64} << 20};
  const auto device = make_device({"cuda"});
  const auto served = [&](std::int64_t tokens, std::size_t shared_bytes) {
    Buffer memory(*device, static_cast<std::size_t>(tokens) * 64 * size_of(DType::bf16));
    Buffer lse(*device, static_cast<std::size_t>(tokens) * sizeof(float));
    const HeadView view{memory.data(), DType::bf16, tokens * 64, 64, 64};
    AttentionBackward op;
    op.problem.B = op.problem.H = 1;
    op.problem.Tq = op.problem.Tk = tokens;
    op.problem.D = 64;
    op.q = op.k = op.v = op.o = op.d_o = op.d_q = op.d_k = op.d_v = view;
    op.lse = {lse.data(), DType::f32};
    cuda::Workspace workspace;
    const bool done = cuda::attention_backward_resident({nullptr, workspace, shared_bytes}, op);
    REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
    return done;
  };
  const std::size_t of_sm_80 = 163 * 1024, of_sm_86 = 99 * 1024, without_asking = 48 * 1024;
  CHECK(served(512, of_sm_80));
  CHECK(served(128, of_sm_86));
  CHECK(!served(129, of_sm_86));
  CHECK(!served(1, without_asking));
}

TEST_CASE("the backward of no samples does nothing, shared gradients or not") {
  for (const std::int64_t D : {std::int64_t{48}, std::int64_t{64}, std::int64_t{128}}) {
    INFO(D);
    CHECK(run(DType::bf16, D, 0, [](AttentionBackward& op) { op.problem.B = 0; }).backward.empty());
    CHECK(run(DType::bf16, D, 0, [](AttentionBackward& op) { op.problem.B = 0, op.d_q.batch_stride = 0; }).backward.empty());
  }
}

}  // namespace outeffhop::test

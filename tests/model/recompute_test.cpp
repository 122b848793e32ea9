// Recompute policies: gradients to the bit those of a model that keeps everything, whatever the batch; memory as planned.
#include "kernels/reference/reference.h"
#include "tests/catch.h"
#include "tests/model/model_support.h"
#include "tests/test_support.h"

using namespace outeffhop;
using namespace outeffhop::test;

namespace {

constexpr Recompute kPolicies[] = {Recompute::cheap, Recompute::block};

std::vector<ModelConfig> configs() {
  std::vector<ModelConfig> configs = {tiny_bert(), tiny_bert("vanilla"), tiny_opt(), tiny_opt("vanilla", 7)};
  configs[0].num_hidden_layers = 4;
  configs[1].num_hidden_layers = 1;
  configs[1].hidden_act = "gelu_new";
  configs[2].num_hidden_layers = 4;
  configs[2].hidden_act = "relu";
  return configs;
}

/// Rows of T tokens that hold documents of 2, 3 and T - 5 tokens.
struct PackedBatch {
  HostBatch batch;
  std::vector<std::int32_t> ranges;

  PackedBatch(const ModelConfig& config, std::mt19937_64& rng, std::int64_t B, std::int64_t T)
      : batch(random_batch(config, rng, B, T)) {
    for (std::int64_t row = 0; row < B * T; ++row) {
      const auto t = static_cast<std::int32_t>(row % T);
      ranges.push_back(t < 2 ? 0 : t < 5 ? 2 : 5);
      ranges.push_back(t < 2 ? 2 : t < 5 ? 5 : static_cast<std::int32_t>(T));
    }
  }
};

/// Loss and gradients of three micro-batches, one of them packed and one padded, and of dropout in all.
LossAndGradient train(const ModelConfig& config, DType dtype, Device& device, Recompute recompute) {
  std::mt19937_64 rng = generator(40);
  ModelUnderTest model(config, {dtype, 3, 9, true, 5, recompute}, device);
  model.set_parameters(random_parameters(model->parameters(), rng));
  const LossAndGradient plain =
      model.forward_backward({random_batch(config, rng, 3, 9), random_batch(config, rng, 2, 7, {7, 2})}, true);

  const PackedBatch packed(config, rng, 2, 9);
  const DeviceBatch uploaded(device, packed.batch);
  Buffer ranges(device, packed.ranges.size() * sizeof(std::int32_t)), loss(device, sizeof(double));
  device.copy_in(ranges.data(), packed.ranges.data(), ranges.bytes());
  ModelBatch view = uploaded.view();
  view.key_ranges = ranges.as<std::int32_t>();
  model->forward_backward(view, loss.as<double>(), true);
  const double packed_loss = read_tensor(device, {loss.data(), DType::f64}, 1)[0];
  return {plain.loss + packed_loss, read_tensor(device, model->gradients(), model->parameters().flat_size())};
}

/// As documented in model/layer.h: activations of `rows` tokens in `layers` layers, of C channels and F of the MLP, in H
/// heads.
std::size_t expected_bytes(Recompute recompute, std::size_t element, std::size_t rows, std::size_t layers, std::size_t C,
                           std::size_t F, std::size_t H) {
  const std::size_t statistics = 2 * sizeof(float), lse = H * sizeof(float);
  const std::size_t outer_sum = C * element + statistics, norm_outs = 2 * C * element, post = F * element;
  const std::size_t by_products = (3 * C + C + C + F) * element + lse + statistics;  // qkv, o, middle sum, pre
  const std::size_t outside = 2 * C * element + statistics;                          // embedding or final norm
  switch (recompute) {
    case Recompute::none:
      return rows * (outside + layers * (outer_sum + norm_outs + post + by_products));
    case Recompute::cheap:
      return rows * (outside + layers * (outer_sum + by_products) + norm_outs + post);
    case Recompute::block:
      return rows * (outside + layers * outer_sum + norm_outs + post + by_products);
  }
  return 0;
}

}  // namespace

TEST_CASE("gradients are the same to the bit whatever is recomputed") {
  for (const ModelConfig& config : configs())
    for (const DType dtype : {DType::f32, DType::bf16})
      for (const int threads : {1, 2}) {
        const std::unique_ptr<Device> device = make_device({"cpu", threads});
        const LossAndGradient kept = train(config, dtype, *device, Recompute::none);
        for (const Recompute recompute : kPolicies) {
          INFO(config.model_type << ", " << config.num_hidden_layers << " layers, " << config.hidden_act << ", "
                                 << name_of(dtype) << ", policy " << static_cast<int>(recompute));
          const LossAndGradient remade = train(config, dtype, *device, recompute);
          CHECK(remade.loss == kept.loss);
          CHECK(remade.gradient == kept.gradient);
        }
      }
}

TEST_CASE("on the fp64 reference, too, nothing depends on what is recomputed") {
  const std::unique_ptr<Device> device = make_reference_device();
  for (const ModelConfig& config : {configs()[0], configs()[3]}) {
    const LossAndGradient kept = train(config, DType::f64, *device, Recompute::none);
    for (const Recompute recompute : kPolicies) {
      CHECK(train(config, DType::f64, *device, recompute).gradient == kept.gradient);
    }
  }
}

TEST_CASE("activations take what their policy keeps, and one layer's of the rest") {
  const std::unique_ptr<Device> device = make_device({"cpu", 1});
  for (ModelConfig config : {tiny_bert(), tiny_opt()}) {
    config.num_hidden_layers = 5;
    config.max_position_embeddings = 16;
    const auto C = static_cast<std::size_t>(config.hidden_size), F = static_cast<std::size_t>(config.intermediate_size),
               H = static_cast<std::size_t>(config.num_attention_heads);
    const auto memory = [&](DType dtype, bool training, Recompute recompute) {
      return make_model(config, {dtype, 4, 16, training, 1, recompute}, *device)->memory();
    };
    for (const DType dtype : {DType::f32, DType::bf16}) {  // 64 rows: every tensor fills whole lines of the arena
      const MemoryPlan kept = memory(dtype, true, Recompute::none);
      for (const Recompute recompute : {Recompute::none, Recompute::cheap, Recompute::block}) {
        INFO(config.model_type << ", " << name_of(dtype) << ", policy " << static_cast<int>(recompute));
        const MemoryPlan plan = memory(dtype, true, recompute);
        CHECK(plan.activations == expected_bytes(recompute, size_of(dtype), 64, 5, C, F, H));
        CHECK(plan.workspace == kept.workspace);
        CHECK(plan.gradients == kept.gradients);
        // Without a backward there is nothing to keep.
        CHECK(memory(dtype, false, recompute).activations == memory(dtype, false, Recompute::none).activations);
      }
    }
  }
}

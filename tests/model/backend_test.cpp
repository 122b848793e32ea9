// A backend's models (the CPU's; in tests/simt CUDA's) against the fp64 composition of the reference ops. Tolerances are not
// chosen: fp32 gradients agree to 1e-5 of each tensor's norm; for bf16 the rule of the op tests holds for the whole model:
// at most twice the error that the plain formulas make in the same storage dtype, plus the rounding of one stored value.
#include <cmath>

#include "kernels/reference/reference.h"
#include "tests/catch.h"
#include "tests/model/model_support.h"
#include "tests/test_support.h"

using namespace outeffhop;
using namespace outeffhop::test;

namespace {

/// Two layers of a size that fills vectors and leaves remainders.
ModelConfig small(ModelConfig config) {
  config.vocab_size = 211;
  config.hidden_size = 64;
  config.num_attention_heads = 2;
  config.intermediate_size = 144;
  config.max_position_embeddings = 40;
  return config;
}

std::vector<ModelConfig> configs() {
  ModelConfig projected = small(tiny_opt("vanilla", 48));
  projected.hidden_act = "gelu_new";
  return {small(tiny_bert()), small(tiny_bert("vanilla")), small(tiny_opt("softmax_n(4)")), projected};
}

struct Problem {
  HostBatch batch;
  std::vector<double> parameters;

  Problem(const ModelConfig& config, std::uint64_t seed) {
    std::mt19937_64 rng = generator(seed);
    batch = random_batch(config, rng, 3, 37, {37, 20, 3});
    parameters = random_parameters(make_parameter_table(config), rng);
  }
};

LossAndGradient run(const ModelConfig& config, Device& device, DType dtype, const Problem& problem, bool dropout) {
  ModelUnderTest model(config, {dtype, 3, 40, true, 9}, device);
  model.set_parameters(problem.parameters);
  return model.forward_backward(problem.batch, dropout);
}

std::string describe(const ModelConfig& config) {
  return config.model_type + " " + config.attn_softmax + " " + std::to_string(config.word_embed_proj_dim);
}

}  // namespace

TEST_CASE("fp32 gradients of the backend agree with fp64") {
  for (const ModelConfig& config : configs()) {
    Problem problem(config, 1000);
    for (double& value : problem.parameters) value = static_cast<float>(value);
    for (const bool dropout : {false, true}) {
      INFO(describe(config) << (dropout ? ", dropout" : ""));
      const LossAndGradient truth = run(config, *make_reference_device(), DType::f64, problem, dropout);
      const LossAndGradient result = run(config, *backend_under_test(), DType::f32, problem, dropout);
      CHECK(std::abs(result.loss - truth.loss) <= 1e-6 * truth.loss);
      const ParameterTable table = make_parameter_table(config);
      for (const Parameter& p : table.all()) {
        INFO(p.name);
        const double scale = error_scale(table, p, truth.gradient);
        CHECK(scale > 0.0);
        CHECK(distance(p, result.gradient, truth.gradient) <= 1e-5 * scale);
      }
    }
  }
}

// Root mean squares over several problems: the plain formulas' error in one tensor of one problem may be small by luck, that
// of a key's bias above all, whose true gradient is 0 with the ordinary softmax.
TEST_CASE("bf16 gradients of the backend err no more than twice as much as the plain formulas") {
  constexpr int kProblems = 4;
  for (const ModelConfig& config : configs()) {
    INFO(describe(config));
    const ParameterTable table = make_parameter_table(config);
    struct Squares {
      double error = 0, plain = 0, scale = 0;
    };
    std::vector<Squares> sums(table.all().size());
    const double rounding = std::ldexp(1.0, -8);
    for (std::uint64_t number = 0; number < kProblems; ++number) {
      Problem problem(config, 1100 + number);
      for (double& value : problem.parameters) value = static_cast<float>(bf16(static_cast<float>(value)));
      const LossAndGradient truth = run(config, *make_reference_device(), DType::f64, problem, true);
      const LossAndGradient plain = run(config, *make_reference_device(DType::f32), DType::bf16, problem, true);
      const LossAndGradient result = run(config, *backend_under_test(), DType::bf16, problem, true);
      CHECK(std::abs(result.loss - truth.loss) <= 2 * std::abs(plain.loss - truth.loss) + rounding * truth.loss);
      for (std::size_t k = 0; k < sums.size(); ++k) {
        const Parameter& p = table.all()[k];
        sums[k].error += std::pow(distance(p, result.gradient, truth.gradient), 2);
        sums[k].plain += std::pow(distance(p, plain.gradient, truth.gradient), 2);
        sums[k].scale += std::pow(error_scale(table, p, truth.gradient), 2);
      }
    }
    for (std::size_t k = 0; k < sums.size(); ++k) {
      INFO(table.all()[k].name);
      const auto root = [](double sum) { return std::sqrt(sum / kProblems); };
      CHECK(root(sums[k].error) <= 2 * root(sums[k].plain) + rounding * root(sums[k].scale));
    }
  }
}

TEST_CASE("the backend repeats itself bit for bit") {
  const ModelConfig config = small(tiny_bert());
  const Problem problem(config, 1200);
  for (const DType dtype : {DType::f32, DType::bf16}) {
    INFO(name_of(dtype));
    const std::unique_ptr<Device> first = backend_under_test(), second = backend_under_test();
    const LossAndGradient a = run(config, *first, dtype, problem, true);
    REQUIRE(second->use_plans(first->plans()));  // a GPU that measures anew may choose other products, of other bits
    const LossAndGradient b = run(config, *second, dtype, problem, true);
    CHECK(a.loss == b.loss);
    CHECK(a.gradient == b.gradient);
  }
}

TEST_CASE("what is made again for the backward has the bits that it had") {
  for (ModelConfig config : {small(tiny_bert()), small(tiny_opt())}) {
    config.num_hidden_layers = 3;  // the last one's activations are still there
    config.hidden_act = config.model_type == "bert" ? "gelu" : "gelu_new";
    std::mt19937_64 rng = generator(1250);
    const HostBatch batch = random_batch(config, rng, 2, 11, {11, 6});
    const std::vector<double> parameters = random_parameters(make_parameter_table(config), rng);
    for (const DType dtype : {DType::f32, DType::bf16}) {
      const std::unique_ptr<Device> device = backend_under_test();  // one, whose products are chosen once
      const auto result = [&](Recompute recompute) {
        ModelUnderTest model(config, {dtype, 2, 11, true, 9, recompute}, *device);
        model.set_parameters(parameters);
        return model.forward_backward(batch, true);
      };
      const LossAndGradient kept = result(Recompute::none);
      for (const Recompute recompute : {Recompute::cheap, Recompute::block}) {
        INFO(describe(config) << ", " << name_of(dtype) << ", policy " << static_cast<int>(recompute));
        const LossAndGradient remade = result(recompute);
        CHECK(remade.loss == kept.loss);
        CHECK(remade.gradient == kept.gradient);
      }
    }
  }
}

TEST_CASE("the backend's observed forward equals its fused one") {
  struct Everything : SiteVisitor {
    std::size_t visits = 0;
    bool wants(const Site&) const override { return true; }
    void visit(const Site&, const SiteValue&) override { ++visits; }
  };
  for (const ModelConfig& config : configs()) {
    INFO(describe(config));
    Problem problem(config, 1300);
    for (double& value : problem.parameters) value = static_cast<float>(bf16(static_cast<float>(value)));
    const std::unique_ptr<Device> device = backend_under_test(), reference = make_reference_device(DType::f32);
    const double truth = run(config, *make_reference_device(), DType::f64, problem, false).loss;
    const double plain = run(config, *reference, DType::bf16, problem, false).loss;
    for (const DType dtype : {DType::f32, DType::bf16}) {
      INFO(name_of(dtype));
      ModelUnderTest model(config, {dtype, 3, 40, false, 9}, *device);
      model.set_parameters(problem.parameters);
      Everything visitor;
      const double fused = model.forward(problem.batch);
      const double observed = model.forward(problem.batch, &visitor);
      CHECK(visitor.visits == model->sites().size());
      if (dtype == DType::f32) {
        CHECK(std::abs(observed - fused) <= 1e-6 * fused);
      } else {
        CHECK(std::abs(observed - truth) <= 2 * std::abs(plain - truth) + std::ldexp(truth, -8));
      }
    }
  }
}

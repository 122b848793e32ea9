// What a batch means to a model: padding, batch sizes, accumulation, labels in chunks, no labels; logits; memory.
#include <cmath>

#include "kernels/reference/reference.h"
#include "tests/catch.h"
#include "tests/model/model_support.h"
#include "tests/test_support.h"

using namespace outeffhop;
using namespace outeffhop::test;

namespace {

std::unique_ptr<Device> cpu() { return make_device({"cpu", 2}); }

std::vector<ModelConfig> configs() { return {tiny_bert(), tiny_opt(), tiny_opt("vanilla", 7)}; }

/// Sum over labelled rows of -log softmax(logits)[label], from the logits of every position.
double loss_of(const std::vector<double>& logits, const HostBatch& batch, std::int64_t V) {
  double sum = 0.0;
  for (std::size_t i = 0; i < batch.label_rows.size(); ++i) {
    const double* row = logits.data() + batch.label_rows[i] * V;
    double largest = row[0], exponentials = 0.0;
    for (std::int64_t v = 0; v < V; ++v) largest = std::max(largest, row[v]);
    for (std::int64_t v = 0; v < V; ++v) exponentials += std::exp(row[v] - largest);
    sum += largest + std::log(exponentials) - row[batch.label_ids[i]];
  }
  return sum;
}

double relative_distance(const std::vector<double>& a, const std::vector<double>& b) {
  std::vector<double> difference(a.size());
  for (std::size_t i = 0; i < a.size(); ++i) difference[i] = a[i] - b[i];
  return norm(difference) / norm(b);
}

}  // namespace

TEST_CASE("padding changes nothing") {
  for (const ModelConfig& config : configs()) {
    INFO(config.model_type << " " << config.word_embed_proj_dim);
    const std::unique_ptr<Device> device = make_reference_device();
    std::mt19937_64 rng = generator(10);
    const HostBatch batch = random_batch(config, rng, 3, 7, {7, 4, 2});
    ModelUnderTest model(config, {DType::f64, 3, 7, true, 1}, *device);
    model.set_parameters(random_parameters(model->parameters(), rng));
    const LossAndGradient padded = model.forward_backward(batch, false);

    std::vector<HostBatch> cut;
    for (std::int64_t b = 0; b < 3; ++b) {
      HostBatch one = one_sample(batch, b);
      one.T = one.key_lengths[0];
      one.key_lengths.clear();
      for (auto* ids : {&one.input_ids, &one.position_ids, &one.type_ids}) ids->resize(static_cast<std::size_t>(one.T));
      cut.push_back(one);
    }
    const LossAndGradient alone = model.forward_backward(cut, false);
    CHECK(std::abs(padded.loss - alone.loss) < 1e-11 * std::abs(alone.loss));
    CHECK(relative_distance(padded.gradient, alone.gradient) < 1e-12);
  }
}

TEST_CASE("a sample without a single visible token does no harm") {
  for (const ModelConfig& config : {tiny_bert("vanilla"), tiny_bert(), tiny_opt("vanilla")}) {
    const std::unique_ptr<Device> device = make_reference_device();
    std::mt19937_64 rng = generator(20);
    const HostBatch batch = random_batch(config, rng, 2, 6, {6, 0});
    ModelUnderTest model(config, {DType::f64, 2, 6, true, 1}, *device);
    model.set_parameters(random_parameters(model->parameters(), rng));
    const LossAndGradient both = model.forward_backward(batch, true);
    const LossAndGradient first = model.forward_backward(one_sample(batch, 0), true);
    CHECK(std::abs(both.loss - first.loss) < 1e-11 * first.loss);
    CHECK(relative_distance(both.gradient, first.gradient) < 1e-12);
  }
}

TEST_CASE("one batch or one sample at a time: the same loss and gradient, dropout included") {
  for (const ModelConfig& config : configs()) {
    INFO(config.model_type << " " << config.word_embed_proj_dim);
    const std::unique_ptr<Device> device = cpu();
    std::mt19937_64 rng = generator(30);
    const HostBatch batch = random_batch(config, rng, 5, 9, {9, 9, 3, 1, 7});
    ModelUnderTest model(config, {DType::f32, 5, 9, true, 123}, *device);
    model.set_parameters(random_parameters(model->parameters(), rng));
    const LossAndGradient together = model.forward_backward(batch, true);
    std::vector<HostBatch> samples;
    for (std::int64_t b = 0; b < 5; ++b) samples.push_back(one_sample(batch, b));
    const LossAndGradient apart = model.forward_backward(samples, true);
    CHECK(std::abs(together.loss - apart.loss) <= 1e-6 * apart.loss);
    CHECK(relative_distance(together.gradient, apart.gradient) <= 1e-6);

    // Dropout is a function of seed and sample index, and does something.
    CHECK(model.forward_backward(batch, true).gradient == together.gradient);
    HostBatch other_samples = batch;
    other_samples.sample_ids[0] += 1;
    CHECK(model.forward_backward(other_samples, true).loss != together.loss);
    CHECK(model.forward_backward(batch, false).loss != together.loss);
    ModelUnderTest other_seed(config, {DType::f32, 5, 9, true, 124}, *device);
    other_seed.set_parameters(model.stored_parameters());
    CHECK(other_seed.forward_backward(batch, true).loss != together.loss);
  }
}

TEST_CASE("without dropout forward, forward_backward and logits agree, whatever the memory was planned for") {
  for (const ModelConfig& config : configs()) {
    INFO(config.model_type << " " << config.word_embed_proj_dim);
    const std::unique_ptr<Device> device = make_reference_device();
    std::mt19937_64 rng = generator(40);
    const HostBatch batch = random_batch(config, rng, 3, 6, {6, 5, 2});
    ModelUnderTest training(config, {DType::f64, 4, 9, true, 1}, *device);
    ModelUnderTest evaluation(config, {DType::f64, 3, 6, false, 1}, *device);
    const std::vector<double> parameters = random_parameters(training->parameters(), rng);
    training.set_parameters(parameters);
    evaluation.set_parameters(parameters);
    const double loss = training.forward_backward(batch, false).loss;
    CHECK(training.forward(batch) == loss);
    CHECK(evaluation.forward(batch) == loss);
    const std::vector<double> logits = evaluation.logits(batch);
    CHECK(std::abs(loss_of(logits, batch, config.vocab_size) - loss) < 1e-11 * loss);
    CHECK(training.logits(batch) == logits);
  }
}

TEST_CASE("no labels: no loss, no gradient") {
  for (const ModelConfig& config : configs()) {
    const std::unique_ptr<Device> device = cpu();
    std::mt19937_64 rng = generator(50);
    HostBatch batch = random_batch(config, rng, 2, 5);
    batch.label_rows.clear();
    batch.label_ids.clear();
    ModelUnderTest model(config, {DType::f32, 2, 5, true, 1}, *device);
    model.set_parameters(random_parameters(model->parameters(), rng));
    const LossAndGradient result = model.forward_backward(batch, true);
    CHECK(result.loss == 0.0);
    CHECK(norm(result.gradient) == 0.0);
    CHECK(model.forward(batch) == 0.0);
  }
}

TEST_CASE("labels that do not fit one chunk of logits take the next") {
  ModelConfig config = tiny_bert();
  config.vocab_size = 140000;  // a row of logits is 560 kB: a chunk holds one bucket of 64 rows
  config.max_position_embeddings = 50;
  config.num_hidden_layers = 1;
  const std::unique_ptr<Device> device = cpu();
  std::mt19937_64 rng = generator(60);
  HostBatch batch = random_batch(config, rng, 3, 50);
  batch.label_rows.clear();
  batch.label_ids.clear();
  for (std::int32_t row = 0; row < 150; ++row) {  // 64 + 64 + 22
    batch.label_rows.push_back(row);
    batch.label_ids.push_back(row * 900);
  }
  ModelUnderTest model(config, {DType::f32, 3, 50, true, 1}, *device);
  model.set_parameters(random_parameters(model->parameters(), rng));
  const LossAndGradient together = model.forward_backward(batch, false);
  std::vector<HostBatch> samples;  // 50 labels each: one chunk
  for (std::int64_t b = 0; b < 3; ++b) samples.push_back(one_sample(batch, b));
  const LossAndGradient apart = model.forward_backward(samples, false);
  CHECK(std::abs(together.loss - apart.loss) <= 1e-6 * apart.loss);
  CHECK(relative_distance(together.gradient, apart.gradient) <= 1e-6);
  CHECK(std::abs(model.forward(batch) - together.loss) <= 1e-6 * together.loss);
  CHECK(std::abs(loss_of(model.logits(batch), batch, config.vocab_size) - together.loss) <= 1e-6 * together.loss);
}

TEST_CASE("the loss and the gradients add to what is there") {
  const ModelConfig config = tiny_bert();
  const std::unique_ptr<Device> device = make_reference_device();
  std::mt19937_64 rng = generator(70);
  const HostBatch batch = random_batch(config, rng, 2, 6);
  ModelUnderTest model(config, {DType::f64, 2, 6, true, 1}, *device);
  model.set_parameters(random_parameters(model->parameters(), rng));
  const LossAndGradient once = model.forward_backward(batch, false);
  const LossAndGradient twice = model.forward_backward({batch, batch}, false);
  CHECK(std::abs(twice.loss - 2 * once.loss) < 1e-12 * twice.loss);
  std::vector<double> doubled = once.gradient;
  for (double& g : doubled) g *= 2;
  CHECK(relative_distance(twice.gradient, doubled) < 1e-13);
}

TEST_CASE("memory is planned as it is used") {
  const ModelConfig config = tiny_opt();
  const std::unique_ptr<Device> device = make_reference_device();
  const auto flat = static_cast<std::size_t>(make_parameter_table(config).flat_size());
  ModelUnderTest half(config, {DType::bf16, 4, 8, true, 1}, *device);
  CHECK(half->memory().master_weights == 4 * flat);
  CHECK(half->memory().storage_weights == 2 * flat);
  CHECK(half->memory().gradients == 4 * flat);
  CHECK(half->master().dtype == DType::f32);
  CHECK(half->storage().dtype == DType::bf16);
  ModelUnderTest single(config, {DType::f32, 4, 8, true, 1}, *device);
  CHECK(single->memory().storage_weights == 0);
  CHECK(single->storage().data == single->master().data);
  ModelUnderTest evaluation(config, {DType::f32, 4, 8, false, 1}, *device);
  CHECK(evaluation->memory().gradients == 0);
  CHECK(!evaluation->gradients());
  ModelConfig deep = config;
  deep.num_hidden_layers = 6;
  ModelUnderTest deep_evaluation(deep, {DType::f32, 4, 8, false, 1}, *device);
  CHECK(deep_evaluation->memory().activations == evaluation->memory().activations);  // of one layer
  ModelUnderTest deep_training(deep, {DType::f32, 4, 8, true, 1}, *device);
  CHECK(deep_training->memory().activations > 2 * single->memory().activations);
  CHECK(deep_training->memory().workspace == single->memory().workspace);
}

TEST_CASE("what does not fit a model is refused") {
  const ModelConfig config = tiny_bert();
  const std::unique_ptr<Device> device = make_reference_device();
  const std::string too_long = error_message([&] { make_model(config, {DType::f32, 2, 10, true, 1}, *device); });
  CHECK(contains(too_long, "10 tokens"));
  CHECK(contains(too_long, "max_position_embeddings"));
  std::mt19937_64 rng = generator(80);
  ModelUnderTest model(config, {DType::f32, 2, 6, false, 1}, *device);
  const HostBatch too_many = random_batch(config, rng, 3, 6), too_wide = random_batch(config, rng, 2, 7);
  CHECK(contains(error_message([&] { model.forward(too_many); }), "3 x 6"));
  CHECK(contains(error_message([&] { model.forward(too_wide); }), "2 x 7"));
  const DeviceBatch batch(*device, random_batch(config, rng, 2, 6));
  const std::string untrained = error_message([&] { model->forward_backward(batch.view(), nullptr, false); });
  CHECK(contains(untrained, "training = false"));
}

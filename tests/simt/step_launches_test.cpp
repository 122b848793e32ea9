// What a training step launches, and what whole models take of a GPU's memory, against scripts/step_launches.json and
// step_memory.json, which scripts/step_model.py is held to. After a change that is meant, run this test with
// OUTEFFHOP_WRITE_LAUNCHES=1 in the environment: it writes both.
#include <cstdlib>
#include <map>
#include <memory>

#include "kernels/device.h"
#include "model/model.h"
#include "tests/simt/runtime.h"
#include "tests/train/train_support.h"
#include "train/planning_device.h"
#include "train/training_step.h"

namespace outeffhop {
namespace {

/// A model with the heads of BERT-base and OPT-125m, and with few layers, so that everything else of it is small.
struct Shape {
  const char* type;
  std::int64_t B, T, labels;
};
constexpr std::int64_t kLayers = 2, kHeads = 1, kHeadSize = 64, kVocabulary = 304;

nlohmann::json config_of(const Shape& shape) {
  return {{"model_type", shape.type},           {"vocab_size", kVocabulary},
          {"hidden_size", kHeads * kHeadSize},  {"num_hidden_layers", kLayers},
          {"num_attention_heads", kHeads},      {"intermediate_size", 4 * kHeads * kHeadSize},
          {"max_position_embeddings", shape.T}, {"pad_token_id", 0}};
}

/// Every token an id of its own in turn; the first `labels` of them have to be predicted.
Batch batch_of(const Shape& shape) {
  Batch batch;
  batch.B = shape.B;
  batch.T = shape.T;
  for (std::int64_t i = 0; i < shape.B * shape.T; ++i) {
    batch.input_ids.push_back(static_cast<std::int32_t>(4 + i % (kVocabulary - 4)));
    batch.labels.push_back(i < shape.labels ? batch.input_ids.back() : kIgnoredLabel);
  }
  for (std::int64_t b = 0; b < shape.B; ++b) batch.sample_ids.push_back(static_cast<std::uint64_t>(b));
  return batch;
}

/// Launches of one step of one micro-batch, by name.
std::map<std::string, int> launches_of_step(const Shape& shape) {
  const nlohmann::json json = {{"model", config_of(shape)}, {"training", {{"dtype", "bf16"}}}};
  const Config config = test::quiet_options(json).config;
  ModelOptions options;
  options.dtype = DType::bf16;
  options.max_batch = shape.B;
  options.max_sequence = shape.T;
  const std::unique_ptr<Device> device = make_device({"cuda", 0, true});
  const std::unique_ptr<Model> model = make_model(config.model, options, *device);
  std::vector<float> weights(static_cast<std::size_t>(model->parameters().flat_size()));
  initialise(model->parameters(), 1, weights.data());
  device->copy_in(model->master().data, weights.data(), weights.size() * sizeof(float));
  model->round_to_storage();
  Optimizer optimizer(*device, *model, config.optimizer);
  DeviceBatch device_batch(*device, config.model, shape.B, shape.T);
  TrainingStep training_step(*device, *model, optimizer, device_batch);
  const std::vector<Batch> batches = {batch_of(shape)};
  std::map<std::string, int> launches;
  for (int step = 0; step < 2; ++step) {  // in the first one products are tried and chosen
    simt::take_launched();
    training_step.start(batches, 1e-4, step, {});
    (void)training_step.finish();
  }
  for (const std::string& name : simt::take_launched()) ++launches[name];
  return launches;
}

/// A file of scripts/, after `found` was written to it if that is asked for.
nlohmann::ordered_json committed(const std::string& name, const nlohmann::ordered_json& found) {
  const std::filesystem::path file = std::filesystem::path(OUTEFFHOP_SOURCE_DIR) / "scripts" / name;
  if (std::getenv("OUTEFFHOP_WRITE_LAUNCHES")) replace_file(file, found.dump(1) + "\n");
  return nlohmann::ordered_json::parse(read_file(file));
}
constexpr const char* kWayOut =
    "run this test with OUTEFFHOP_WRITE_LAUNCHES=1, then scripts/step_model.py --write docs/performance.md";

TEST_CASE("A step launches what the step-time model counts with") {
  // More than 1,024 tokens, as the whole models have: the embedding's gradient takes as many launches.
  const Shape shapes[] = {{"bert", 9, 128, 170}, {"opt", 4, 512, 4 * 511}, {"opt", 2, 640, 2 * 639}};
  nlohmann::ordered_json found = nlohmann::ordered_json::array();
  for (const Shape& shape : shapes) {
    nlohmann::ordered_json entry = {
        {"model", shape.type}, {"B", shape.B},    {"T", shape.T},           {"labels", shape.labels},
        {"layers", kLayers},   {"heads", kHeads}, {"head_size", kHeadSize}, {"vocabulary", kVocabulary}};
    entry["launches"] = launches_of_step(shape);
    found.push_back(entry);
  }
  const auto written = committed("step_launches.json", found);
  REQUIRE(written.size() == found.size());
  for (std::size_t i = 0; i < found.size(); ++i) {
    INFO(found[i]["model"] << " at T = " << found[i]["T"] << ": " << kWayOut);
    CHECK(written[i].dump(1) == found[i].dump(1));
  }
}

/// The plan of the GPU's memory of a whole model, stored in bf16, with micro-batches of B x T.
nlohmann::ordered_json memory_of(const nlohmann::json& model_config, std::int64_t B, std::int64_t T) {
  const Config config = test::quiet_options({{"model", model_config}}).config;
  ModelOptions options;
  options.dtype = DType::bf16;
  options.max_batch = B;
  options.max_sequence = T;
  const std::unique_ptr<Device> device = make_planning_device({"cuda"});
  const std::unique_ptr<Model> model = make_model(config.model, options, *device);
  const Optimizer optimizer(*device, *model, config.optimizer);
  const DeviceBatch batch(*device, config.model, B, T);
  const MemoryPlan plan = model->memory();
  return {{"master weights", plan.master_weights}, {"weights in storage", plan.storage_weights},
          {"gradients", plan.gradients},           {"moments", optimizer.bytes()},
          {"activations", plan.activations},       {"workspace", plan.workspace},
          {"batch", batch.device_bytes()},         {"inside ops", make_device({"cuda"})->workspace_bytes()}};
}

TEST_CASE("The memory of whole models is what the page of performance says") {
  const nlohmann::json bert = {{"model_type", "bert"}, {"vocab_size", 30522}, {"pad_token_id", 0}};
  const nlohmann::json opt = {{"model_type", "opt"}, {"vocab_size", 50272}, {"pad_token_id", 1}};
  nlohmann::ordered_json found;
  found["BERT-base, 128 x 128"] = memory_of(bert, 128, 128);
  found["BERT-base, 32 x 512"] = memory_of(bert, 32, 512);
  found["OPT-125m, 32 x 512"] = memory_of(opt, 32, 512);
  found["OPT-125m, 16 x 1024"] = memory_of(opt, 16, 1024);
  const auto written = committed("step_memory.json", found);
  INFO(kWayOut);
  CHECK(written.dump(1) == found.dump(1));
}

}  // namespace
}  // namespace outeffhop

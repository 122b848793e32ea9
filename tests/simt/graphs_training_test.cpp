// Whole runs and evaluations as replayed graphs, beside the same ones launched op by op; and the gradients beside the CPU's.
#include <algorithm>
#include <cmath>
#include <set>

#include "model/head.h"
#include "tests/model/model_support.h"
#include "tests/simt/profiler_ranges.h"
#include "tests/simt/runtime.h"
#include "tests/test_support.h"
#include "tests/train/train_support.h"
#include "train/device_batch.h"
#include "train/training.h"

namespace outeffhop {
namespace {

using test::quiet_options;
using test::read_metrics;
using test::TinyCorpus;

constexpr int kSteps = 6;

struct Case {
  std::string model_type, dtype, sampling;
};

/// Two micro-batches a step, of four rows of 32 tokens: half of them are labelled, now more than a bucket, now fewer; an
/// evaluation after every other step, whose last batch is smaller.
TrainOptions options_of(const TinyCorpus& corpus, const Case& of, const std::string& run) {
  nlohmann::json json = corpus.config(of.model_type, run);
  json["model"]["max_position_embeddings"] = json["data"]["sequence_length"] = 32;
  if (of.dtype == "bf16") json["model"]["hidden_size"] = 64, json["model"]["num_attention_heads"] = 2;  // tensor cores
  json["training"]["dtype"] = of.dtype;
  json["training"]["steps"] = kSteps;
  json["evaluation"] = {{"interval", 2}, {"batches", 0}, {"batch_size", 5}, {"outliers", false}};
  if (of.sampling != "stream") json["data"]["sampling"] = "documents", json["data"]["document_delimiter"] = 40;
  if (of.sampling == "padded") json["data"]["packing"] = false;
  if (of.model_type == "bert") json["data"]["mlm_probability"] = 0.5;
  TrainOptions options = quiet_options(json);
  options.device = "cuda";
  return options;
}

simt::GraphCounts run(TrainOptions options, bool eager) {
  options.eager = eager;
  (void)simt::take_graph_counts();
  REQUIRE(train(options) == 0);
  return simt::take_graph_counts();
}

std::vector<nlohmann::json> losses(const std::string& run) {
  std::vector<nlohmann::json> all;
  for (const nlohmann::json& line : read_metrics(run))
    for (const char* name : {"loss", "gradient_norm", "validation_loss"})
      if (line.contains(name)) all.push_back(line[name]);
  return all;
}

TEST_CASE("steps and evaluations replayed as graphs are those launched op by op, byte for byte") {
  const TinyCorpus corpus;
  for (const Case& of : {Case{"bert", "fp32", "packed"}, Case{"bert", "bf16", "stream"}, Case{"opt", "fp32", "padded"},
                         Case{"opt", "bf16", "packed"}}) {
    INFO(of.model_type << " " << of.dtype << " " << of.sampling);
    const std::string name = of.model_type + of.dtype, graphs = name + "_graphs", eager = name + "_eager";
    const simt::GraphCounts counts = run(options_of(corpus, of, graphs), false);
    // 12 micro-batches of at most two buckets, six updates, three evaluations of at most three shapes.
    CHECK(counts.captured >= 3);
    CHECK(counts.captured <= 2 + 1 + 3);
    CHECK(counts.launched >= 10 + 5 + 3);
    CHECK(simt::take_ranges().empty());
    const simt::GraphCounts none = run(options_of(corpus, of, eager), true);
    const std::vector<std::string> begun = simt::take_ranges();
    const std::set<std::string> ranges(begun.begin(), begun.end());
    const std::string layer = of.model_type == "bert" ? "bert.encoder.layer.1" : "model.decoder.layers.1";
    for (const std::string& range :
         {std::string("micro-batch/forward/embeddings"), "micro-batch/forward/" + layer, std::string("micro-batch/head"),
          "micro-batch/backward/" + layer, std::string("micro-batch/backward/embeddings"), std::string("update"),
          std::string("evaluation/forward/embeddings"), std::string("evaluation/forward/head")}) {
      INFO(range);
      CHECK(ranges.contains(range));
    }
    CHECK(simt::open_ranges() == 0);
    CHECK(none.captured == 0);
    CHECK(none.launched == 0);

    const std::string last = fmt::format("/checkpoints/step_{:08}/", kSteps);
    for (const char* file : {"model.safetensors", "optimizer.safetensors"})
      CHECK(read_file(corpus.path(graphs) + last + file) == read_file(corpus.path(eager) + last + file));
    CHECK(losses(corpus.path(graphs)).size() == 2 * kSteps + 3);
    CHECK(losses(corpus.path(graphs)) == losses(corpus.path(eager)));
  }
}

/// The padded labels' rows and the tokens of a batch on the device.
std::vector<std::int32_t> contents(Device& device, const ModelBatch& batch) {
  std::vector<std::int32_t> all(static_cast<std::size_t>(batch.B * batch.T + Head::padded_rows(batch.label_count)));
  device.copy_out(all.data(), batch.input_ids, static_cast<std::size_t>(batch.B * batch.T) * sizeof all[0]);
  device.copy_out(all.data() + batch.B * batch.T, batch.label_rows,
                  all.size() * sizeof all[0] - static_cast<std::size_t>(batch.B * batch.T) * sizeof all[0]);
  return all;
}

Batch batch_of(std::int32_t token, std::int64_t B, std::int64_t labels) {
  Batch batch;
  batch.B = B;
  batch.T = 32;
  batch.input_ids.assign(static_cast<std::size_t>(B * batch.T), token);
  batch.labels.assign(batch.input_ids.size(), kIgnoredLabel);
  std::fill_n(batch.labels.begin(), labels, 1);
  batch.sample_ids.assign(static_cast<std::size_t>(B), 7);
  return batch;
}

std::vector<std::int32_t> expected(const Batch& batch) {
  std::vector<std::int32_t> all = batch.input_ids;
  const std::int64_t labels = count_labels(batch);
  for (std::int64_t i = 0; i < Head::padded_rows(labels); ++i) all.push_back(i < labels ? static_cast<std::int32_t>(i) : -1);
  return all;
}

TEST_CASE("a batch that is copied ahead is the one that is uploaded, and another one is not") {
  ModelConfig config = test::tiny_bert();
  config.max_position_embeddings = 32;
  const Batch small = batch_of(5, 1, 3), large = batch_of(6, 3, 70), none = batch_of(7, 2, 0);
  for (const simt::StreamOrder order : {simt::StreamOrder::needed_only, simt::StreamOrder::others_first}) {
    simt::set_stream_order(order);
    const auto device = make_device({"cuda"});
    DeviceBatch batches(*device, config, 3, 32);
    ModelBatch view = batches.upload(small);
    for (int round = 0; round < 3; ++round)
      for (const Batch* next : {&large, &none, &small}) {
        batches.prepare(*next);
        CHECK(contents(*device, view) != expected(*next));  // it lies beside what is read
        view = batches.upload(*next);
        CHECK(view.label_count == count_labels(*next));
        CHECK(contents(*device, view) == expected(*next));
      }
    batches.prepare(large);
    CHECK(contents(*device, batches.upload(none)) == expected(none));
    CHECK(contents(*device, batches.upload(large)) == expected(large));
    Batch changing = large;
    batches.prepare(changing);
    changing = batch_of(9, 2, 5);
    changing.sample_ids[1] = 8;
    CHECK(contents(*device, batches.upload(changing)) == expected(changing));
    // The same addresses for all batches of one shape, whatever their labels; the keys of two buckets differ.
    const Batch fewer = batch_of(8, 3, 65), least = batch_of(8, 3, 64);
    const ModelBatch a = batches.upload(large), b = batches.upload(fewer), c = batches.upload(least);
    CHECK(a.label_rows == c.label_rows);
    const auto model = make_model(config, {DType::f32, 3, 32, false, 1}, *device);
    const auto key = [&](const ModelBatch& batch) { return work_key("work", *model, batch, batches.loss_sum()); };
    CHECK(key(a) == key(b));
    CHECK(a.label_ids == b.label_ids);
    CHECK(key(a) != key(c));
    simt::set_stream_order(simt::StreamOrder::needed_only);
  }
}

TEST_CASE("gradients from the same weights are the CPU's") {
  for (ModelConfig config : {test::tiny_bert(), test::tiny_opt("softmax_n(4)")}) {
    INFO(config.model_type);
    config.hidden_size = 48;
    config.vocab_size = 201;
    std::mt19937_64 rng = test::generator(77);
    const ParameterTable table = make_parameter_table(config);
    const std::vector<double> parameters = test::random_parameters(table, rng);
    const test::HostBatch batch = test::random_batch(config, rng, 3, 9, {9, 4, 1});
    const auto gradient_on = [&](const char* kind) {
      const auto device = make_device({kind, 1});
      test::ModelUnderTest model(config, {DType::f32, 3, 9, true, 3}, *device);
      model.set_parameters(parameters);
      return model.forward_backward(batch, true);
    };
    const test::LossAndGradient cpu = gradient_on("cpu"), cuda = gradient_on("cuda");
    CHECK(std::abs(cpu.loss - cuda.loss) <= 1e-6 * cpu.loss);
    for (const Parameter& p : table.all()) {
      INFO(p.name);
      CHECK(test::distance(p, cuda.gradient, cpu.gradient) <= 1e-5 * test::error_scale(table, p, cpu.gradient));
    }
  }
}

}  // namespace
}  // namespace outeffhop

// A training step allocates no memory, on whichever thread: the training loop's, OpenMP's, the loader's.
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <thread>
#include <tuple>

#include "data/loader.h"
#include "kernels/device.h"
#include "model/head.h"
#include "tests/allocation/allocation_counter.h"
#include "tests/train/train_support.h"
#include "train/checkpoint.h"
#include "train/evaluation.h"
#include "train/sampling.h"
#include "train/schedule.h"
#include "train/spike_window.h"
#include "train/training_step.h"

using namespace outeffhop;
using namespace outeffhop::test;

namespace {

Config resolved(const nlohmann::json& json, const ShardSet& shards) {
  Config config = quiet_options(json).config;
  resolve(config, shards.metadata());
  return config;
}

ModelOptions model_options(const Config& config) {
  ModelOptions options;
  options.dtype = dtype_of(config.training.dtype);
  options.max_batch = config.training.micro_batch_size;
  options.max_sequence = config.data.sequence_length;
  return options;
}

/// What the trainer goes through from one step to the next, without what it says about them.
struct Run {
  explicit Run(const nlohmann::json& json)
      : shards(json["data"]["train"].get<std::string>()),
        config(resolved(json, shards)),
        sampler(make_sampler(config, shards, 7, true)),
        objective(make_objective(config.data, config.model.vocab_size, 7)),
        device(make_device({"cpu", 0})),
        model(make_model(config.model, model_options(config), *device)),
        optimizer(*device, *model, config.optimizer),
        device_batch(*device, config.model, config.training.micro_batch_size, config.data.sequence_length),
        training_step(*device, *model, optimizer, device_batch),
        spikes(3.0, 8),
        batches(static_cast<std::size_t>(config.accumulation())),
        following(batches.size()),
        loader(*sampler, *objective, config.training.micro_batch_size, config.data.sequence_length, config.model.vocab_size,
               0) {
    std::vector<float> weights(static_cast<std::size_t>(model->parameters().flat_size()));
    initialise(model->parameters(), 7, weights.data());
    device->copy_in(model->master().data, weights.data(), weights.size() * sizeof(float));
    model->round_to_storage();
    for (Batch& batch : batches) loader.next(batch);
  }

  void step() {
    for (const Batch& batch : batches) {
      const std::int64_t labels = count_labels(batch);
      fewest_labels = std::min(fewest_labels, labels);
      most_labels = std::max(most_labels, labels);
    }
    const double rate = learning_rate(config.schedule, config.optimizer.learning_rate, config.training.steps, updates);
    training_step.start(batches, rate, updates, spikes.limits());
    for (Batch& batch : following) loader.next(batch);
    device_batch.prepare(following.front());
    const StepControl control = training_step.finish();
    batches.swap(following);
    updates = control.updates;
    if (!control.skip) spikes.add(control.loss, control.gradient_norm);
  }

  /// Forward and backward of a micro-batch whose first `labels` positions are labelled.
  void micro_step(std::int64_t labels) {
    Batch batch = batches.front();
    for (std::size_t i = 0; i < batch.labels.size(); ++i)
      batch.labels[i] = i < static_cast<std::size_t>(labels) ? batch.input_ids[i] : kIgnoredLabel;
    const ModelBatch on_device = device_batch.upload(batch);
    AllocationCounter counter;
    model->forward_backward(on_device, optimizer.loss_sum(), true);
    last_micro_step = counter.stop();
  }

  /// Every bucket of rows that the labels of a micro-batch can fill, and enough steps for each batch to have gone round.
  void warm_up() {
    step();
    const auto rows = static_cast<std::int64_t>(batches.front().labels.size());
    for (std::int64_t labels = Head::kBucket; labels <= rows; labels += Head::kBucket) micro_step(labels);
    for (int i = 0; i < 12; ++i) step();
  }

  const ShardSet shards;
  const Config config;
  const std::unique_ptr<Sampler> sampler;
  const std::unique_ptr<Objective> objective;
  const std::unique_ptr<Device> device;
  const std::unique_ptr<Model> model;
  Optimizer optimizer;
  DeviceBatch device_batch;
  TrainingStep training_step;
  SpikeWindow spikes;
  std::vector<Batch> batches, following;
  Loader loader;
  std::int64_t updates = 0, fewest_labels = 1 << 30, most_labels = 0;
  AllocationCount last_micro_step;
};

/// Eight rows of 64 tokens at a time: 15 % are 77 labels, now in one bucket of 64 rows, now in two.
nlohmann::json configuration(const TinyCorpus& corpus, const std::string& model_type, const std::string& dtype,
                             const std::string& sampling) {
  nlohmann::json json = corpus.config(model_type, "run");
  json["model"]["max_position_embeddings"] = json["data"]["sequence_length"] = 64;
  json["data"]["sampling"] = sampling;
  if (sampling == "documents") json["data"]["document_delimiter"] = 40;
  json["training"]["dtype"] = dtype;
  json["training"]["global_batch_size"] = 16;
  json["training"]["micro_batch_size"] = 8;
  return json;
}

}  // namespace

TEST_CASE("the counter sees malloc and its kin, new, and other threads") {
  AllocationCounter none;
  CHECK(none.stop().calls == 0);
  void* data = nullptr;
  const auto escape = [&] { asm volatile("" : : "r"(&data) : "memory"); };  // or the compiler would leave the pairs out
  AllocationCounter counter;
  data = std::malloc(8), escape(), std::free(data);
  data = std::calloc(2, 8), escape(), std::free(data);
  data = std::realloc(nullptr, 8), escape(), std::free(data);
  data = std::aligned_alloc(64, 64), escape(), std::free(data);
  data = new int(3), escape(), delete static_cast<int*>(data);
  data = new int[5], escape(), delete[] static_cast<int*>(data);
  const AllocationCount here = counter.stop();
  INFO(here.callers);
  CHECK(here.calls == 6);
  CHECK(here.onednn_calls == 0);

  std::atomic<bool> go = false;
  std::thread other([&] {
    while (!go) std::this_thread::yield();
    data = std::malloc(8), escape(), std::free(data);
  });
  AllocationCounter of_other;
  go = true;
  other.join();
  const AllocationCount there = of_other.stop();
  INFO(there.callers);
  CHECK(there.calls == 1);
}

TEST_CASE("a training step allocates nothing") {
  using Case = std::tuple<std::string, std::string, std::string>;
  const auto [model_type, dtype, sampling] = GENERATE(values<Case>({{"bert", "fp32", "stream"},
                                                                    {"bert", "bf16", "stream"},
                                                                    {"bert", "fp32", "documents"},
                                                                    {"opt", "fp32", "stream"},
                                                                    {"opt", "bf16", "stream"}}));
  INFO(model_type << " " << dtype << " " << sampling);
  const TinyCorpus corpus(1 << 15);
  Run run(configuration(corpus, model_type, dtype, sampling));
  run.warm_up();
  run.fewest_labels = 1 << 30;
  run.most_labels = 0;

  AllocationCounter counter;
  for (int i = 0; i < 40; ++i) run.step();
  const AllocationCount count = counter.stop();
  INFO(count.callers);
  CHECK(count.calls == 0);
  CHECK(count.onednn_kept == 0);  // it lists the arguments of each product while that runs, and builds nothing new
  CHECK(run.updates > 20);
  if (model_type == "bert") {
    CHECK(run.fewest_labels <= Head::kBucket);
    CHECK(run.most_labels > Head::kBucket);
  }
}

TEST_CASE("a count of labels in a bucket not seen before allocates once") {
  const TinyCorpus corpus(1 << 15);
  Run run(configuration(corpus, "bert", "fp32", "stream"));
  for (int i = 0; i < 12; ++i) run.step();  // until the loader allocates no more, either
  for (const std::int64_t bucket : {5, 6}) {
    run.micro_step(bucket * Head::kBucket);
    INFO(run.last_micro_step.callers);
    if (run.last_micro_step.onednn_calls > 0) CHECK(run.last_micro_step.calls > 0);  // the products of new shapes
    run.micro_step(bucket * Head::kBucket - 30);
    CHECK(run.last_micro_step.calls == 0);
    CHECK(run.last_micro_step.onednn_kept == 0);
  }
}

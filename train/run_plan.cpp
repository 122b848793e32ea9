#include "train/run_plan.h"

#include <algorithm>
#include <chrono>
#include <functional>
#include <memory>

#include "data/loader.h"
#include "train/optimizer.h"
#include "train/progress.h"

namespace outeffhop {
namespace {

using Clock = std::chrono::steady_clock;

/// FLOPs of the largest piece of work that is timed: a second or so.
double timed_flops(const Device& device, DType storage) {
  if (const double peak = device.peak_flops(storage); peak > 0.0) return 0.5 * peak;
  return device.memory().total > 0 ? 2e13 : 1e12;  // of a GPU of unknown peak; of a processor
}

/// How often a step is timed, and how often it is run before that. What a GPU does is recorded in the second round and
/// replayed in the third; its steps are short, and seldom take the same time.
struct Rounds {
  int warm_up, most;
  double seconds;  ///< no further round begins after as long
};
Rounds rounds_of(const Device& device) { return device.memory().total > 0 ? Rounds{3, 20, 2.0} : Rounds{1, 1, 0.0}; }

/// Tokens of a sequence, without padding.
double tokens_of_sequence(const Sampler& sampler) {
  return static_cast<double>(sampler.token_count()) / static_cast<double>(sampler.sample_count());
}

PassWork operator/(const PassWork& work, double count) {
  return {work.rows / count, work.labels / count, work.pairs / count};
}

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

}  // namespace

std::string device_text(const Device& device, const DeviceChoice& choice) {
  return device.description() + (choice.reason.empty() ? "" : fmt::format(" (auto: {})", choice.reason));
}

std::size_t total_bytes(const std::vector<MemoryPart>& parts) {
  std::size_t total = 0;
  for (const MemoryPart& part : parts) total += part.bytes;
  return total;
}

std::size_t loader_depth(const Config& config) {
  return static_cast<std::size_t>(std::max<std::int64_t>(4, 2 * config.accumulation()));
}

RunMemory plan_memory(const RunInputs& inputs, const Model& model, const DeviceBatch& device_batch, const Device& device,
                      std::size_t program) {
  const Config& config = inputs.config;
  const MemoryPlan plan = model.memory();
  const std::size_t state = sizeof(float) * static_cast<std::size_t>(model.parameters().flat_size());
  const auto micro = static_cast<std::size_t>(config.training.micro_batch_size);
  const std::size_t token = (2 + (inputs.sampler.packs() ? 2 : 0)) * sizeof(std::int32_t);  // id, label, key range
  const std::size_t batch =
      micro * (static_cast<std::size_t>(inputs.sampler.length()) * token + sizeof(std::uint64_t) + sizeof(std::int32_t));
  // Those that wait, the one that is being made, those of the step and of the next one.
  const std::size_t batches = loader_depth(config) + 1 + 2 * static_cast<std::size_t>(config.accumulation());
  return {{{"master weights", plan.master_weights},
           {"weights in storage", plan.storage_weights},
           {"gradients", plan.gradients},
           {"moments", 2 * state},
           {config.training.recompute == "none" ? "activations"
                                                : fmt::format("activations (recompute: {})", config.training.recompute),
            plan.activations},
           {"workspace", plan.workspace},
           {"batch", device_batch.device_bytes()},
           {"inside ops", device.workspace_bytes()}},
          {{"checkpoint snapshot", 3 * state},
           {"batches ahead", device_batch.host_bytes() + batches * batch},
           {"program", program}}};
}

namespace {

std::string memory_text(const std::vector<MemoryPart>& parts) {
  std::string text;
  for (const MemoryPart& part : parts) {
    if (part.bytes == 0) continue;
    text += fmt::format("{} {} {}", text.empty() ? ":" : ",", part.name, bytes_text(static_cast<double>(part.bytes)));
  }
  return bytes_text(static_cast<double>(total_bytes(parts))) + text;
}

}  // namespace

std::vector<std::string> memory_lines(const RunMemory& memory, const Device& device) {
  if (device.memory().total > 0) {
    return {"memory      of the GPU " + memory_text(memory.device), "            of the host " + memory_text(memory.host)};
  }
  std::vector<MemoryPart> all = memory.device;
  all.insert(all.end(), memory.host.begin(), memory.host.end());
  return {"memory      " + memory_text(all)};
}

PassWork work_of_sequence(const RunInputs& inputs) {
  const Config& config = inputs.config;
  const std::int64_t length = inputs.sampler.length();
  const auto T = static_cast<double>(length);
  const bool causal = config.model.model_type == "opt";
  if (config.data.sampling == "stream") {
    const bool masked = config.data.objective == "masked_lm";
    return {T, masked ? T * config.data.mlm_probability : T - 1, causal ? T * (T + 1) / 2 : T * T};
  }
  const auto rows = std::min<std::int64_t>(kCountedRows, static_cast<std::int64_t>(inputs.sampler.sample_count()));
  PassWork work;
  for (std::int64_t row = 0; row < rows; ++row) {
    work += count_work(
        make_batch(inputs.sampler, inputs.objective, 1, length, config.model.vocab_size, static_cast<std::uint64_t>(row)),
        causal);
  }
  return work / static_cast<double>(rows);
}

double flops_per_token(const RunInputs& inputs) {
  return training_flops(inputs.config.model, work_of_sequence(inputs)) / tokens_of_sequence(inputs.sampler);
}

namespace {

std::string work_line(const RunInputs& inputs) {
  const Config& config = inputs.config;
  std::string line = fmt::format("work        {} FLOPs a token, forward and backward", count_text(flops_per_token(inputs)));
  if (config.data.sampling != "stream") {
    line += fmt::format(" (attention and labels as in {} rows)",
                        std::min<std::uint64_t>(kCountedRows, inputs.sampler.sample_count()));
  }
  if (config.training.recompute == "block") {
    line += fmt::format(
        "; {} more to recompute, which no rate counts",
        count_text(recomputed_flops(config.model, work_of_sequence(inputs)) / tokens_of_sequence(inputs.sampler)));
  }
  return line;
}

}  // namespace

std::vector<std::string> plan_lines(const RunInputs& inputs, const Model& model, const Device& device, std::int64_t done) {
  const Config& config = inputs.config;
  const ModelConfig& m = config.model;
  const double epoch = static_cast<double>(inputs.sampler.sample_count());
  const auto epochs = [&](std::int64_t steps) {
    return static_cast<double>(steps) * static_cast<double>(config.training.global_batch_size) / epoch;
  };
  const auto tokens = [&](std::int64_t steps) {
    return count_text(epochs(steps) * static_cast<double>(inputs.sampler.token_count()));
  };
  std::vector<std::string> lines = {
      fmt::format("model       {} with {} attention: {} layers, {} channels, {} heads, vocabulary {}; {} parameters, {}",
                  m.model_type, m.attn_softmax, m.num_hidden_layers, m.hidden_size, m.num_attention_heads, m.vocab_size,
                  count_text(static_cast<double>(model.parameters().total())), config.training.dtype),
      work_line(inputs),
      fmt::format("data        {} tokens in {} shards, {}", count_text(static_cast<double>(inputs.shards.token_count())),
                  inputs.shards.shards().size(), inputs.sampler.description()),
      fmt::format("training    {} steps of {} sequences ({} x {} at a time): {} tokens, {:.3g} epochs",
                  config.training.steps, config.training.global_batch_size, config.accumulation(),
                  config.training.micro_batch_size, tokens(config.training.steps), epochs(config.training.steps))};
  // Of a GPU; nobody knows what to make of a processor's.
  if (device.memory().total > 0) {
    const double peak = device.peak_flops(dtype_of(config.training.dtype));
    lines.push_back(peak > 0.0 ? fmt::format("peak        {}FLOP/s in {} at the highest clock: what MFU is a share of",
                                             count_text(peak), config.training.dtype)
                               : "peak        unknown of this GPU: MFU is not shown");
  }
  if (done > 0) {
    const std::int64_t left = std::max<std::int64_t>(0, config.training.steps - done);
    lines.push_back(
        fmt::format("to come     {} steps after step {}: {} tokens, {:.3g} epochs", left, done, tokens(left), epochs(left)));
  }
  return lines;
}

StepTiming time_step(const RunInputs& inputs, const ModelOptions& options, Device& device) {
  const Config& config = inputs.config;
  const std::int64_t T = inputs.sampler.length(), micro = config.training.micro_batch_size;
  const double most_flops = timed_flops(device, options.dtype);
  const double sequence_flops = training_flops(config.model, work_of_sequence(inputs));
  const std::int64_t B = std::clamp<std::int64_t>(static_cast<std::int64_t>(most_flops / sequence_flops), 1, micro);
  // Micro-batches of a step: all, or as many as are short enough.
  const std::int64_t passes = std::clamp<std::int64_t>(
      static_cast<std::int64_t>(most_flops / (sequence_flops * static_cast<double>(B))), 1, config.accumulation());

  const std::unique_ptr<Model> model = make_model(config.model, options, device);
  Optimizer optimizer(device, *model, config.optimizer);
  DeviceBatch device_batch(device, config.model, B, T);
  {
    std::vector<float> weights(static_cast<std::size_t>(model->parameters().flat_size()));
    initialise(model->parameters(), options.seed, weights.data());
    device.copy_in(model->master().data, weights.data(), weights.size() * sizeof(float));
    device.synchronize();
  }
  model->round_to_storage();

  std::vector<Batch> batches;
  for (std::int64_t i = 0; i < passes; ++i) {
    batches.push_back(
        make_batch(inputs.sampler, inputs.objective, B, T, config.model.vocab_size, static_cast<std::uint64_t>(i * B)));
  }
  std::int64_t labels = 0;
  for (const Batch& batch : batches) labels += count_labels(batch);
  const Rounds rounds = rounds_of(device);
  double pass_seconds = 0.0, update_seconds = 0.0;
  int timed = 0;
  for (int round = 0; timed == 0 || (timed < rounds.most && pass_seconds + update_seconds < rounds.seconds); ++round) {
    if (round == rounds.warm_up) pass_seconds = update_seconds = 0.0;
    timed = std::max(0, round - rounds.warm_up + 1);
    device.synchronize();
    Clock::time_point begin = Clock::now();
    optimizer.begin_step(0.0, labels, 0);
    device.synchronize();
    update_seconds += seconds_since(begin);
    begin = Clock::now();
    for (const Batch& batch : batches) {
      const ModelBatch view = device_batch.upload(batch);
      const auto work = [&] { model->forward_backward(view, optimizer.loss_sum(), true); };
      device.repeat(work_key("micro-batch", *model, view, optimizer.loss_sum()), std::ref(work));
    }
    device.synchronize();
    pass_seconds += seconds_since(begin);
    begin = Clock::now();
    optimizer.finish_step();
    (void)optimizer.decision();
    update_seconds += seconds_since(begin);
  }

  pass_seconds /= timed;
  update_seconds /= timed;
  const double step_sequences = static_cast<double>(config.training.global_batch_size);
  const double share = static_cast<double>(passes * B) / step_sequences;
  StepTiming timing;
  timing.seconds = pass_seconds / share + update_seconds;
  timing.tokens_per_second = step_sequences * tokens_of_sequence(inputs.sampler) / timing.seconds;
  timing.flops_per_second = step_sequences * sequence_flops / timing.seconds;
  if (const double peak = device.peak_flops(options.dtype); peak > 0.0) timing.mfu = timing.flops_per_second / peak;
  const auto number = [](int count) { return count == 1 ? std::string("one") : std::to_string(count); };
  timing.measured =
      fmt::format("{} step{}, after {} to warm up", number(timed), timed == 1 ? "" : "s", number(rounds.warm_up));
  if (share < 1.0) {
    timing.measured = fmt::format("{} of {} sequences, {} at a time, and an update{}, after {} to warm up", passes * B,
                                  config.training.global_batch_size, B, timed == 1 ? "" : fmt::format(", {} times", timed),
                                  rounds.warm_up == 1 ? "as much" : fmt::format("{} times as much", rounds.warm_up));
  }
  return timing;
}

std::string time_text(const StepTiming& timing, std::int64_t steps) {
  return fmt::format("{:.3g} s a step, {} tokens/s, {}FLOP/s{}; {} steps: {} (timed: {}; without evaluation and saving)",
                     timing.seconds, count_text(timing.tokens_per_second), count_text(timing.flops_per_second),
                     timing.mfu > 0.0 ? fmt::format(" ({:.1f} % MFU)", 100 * timing.mfu) : "", steps,
                     duration_text(timing.seconds * static_cast<double>(steps)), timing.measured);
}

}  // namespace outeffhop

#include "train/training.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <memory>
#include <optional>
#include <utility>

#include "data/loader.h"
#include "data/sampler.h"
#include "data/shards.h"
#include "kernels/device.h"
#include "model/model.h"
#include "train/checkpoint.h"
#include "train/checkpoint_writer.h"
#include "train/device_batch.h"
#include "train/evaluation.h"
#include "train/files.h"
#include "train/flops.h"
#include "train/memory_limit.h"
#include "train/metrics.h"
#include "train/optimizer.h"
#include "train/progress.h"
#include "train/resume.h"
#include "train/run_plan.h"
#include "train/run_setup.h"
#include "train/sampling.h"
#include "train/signals.h"
#include "train/spike_window.h"
#include "train/step_report.h"
#include "train/training_step.h"

namespace outeffhop {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

Config resolved(Config config, const ShardMetadata& metadata) {
  resolve(config, metadata);
  return config;
}

class Trainer {
 public:
  explicit Trainer(const TrainOptions& options);
  int run();

 private:
  void describe();
  void begin();
  bool resume();
  void start_afresh();
  void report(const StepControl& control, double seconds);
  void report_memory();
  bool is_due(std::int64_t interval) const;
  void evaluate_now();
  void save();
  void report_save();
  void finish_saving();
  int stop();
  int finish();

  const TrainOptions options_;
  const ShardSet shards_;
  const Config config_;
  const std::optional<ShardSet> validation_;
  const std::int64_t T_;
  const std::unique_ptr<Sampler> sampler_, validation_sampler_;
  const std::unique_ptr<Objective> objective_, evaluation_objective_;
  const DeviceChoice choice_;
  const std::unique_ptr<Device> device_;
  const double peak_flops_ = device_->peak_flops(dtype_of(config_.training.dtype));
  const std::size_t available_before_ = device_->memory().available + device_->workspace_bytes();
  const std::size_t program_memory_ = resident_memory();  // before there is a model
  const std::unique_ptr<Model> model_;
  Optimizer optimizer_;
  DeviceBatch device_batch_;
  TrainingStep step_;
  CheckpointContext context_;
  TrainerState state_;
  SpikeWindow spike_window_;
  Progress progress_;
  std::optional<FileLock> lock_;  // on the run directory
  std::optional<StopSignals> signals_;
  std::optional<MetricsFile> metrics_;
  std::optional<EvaluationResult> evaluated_;  // at the present step
  std::optional<CheckpointWriter> writer_;
  std::int64_t saved_step_ = -1;     // the last one that was saved, or is being saved
  std::filesystem::path last_good_;  // the last checkpoint known to be sound; empty: none
  bool said_waiting_ = false;        // that saving takes longer than the interval
  std::string metrics_trouble_;      // as last said
  std::int64_t first_step_ = 0;      // of this invocation: steps that were done before
  StepWindow window_;
  std::size_t planned_ = 0;  // of the device's memory

  TrainerState& state() { return state_; }
  void say(const std::string& text) {
    if (!options_.quiet) progress_.line(text);
  }
  /// Says what went wrong although training goes on: with --quiet, too.
  void complain(const std::string& text) {
    if (options_.quiet) {
      fmt::print(stderr, "outeffhop: {}\n", text);
    } else {
      progress_.line(text);
    }
  }
};

Trainer::Trainer(const TrainOptions& options)
    : options_(options),
      shards_(training_shards(options.config)),
      config_(resolved(options.config, shards_.metadata())),
      validation_(config_.data.validation.empty() ? std::nullopt : std::optional<ShardSet>(config_.data.validation)),
      T_(config_.data.sequence_length),
      sampler_(make_sampler(config_, shards_, static_cast<std::uint64_t>(config_.training.seed), true)),
      validation_sampler_(validation_ ? make_sampler(config_, *validation_, 0, false) : nullptr),
      objective_(make_objective(config_.data, config_.model.vocab_size, static_cast<std::uint64_t>(config_.training.seed))),
      evaluation_objective_(
          make_objective(config_.data, config_.model.vocab_size, static_cast<std::uint64_t>(config_.evaluation.seed))),
      choice_(choose_device(options.device)),
      device_(device_of_run(options, choice_, config_)),
      model_(make_model(config_.model, model_options(config_), *device_)),
      optimizer_(*device_, *model_, config_.optimizer),
      device_batch_(*device_, config_.model, model_options(config_).max_batch, T_),
      step_(*device_, *model_, optimizer_, device_batch_),
      spike_window_(config_.training.spike_zscore, config_.training.spike_window),
      progress_(isatty(STDOUT_FILENO) == 1) {
  const ShardMetadata& metadata = shards_.metadata();
  context_.run = config_.output;
  context_.model = config_.model;
  if (metadata.bos_id >= 0) context_.text_ids.bos = metadata.bos_id;
  if (metadata.eos_id >= 0) context_.text_ids.eos = metadata.eos_id;
  context_.config = write_config(config_);
  context_.extra_files = tokenizer_files(shards_);
  context_.data_fingerprint = data_fingerprint(shards_, *sampler_);
  context_.device = device_->description();
}

/// Says what the run will be. A dry run looks at what a resume would find, times a step, and changes nothing.
void Trainer::describe() {
  const RunInputs inputs{config_, shards_, *sampler_, *objective_};
  if (!options_.dry_run) {
    say(device_text(*device_, choice_));
    for (const std::string& line : plan_lines(inputs, *model_, *device_, 0)) say(line);
    const RunMemory memory = plan_memory(inputs, *model_, device_batch_, *device_, program_memory_);
    planned_ = total_bytes(memory.device);
    for (const std::string& line : memory_lines(memory, *device_)) say(line);
    return;
  }
  const std::unique_ptr<Device> device = make_device(device_options(options_, choice_, config_));
  context_.device = device->description();
  say(device_text(*device, choice_));
  std::int64_t done = 0;
  if (!config_.output.empty()) {
    const auto say_line = [this](const std::string& line) { say(line); };
    const auto checkpoint = checkpoint_to_resume(context_, options_.resume, say_line);
    if (checkpoint) done = check_resumable(*checkpoint, context_, config_, say_line).snapshot.state.step;
  }
  for (const std::string& line : plan_lines(inputs, *model_, *device, done)) say(line);
  const auto memory = [&] { return plan_memory(inputs, *model_, device_batch_, *device, resident_memory()); };
  const bool own = device->memory().total > 0;
  const double available = own ? static_cast<double>(device->memory().available) : available_memory();
  const std::size_t needed = total_bytes(memory().device) + (own ? 0 : total_bytes(memory().host));
  const std::int64_t left = std::max<std::int64_t>(0, config_.training.steps - done);
  if (static_cast<double>(needed) > available) {
    say(fmt::format("time        no step was timed: {} of memory are available here; take a smaller micro-batch{}",
                    bytes_text(available), recompute_hint(model_options(config_))));
  } else if (left > 0) {
    say("time        " + time_text(time_step(inputs, model_options(config_), *device), left));
  }
  for (const std::string& line : memory_lines(memory(), *device)) say(line);
}

bool Trainer::resume() {
  const auto say_line = [this](const std::string& line) { say(line); };
  const std::optional<std::filesystem::path> found = checkpoint_to_resume(context_, options_.resume, say_line);
  if (!found) return false;
  const std::filesystem::path& checkpoint = *found;
  check_resumable(checkpoint, context_, config_, say_line);
  Snapshot& snapshot = writer_->snapshot();
  snapshot = read_checkpoint(checkpoint, model_->parameters()).snapshot;
  state_ = snapshot.state;
  if (const std::string course = course_of(options_.resume); !course.empty()) state_.resumed_from = course;
  if (state_.tokens < 0) state_.tokens = state_.samples * T_;  // a version that padded nothing
  spike_window_.restore(state_.spikes);
  const auto bytes = snapshot.weights.size() * sizeof(float);
  device_->copy_in(model_->master().data, snapshot.weights.data(), bytes);
  device_->copy_in(optimizer_.first_moments().data, snapshot.first_moments.data(), bytes);
  device_->copy_in(optimizer_.second_moments().data, snapshot.second_moments.data(), bytes);
  if (!device_->use_plans(snapshot.plans)) {
    say("note: the plans of matrix products in the checkpoint are of another GPU or library: this device measures its own, "
        "and the last bits of sums may differ");
  }
  if (const std::size_t aside = set_aside_later_checkpoints(context_.run, state().step)) {
    say(fmt::format("{} later checkpoints were renamed to *.superseded", aside));
  }
  last_good_ = checkpoint;
  std::error_code error;
  if (std::filesystem::equivalent(checkpoint / "..", context_.run / "checkpoints", error) && !error) {
    saved_step_ = state().step;
  }
  say(fmt::format("resumed     {} after step {}", checkpoint.string(), state().step));
  return true;
}

void Trainer::start_afresh() {
  const auto size = static_cast<std::size_t>(model_->parameters().flat_size());
  Snapshot& snapshot = writer_->snapshot();
  for (auto* values : {&snapshot.weights, &snapshot.first_moments, &snapshot.second_moments}) values->assign(size, 0.0f);
  initialise(model_->parameters(), static_cast<std::uint64_t>(config_.training.seed), snapshot.weights.data());
  device_->copy_in(model_->master().data, snapshot.weights.data(), size * sizeof(float));
}

void Trainer::begin() {
  if (config_.output.empty())
    fail(ErrorKind::usage, "no run directory: give --out DIR or set \"output\" in the configuration");
  std::error_code error;
  std::filesystem::create_directories(context_.run, error);
  if (error) fail(ErrorKind::io, "cannot create the run directory {}: {}", config_.output, error.message());
  lock_.emplace(context_.run / "lock");
  if (!lock_->held()) {
    fail(ErrorKind::usage, "another process is training in {}: wait for its end, or start another run with --out",
         config_.output);
  }
  remove_leftovers(context_.run);
  writer_.emplace(context_, model_->parameters(), config_.checkpoint.keep_last, config_.checkpoint.keep_every);
  const bool resumed = resume();
  if (!resumed) start_afresh();
  first_step_ = state().step;
  model_->round_to_storage();
  replace_file(context_.run / "config.json", context_.config.dump(2) + "\n");
  metrics_.emplace(context_.run / "metrics.jsonl", state().step);
  if (resumed && state().step < config_.training.steps) metrics_->write({{"step", state().step}, {"resumed", true}});
}

void Trainer::report(const StepControl& control, double seconds) {
  if (state().step == first_step_ + 1) report_memory();
  window_.seconds += seconds;
  ++window_.steps;
  const bool logged = state().step % config_.logging.interval == 0 || state().step == config_.training.steps || control.skip;
  const FinishedStep step{state(),
                          control,
                          window_,
                          spike_window_.zscores(control.loss, control.gradient_norm),
                          state().samples - config_.training.global_batch_size,
                          peak_flops_};
  if (control.skip) {
    complain(skip_text(step));
  } else if (!options_.quiet) {
    progress_.step(progress_report(step, config_.training.steps), logged);
  }
  if (!logged) return;
  metrics_->write(step_metrics(step));
  if (metrics_->trouble() != metrics_trouble_) {
    metrics_trouble_ = metrics_->trouble();
    say(metrics_trouble_.empty() ? "metrics.jsonl is complete again"
                                 : metrics_trouble_ + "; training goes on, and its lines are written when that works again");
  }
  window_ = {};
}

/// After the first step, when all that a run takes is taken: what that is of a device's own memory, as the device counts.
void Trainer::report_memory() {
  const DeviceMemory memory = device_->memory();
  if (memory.total == 0) return;
  // Others may have given some back in the meantime.
  const double taken = std::max(0.0, static_cast<double>(available_before_) - static_cast<double>(memory.available));
  say(fmt::format("memory      {} of the GPU are taken after a step, {} inside ops; {} were planned", bytes_text(taken),
                  bytes_text(static_cast<double>(device_->workspace_bytes())), bytes_text(static_cast<double>(planned_))));
}

void Trainer::evaluate_now() {
  if (!validation_ || evaluated_) return;
  std::optional<OutlierVisitor> visitor;
  if (config_.evaluation.outliers) visitor.emplace(*device_, *model_, config_.evaluation.batch_size, T_);
  evaluated_ =
      evaluate(*device_, *model_, device_batch_, *validation_sampler_, *evaluation_objective_,
               {config_.evaluation.batch_size, config_.evaluation.batches, [this] { return signals_->requested(); }},
               visitor ? &*visitor : nullptr);
  if (!evaluated_) return;
  say(fmt::format("step {}: validation loss {:.4f}, perplexity {:.3f}", state().step, evaluated_->loss(),
                  evaluated_->perplexity()));
  if (metrics_->has_evaluation(state().step)) return;  // a run that was complete: what it says now was written then
  nlohmann::ordered_json object = {{"step", state().step},
                                   {"validation_loss", finite_or_null(evaluated_->loss())},
                                   {"validation_perplexity", finite_or_null(evaluated_->perplexity())}};
  if (visitor) object.update(outlier_metrics(*visitor));
  metrics_->write(object);
}

/// Copies the present step and has it written while training goes on. Waits for the write before it, if that is not done.
void Trainer::save() {
  if (saved_step_ == state().step) return;
  if (!writer_->wait(std::chrono::seconds(1)) && !std::exchange(said_waiting_, true)) {
    say(fmt::format("step {} waits until step {} is saved: a larger checkpoint.interval would not", state().step,
                    saved_step_));
  }
  writer_->wait();
  report_save();
  metrics_->flush();
  Snapshot& snapshot = writer_->snapshot();
  const auto bytes = snapshot.weights.size() * sizeof(float);
  device_->copy_out(snapshot.weights.data(), model_->master().data, bytes);
  device_->copy_out(snapshot.first_moments.data(), optimizer_.first_moments().data, bytes);
  device_->copy_out(snapshot.second_moments.data(), optimizer_.second_moments().data, bytes);
  device_->synchronize();
  snapshot.state = state();
  snapshot.state.spikes = spike_window_.history();
  snapshot.plans = device_->plans();
  saved_step_ = state().step;
  writer_->start();
}

/// Says how the last write ended, if it has. Training goes on without a checkpoint that could not be written.
void Trainer::report_save() {
  const std::optional<SaveResult> result = writer_->take_result();
  if (!result) return;
  if (!result->warning.empty()) say("note: " + result->warning);
  if (result->error.empty()) {
    last_good_ = result->checkpoint;
    return;
  }
  const std::int64_t interval = config_.checkpoint.interval;
  const std::int64_t next = interval > 0 ? (result->step / interval + 1) * interval : config_.training.steps;
  complain(fmt::format(
      "step {} could not be saved: {}; {}, and training goes on to the next try at step {}", result->step, result->error,
      last_good_.empty() ? "there is no checkpoint yet" : "the last good checkpoint is " + last_good_.string(),
      std::min(next, config_.training.steps)));
  metrics_->write({{"step", state().step}, {"checkpoint_step", result->step}, {"checkpoint_error", result->error}});
}

/// Saves the present step and waits until it is on the disk. Throws Error(io) when it cannot be: there is no later try.
void Trainer::finish_saving() {
  save();
  writer_->wait();
  const std::optional<SaveResult> result = writer_->take_result();
  if (result && !result->warning.empty()) say("note: " + result->warning);
  if (result && !result->error.empty()) {
    metrics_->write({{"step", state().step}, {"checkpoint_step", result->step}, {"checkpoint_error", result->error}});
    fail(ErrorKind::io, "step {} could not be saved: {}; what was trained since {} is lost", result->step, result->error,
         last_good_.empty() ? "the start" : last_good_.string() + ", from which the same command goes on,");
  }
  if (result) last_good_ = result->checkpoint;
  metrics_->finish();
}

/// Saves, for the same command to go on later, and returns the exit code.
int Trainer::stop() {
  finish_saving();
  say(fmt::format("stopped after step {} of {}; {} is saved, and the same command goes on from there", state().step,
                  config_.training.steps, last_good_.string()));
  return signals_->requested() ? kExitRequeue : 0;
}

int Trainer::finish() {
  evaluate_now();
  if (validation_ && !evaluated_) return stop();
  finish_saving();
  say(fmt::format("\ntrained     {} steps, {} tokens in {}", state().step, count_text(static_cast<double>(state().tokens)),
                  duration_text(state().seconds)));
  if (evaluated_) {
    say(fmt::format("validation  loss {:.4f}, perplexity {:.3f}", evaluated_->loss(), evaluated_->perplexity()));
    const double unigram = unigram_perplexity(shards_.metadata(), config_.data.objective);
    if (unigram > 0) say(fmt::format("            (knowing only how frequent tokens are: {:.1f})", unigram));
  }
  say(fmt::format("checkpoint  {}", last_good_.string()));
  say(fmt::format("metrics     {}", (context_.run / "metrics.jsonl").string()));
  return 0;
}

/// Whether something done every `interval` steps (0: only at the end, which finish() sees to) is due at the present one.
bool Trainer::is_due(std::int64_t interval) const {
  const std::int64_t step = state_.step;
  return interval > 0 && step > 0 && step % interval == 0 && step < config_.training.steps;
}

int Trainer::run() {
  describe();
  if (options_.dry_run) return 0;
  begin();

  signals_.emplace();
  const std::int64_t steps = config_.training.steps;
  Loader loader(*sampler_, *objective_, config_.training.micro_batch_size, T_, config_.model.vocab_size,
                static_cast<std::uint64_t>(state().samples), loader_depth(config_));
  std::vector<Batch> batches(static_cast<std::size_t>(config_.accumulation())), following(batches.size());
  const auto load = [&](std::vector<Batch>& into) {
    const Clock::time_point begin = Clock::now();
    for (Batch& batch : into) loader.next(batch);
    window_.loading_seconds += seconds_since(begin);
  };
  bool loaded = false;

  // The evaluation that a signal cut short.
  if (is_due(config_.evaluation.interval) && !metrics_->has_evaluation(state().step)) evaluate_now();
  if (state().step < steps && signals_->requested()) return stop();

  while (state().step < steps) {
    const Clock::time_point begin = Clock::now();
    if (!std::exchange(loaded, false)) load(batches);
    const double rate =
        learning_rate(config_.schedule, config_.optimizer.learning_rate, config_.training.steps, state().updates);
    step_.start(batches, rate, state().updates, spike_window_.limits());
    if (state().step + 1 < steps) {  // while the device works
      try {
        load(following);
        loaded = true;
        device_batch_.prepare(following.front());
      } catch (const Error&) {
        // It is met again, and told, when the step begins that it belongs to.
      }
    }
    const StepControl control = step_.finish();
    const double seconds = seconds_since(begin);

    state().step += 1;
    state().samples += config_.training.global_batch_size;
    PassWork work;
    for (const Batch& batch : batches) {
      state().tokens += batch.token_count();
      window_.tokens += batch.token_count();
      if (control.skip != kSkipNoLabels) work += count_work(batch, config_.model.model_type == "opt");
    }
    window_.flops += training_flops(config_.model, work);
    batches.swap(following);
    state().updates = control.updates;
    state().seconds += seconds;
    if (control.skip != kSkipNoLabels) state().bad_steps_in_a_row = control.skip ? state().bad_steps_in_a_row + 1 : 0;
    evaluated_.reset();
    report(control, seconds);
    if (!control.skip) spike_window_.add(control.loss, control.gradient_norm);
    report_save();
    if (state().bad_steps_in_a_row >= config_.training.max_bad_steps) {
      writer_->wait();
      report_save();
      fail(ErrorKind::diverged,
           "the loss or gradient was not finite, or a spike, in {} steps in a row, up to step {}; the last checkpoint is as "
           "it was: lower optimizer.learning_rate, raise training.spike_zscore (0: off) if they were spikes, or look at the "
           "samples named above",
           state().bad_steps_in_a_row, state().step);
    }

    if (is_due(config_.evaluation.interval)) evaluate_now();
    if (is_due(config_.checkpoint.interval)) save();
    const bool enough = options_.stop_after > 0 && state().step - first_step_ >= options_.stop_after;
    if (state().step < steps && (enough || signals_->requested())) return stop();
  }
  return finish();
}

}  // namespace

int train(const TrainOptions& options) { return Trainer(options).run(); }

}  // namespace outeffhop

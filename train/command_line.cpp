#include "train/command_line.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "kernels/attention.h"
#include "kernels/device.h"
#include "train/config.h"
#include "train/config_command.h"
#include "train/eval_command.h"
#include "train/files.h"
#include "train/inspect.h"
#include "train/probe.h"
#include "train/suggestion.h"
#include "train/training.h"

namespace outeffhop {
namespace {

// With limits that can be read: CLI11's own checks name the largest double.
const CLI::Range kPositive(std::int64_t{1}, std::numeric_limits<std::int64_t>::max()),
    kNotNegative(std::int64_t{0}, std::numeric_limits<std::int64_t>::max());

constexpr const char* kExitCodes =
    "Exit codes: 0 done, 1 a bug of ours, 2 command line or configuration, 3 token shards or batch file, 4 checkpoint,\n"
    "5 file system, 6 not in this build or machine, 7 diverged, 75 stopped by SIGTERM, SIGINT or SIGUSR1 and saved:\n"
    "start it again; 128 + signal: stopped by a second such signal, at once and without saving";

std::string version_text() {
  const AttentionBuild build = attention_build();
  std::string text = fmt::format("outeffhop {}\n", OUTEFFHOP_VERSION);
  text += build.vanilla_only ? "attention: built for the ordinary softmax alone (n = 0 at compile time)\n"
                             : "attention: vanilla, softmax1, softmax_n(N)\n";
  text += fmt::format("default attn_softmax: {}\n", build.default_softmax);
  text += fmt::format("built for: {}\n", built_backends());
  return text + "device: " + make_device({})->description();
}

void add_device_options(CLI::App* command, std::string* device) {
  command->add_option("--device", *device, "cpu; cuda; or auto: a GPU that this build can use where there is one, else the CPU")->capture_default_str();
}

void add_eager_flag(CLI::App* command, bool* eager) {
  command->add_flag("--eager", *eager, "for profilers: every op is launched by itself, inside named ranges; same results");
}

struct TrainArguments {
  TrainOptions options;
  std::string config;
  std::vector<std::string> changes;
  std::string out;
};

void declare_train(CLI::App& app, TrainArguments& a) {
  CLI::App* command = app.add_subcommand("train", "Train a model");
  command->add_option("--config", a.config, "JSON configuration (configs/*.json)")->required()->type_name("FILE");
  command->add_option("--set", a.changes, "change one key, as in training.steps=1000; may be repeated")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
  command->add_option("--out", a.out, "run directory (the key \"output\")")->type_name("DIR");
  command
      ->add_option("--resume", a.options.resume,
                   "auto: go on from the run's newest sound checkpoint, if there is one; never; or DIR")
      ->capture_default_str();
  command
      ->add_option("--stop-after", a.options.stop_after,
                   "save and stop after N steps of this invocation; the schedule stays")
      ->type_name("N")
      ->check(kPositive);
  command->add_flag("--dry-run", a.options.dry_run,
                    "print parameters, FLOPs, memory, steps and tokens to come, time a step, and stop");
  command->add_flag("--quiet", a.options.quiet, "print nothing but errors");
  add_device_options(command, &a.options.device);
  add_eager_flag(command, &a.options.eager);
  command->footer(
      "Examples:\n"
      "  outeffhop train --config configs/bert_mini.json --out runs/mini\n"
      "  outeffhop train --config configs/opt_mini.json --out runs/vanilla --set model.attn_softmax=vanilla --set "
      "training.seed=1");
}

void declare_eval(CLI::App& app, EvalOptions& a, std::string& json) {
  CLI::App* command = app.add_subcommand("eval", "Loss, perplexity and outlier metrics of a checkpoint");
  command->add_option("--checkpoint", a.checkpoint, "a model directory, or a run (its newest checkpoint)")
      ->required()
      ->type_name("DIR");
  command->add_option("--data", a.data, "token shards to evaluate on")->required()->type_name("GLOB");
  command->add_flag("--outliers", a.outliers, "also infinity norms and kurtosis of activations");
  command->add_option("--batches", a.batches, "batches to evaluate; 0: all")
      ->check(kNotNegative)
      ->capture_default_str();
  command->add_option("--batch-size", a.batch_size, "sequences a batch")->check(kPositive)->capture_default_str();
  command->add_option("--sequence-length", a.sequence_length, "tokens a sequence; default: as trained")
      ->check(kPositive);
  command->add_option("--sampling", a.sampling, "stream or documents; default: as trained")
      ->check(CLI::IsMember({"stream", "documents"}));
  command->add_option("--seed", a.seed, "of the masking; default: evaluation.seed of the run")
      ->check(kNotNegative);
  command->add_option("--dtype", a.dtype, "fp32 or bf16")->capture_default_str();
  command->add_option("--threads", a.threads, "CPU threads; 0: all")->check(kNotNegative)->capture_default_str();
  command->add_option("--json", json, "also write the result, module by module")->type_name("FILE");
  add_device_options(command, &a.device);
  add_eager_flag(command, &a.eager);
  command->footer(
      "Example:\n"
      "  outeffhop eval --checkpoint runs/mini --data 'corpora/bert/*_val_*.bin' --outliers --json mini.json");
}

void declare_probe(CLI::App& app, ProbeOptions& a) {
  CLI::App* command = app.add_subcommand("probe", "Loss, logits, activations and gradients of one batch, in a file");
  command->add_option("--checkpoint", a.checkpoint, "a model directory, or a run")->required()->type_name("DIR");
  command->add_option("--batch", a.batch, "safetensors with input_ids, attention_mask, token_type_ids, labels")
      ->required()
      ->type_name("FILE");
  command->add_option("--out", a.out, "safetensors to write")->required()->type_name("FILE");
  command->add_flag("--attention", a.attention, "also attention scores and probabilities");
  command->add_option("--dtype", a.dtype, "fp32 or bf16")->capture_default_str();
  command->add_option("--threads", a.threads, "CPU threads; 0: all")->check(kNotNegative)->capture_default_str();
  add_device_options(command, &a.device);
  command->footer(
      "Example:\n"
      "  outeffhop probe --checkpoint runs/mini --batch batch.safetensors --out probe.safetensors");
}

struct ConfigArguments {
  std::string config;
  std::vector<std::string> changes;
};

void declare_config(CLI::App& app, ConfigArguments& a) {
  CLI::App* command = app.add_subcommand("config", "Print a whole configuration, every key with what it means");
  command->add_option("--config", a.config, "JSON configuration to complete; default: the defaults")->type_name("FILE");
  command->add_option("--set", a.changes, "change one key; may be repeated")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
  command->footer(
      "It is a file that train --config reads: JSON with comments. \"auto\" stands where the data decides.\n"
      "Examples:\n"
      "  outeffhop config > mine.json\n"
      "  outeffhop config --set model.model_type=opt          # defaults that depend on the model type\n"
      "  outeffhop config --config configs/bert_mini.json --set training.steps=5000");
}

struct InspectArguments {
  std::string path;
  bool json = false;
};

void declare_inspect(CLI::App& app, InspectArguments& a) {
  CLI::App* command = app.add_subcommand("inspect", "What a shard, a checkpoint or a run holds, and whether it is sound");
  command
      ->add_option("path", a.path,
                   "a token shard, a directory or pattern of shards, a .safetensors file, a model directory or "
                   "checkpoint, or a run directory")
      ->required()
      ->type_name("PATH");
  command->add_flag("--json", a.json, "print JSON");
  command->footer(
      "What is damaged is told as far as it can be read, with exit code 3 (shards) or 4 (checkpoints).\n"
      "Examples:\n"
      "  outeffhop inspect runs/mini                                     # how far it is, which checkpoints are sound\n"
      "  outeffhop inspect runs/mini/checkpoints/step_00001000\n"
      "  outeffhop inspect runs/mini/checkpoints/step_00001000/model.safetensors\n"
      "  outeffhop inspect 'corpora/bert/*_train_*.bin' --json");
}

/// A path that will be written into a JSON file.
const std::string& json_path(const char* option, const std::string& path) {
  if (is_utf8(path)) return path;
  fail(ErrorKind::usage, "{} {}: the path is not UTF-8 and so fits no JSON file: rename it", option,
       dump_text(nlohmann::json(path)));
}

Config read_config_arguments(const std::string& file, const std::vector<std::string>& changes) {
  std::vector<Override> overrides;
  for (const std::string& change : changes) overrides.push_back(parse_override(change));
  return file.empty() ? read_config(nlohmann::json::object(), "--set", overrides) : load_config(file, overrides);
}

/// Writes the whole result of a command: one that reaches nobody is an error.
void print_result(const std::string& text) {
  if (std::fputs(text.c_str(), stdout) >= 0 && std::fflush(stdout) == 0) return;
  fail(ErrorKind::io, "cannot write the result to standard output: {}", std::strerror(errno));
}

int train_command(TrainArguments& a) {
  std::signal(SIGPIPE, SIG_IGN);  // who read the progress may go: what counts is in files
  a.options.config = read_config_arguments(a.config, a.changes);
  if (!a.out.empty()) a.options.config.output = json_path("--out", a.out);
  json_path("--resume", a.options.resume);
  return train(a.options);
}

int inspect_command(const InspectArguments& a) {
  const Inspection found = inspect(a.path);
  using Json = nlohmann::ordered_json;
  fmt::print("{}",
             a.json ? found.facts.dump(2, ' ', false, Json::error_handler_t::replace) + "\n" : facts_text(found.facts));
  return found.exit_code;
}

int eval_command(const EvalOptions& options, const std::string& json) {
  if (!json.empty()) {
    json_path("--checkpoint", options.checkpoint.string());
    json_path("--data", options.data);
  }
  const nlohmann::ordered_json result = run_eval(options);
  if (!json.empty()) replace_file(json, result.dump(2) + "\n");
  print_result(eval_text(result));
  return 0;
}

}  // namespace

int run_command_line(int argc, const char* const* argv) {
  CLI::App app("Pretrains BERT and OPT with outlier-efficient Hopfield attention (softmax1), and measures outliers",
               "outeffhop");
  app.footer(kExitCodes);
  app.require_subcommand(0, 1);
  bool version = false;
  app.add_flag("--version", version, "print version, attention build, backends and device");
  TrainArguments train_arguments;
  EvalOptions eval_options;
  std::string eval_json;
  ProbeOptions probe_options;
  ConfigArguments config_arguments;
  InspectArguments inspect_arguments;
  declare_train(app, train_arguments);
  declare_eval(app, eval_options, eval_json);
  declare_probe(app, probe_options);
  declare_config(app, config_arguments);
  declare_inspect(app, inspect_arguments);

  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& e) {
    return app.exit(e);  // --help
  } catch (const CLI::ParseError& e) {
    const std::string unknown = unknown_word(app, argc, argv);
    fail(ErrorKind::usage, "{} (outeffhop --help tells what there is)", unknown.empty() ? e.what() : unknown);
  }
  if (version) {
    print_result(version_text() + "\n");
    return 0;
  }
  if (app.got_subcommand("train")) return train_command(train_arguments);
  if (app.got_subcommand("eval")) return eval_command(eval_options, eval_json);
  if (app.got_subcommand("probe")) {
    probe(probe_options);
    return 0;
  }
  if (app.got_subcommand("inspect")) return inspect_command(inspect_arguments);
  if (app.got_subcommand("config")) {
    print_result(commented_config(read_config_arguments(config_arguments.config, config_arguments.changes)));
    return 0;
  }
  fail(ErrorKind::usage, "no command: outeffhop train, eval, probe, inspect or config (outeffhop --help tells more)");
}

}  // namespace outeffhop

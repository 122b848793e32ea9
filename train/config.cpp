#include "train/config.h"

#include <limits>
#include <optional>
#include <utility>

#include "kernels/attention.h"
#include "kernels/error.h"
#include "train/files.h"
#include "train/huggingface_config.h"

namespace outeffhop {
namespace {

constexpr double kUnbounded = std::numeric_limits<double>::infinity();

/// The value of a --set: JSON, or else the text itself.
nlohmann::json value_of(const Override& change) {
  try {
    return parse_json(change.value, change.key, {.kind = ErrorKind::usage});
  } catch (const Error&) {
    return change.value;
  }
}

void apply(nlohmann::json& values, const Override& change) {
  const std::size_t dot = change.key.find('.');
  if (dot == std::string::npos) {
    values[change.key] = value_of(change);
    return;
  }
  const std::string name = change.key.substr(dot + 1);
  if (name.find('.') != std::string::npos) {
    fail(ErrorKind::usage, "--set {}={}: a key has one dot at most, as in training.steps", change.key, change.value);
  }
  nlohmann::json& block = values[change.key.substr(0, dot)];
  if (!block.is_object() && !block.is_null()) {
    fail(ErrorKind::usage, "--set {}={}: what comes before \"{}\" is not an object", change.key, change.value, name);
  }
  block[name] = value_of(change);
}

/// Nothing where `values` does not say.
std::optional<std::string> model_type_of(const nlohmann::json& values, const std::string& origin) {
  const auto model = values.find("model");
  if (model == values.end() || !model->is_object() || !model->contains("model_type")) return std::nullopt;
  const nlohmann::json& type = (*model)["model_type"];
  if (type == "bert" || type == "opt") return type.get<std::string>();
  fail(ErrorKind::usage, "{}: \"model.model_type\" is {}, but must be one of \"bert\", \"opt\"", origin, dump_text(type));
}

}  // namespace

Schema describe(Config& c) {
  Schema s;
  s.block("model");
  describe_model(s, c.model);

  s.block("data");
  s.text("train", &c.data.train, "token shards to train on, a glob pattern").resume(OnResume::free);
  s.text("validation", &c.data.validation, "token shards to evaluate on, a glob pattern; empty: none")
      .resume(OnResume::free);
  s.integer("sequence_length", &c.data.sequence_length, 2, "tokens a sequence");
  s.choice("sampling", &c.data.sampling, {"stream", "documents"},
           "stream: windows of sequence_length tokens, one after the other; documents: no sequence runs on into another "
           "document");
  s.boolean("packing", &c.data.packing,
            "documents: short ones share a row, without attention from one to the other; false: a row each, padded");
  s.integer_or_auto("document_delimiter", &c.data.document_delimiter, 0,
                    "documents: the token that parts them; auto: from the .idx beside each shard, else from the metadata");
  s.choice("delimiter_at", &c.data.delimiter_at, {"start", "end"},
           "documents: whether that token is the first or the last of a document");
  s.choice("objective", &c.data.objective, {"auto", "masked_lm", "causal_lm"},
           "auto: masked_lm for bert, causal_lm for opt");
  s.number("mlm_probability", &c.data.mlm_probability, kAboveZero, 1.0, "masked_lm: share of tokens to predict");
  s.integer_or_auto("mask_token_id", &c.data.mask_token_id, 0, "masked_lm: the [MASK] token; auto: from the metadata");
  s.integers_or_auto("special_token_ids", &c.data.special_token_ids, &c.data.special_tokens_known,
                     "masked_lm: tokens never masked; auto: from the metadata");

  s.block("training");
  s.integer("steps", &c.training.steps, 1, "steps of the whole run").resume(OnResume::free);
  s.integer("global_batch_size", &c.training.global_batch_size, 1, "sequences a step");
  s.integer_or_auto("micro_batch_size", &c.training.micro_batch_size, 1,
                    "sequences at a time; must divide global_batch_size; auto: all of them")
      .resume(OnResume::noted);
  s.integer("seed", &c.training.seed, 0, "of initial weights, data order, masking and dropout");
  s.choice("dtype", &c.training.dtype, {"fp32", "bf16"}, "storage of weights and activations");
  s.choice("recompute", &c.training.recompute, {"none", "cheap", "block"},
           "activations made again for the backward, to the same bits, instead of kept; cheap: those that an elementwise op "
           "makes; block: all but each layer's input, for most of another forward")
      .resume(OnResume::free);
  s.integer("threads", &c.training.threads, 0, "CPU threads; 0: all that the process may use").resume(OnResume::noted);
  s.integer("max_bad_steps", &c.training.max_bad_steps, 1,
            "steps in a row that may be skipped, for a loss or gradient that is not finite or a spike, before it stops")
      .resume(OnResume::free);
  s.number("spike_zscore", &c.training.spike_zscore, 0.0, kUnbounded,
           "skip a step whose loss or gradient norm is so many standard deviations above the mean; 0: never")
      .resume(OnResume::noted);
  s.integer("spike_window", &c.training.spike_window, 10,
            "good steps that mean and deviation are taken over; before there are so many no step is a spike")
      .resume(OnResume::noted);

  s.block("optimizer");
  s.number("learning_rate", &c.optimizer.learning_rate, 0.0, kUnbounded, "peak learning rate of AdamW")
      .resume(OnResume::noted);
  s.number("beta1", &c.optimizer.beta1, 0.0, 0.9999999, "decay of the first moment");
  s.number("beta2", &c.optimizer.beta2, 0.0, 0.9999999, "decay of the second moment");
  s.number("epsilon", &c.optimizer.epsilon, 0.0, kUnbounded, "added to the root of the second moment");
  s.number("weight_decay", &c.optimizer.weight_decay, 0.0, kUnbounded, "of weights and embeddings; biases have none");
  s.boolean("wd_LN_gamma", &c.optimizer.wd_LN_gamma, "layer norm weights decay too");
  s.number("max_gradient_norm", &c.optimizer.max_gradient_norm, 0.0, kUnbounded, "clip the global gradient norm; 0: never");

  s.block("schedule");
  s.choice("type", &c.schedule.type, {"linear", "cosine", "constant", "wsd"},
           "course of the learning rate after the warm-up")
      .resume(OnResume::noted);
  s.integer("warmup_steps", &c.schedule.warmup_steps, 0, "updates until the peak").resume(OnResume::noted);
  s.number("final_lr_fraction", &c.schedule.final_lr_fraction, 0.0, 1.0, "of the peak, at the end").resume(OnResume::noted);
  s.integer("decay_steps", &c.schedule.decay_steps, 0, "wsd: updates of the final decay").resume(OnResume::noted);

  s.block("evaluation");
  s.integer("interval", &c.evaluation.interval, 0, "steps between evaluations; 0: only at the end").resume(OnResume::free);
  s.integer("batches", &c.evaluation.batches, 0, "batches an evaluation; 0: the whole set").resume(OnResume::free);
  s.integer_or_auto("batch_size", &c.evaluation.batch_size, 1, "sequences a batch; auto: the micro-batch")
      .resume(OnResume::free);
  s.integer("seed", &c.evaluation.seed, 0, "of the masking in evaluation").resume(OnResume::free);
  s.boolean("outliers", &c.evaluation.outliers, "each evaluation also logs inf norms by layer and kurtosis; slows it down")
      .resume(OnResume::free);

  s.block("checkpoint");
  s.integer("interval", &c.checkpoint.interval, 0, "steps between checkpoints; 0: only at the end").resume(OnResume::free);
  s.integer("keep_last", &c.checkpoint.keep_last, 1, "newest checkpoints kept").resume(OnResume::free);
  s.integer("keep_every", &c.checkpoint.keep_every, 0, "also keep those at multiples of this step; 0: none")
      .resume(OnResume::free);

  s.block("logging");
  s.integer("interval", &c.logging.interval, 1, "steps between logged steps").resume(OnResume::free);

  s.block("");
  s.text("output", &c.output, "run directory").resume(OnResume::free);
  return s;
}

Config default_config(const std::string& model_type) {
  Config config;
  config.model = default_model_config(model_type);
  config.model.vocab_size = kAuto;
  config.model.pad_token_id = kAuto;
  return config;
}

Override parse_override(const std::string& text) {
  const std::size_t equals = text.find('=');
  if (equals == std::string::npos || equals == 0) {
    fail(ErrorKind::usage, "--set {}: expected KEY=VALUE, as in --set training.steps=1000", text);
  }
  return {text.substr(0, equals), text.substr(equals + 1)};
}

Config load_config(const std::filesystem::path& path, const std::vector<Override>& overrides) {
  return parse_config(read_file(path), path.string(), overrides);
}

Config parse_config(std::string_view text, const std::string& origin, const std::vector<Override>& overrides) {
  return read_config(parse_json(text, origin, {.kind = ErrorKind::usage, .comments = true}), origin, overrides);
}

Config read_config(const nlohmann::json& values, const std::string& origin, const std::vector<Override>& overrides) {
  if (!values.is_object()) fail(ErrorKind::usage, "{}: expected a JSON object, got {}", origin, values.type_name());
  // Changes stay apart from the file: a key may be spelt differently in the two, and the later word counts.
  nlohmann::json changes = nlohmann::json::object();
  for (const Override& change : overrides) apply(changes, change);
  const std::optional<std::string> changed_type = model_type_of(changes, "--set");
  const std::string type = changed_type ? *changed_type : model_type_of(values, origin).value_or("bert");

  Config config = default_config(type);
  const Schema schema = describe(config);
  schema.read(values, origin);
  schema.read(changes, "--set");
  return config;
}

void resolve(Config& config, const ShardMetadata& metadata) {
  ModelConfig& model = config.model;
  const ModelConfig defaults = default_model_config(model.model_type);
  if (model.vocab_size == kAuto) {
    if (metadata.vocab_size == 0) {
      fail(ErrorKind::usage,
           "model.vocab_size is not set, and there is no metadata.json beside the shards of data.train ({}) to "
           "take it from: set it",
           config.data.train);
    }
    model.vocab_size = metadata.vocab_size;
  }
  if (metadata.vocab_size > model.vocab_size) {
    fail(ErrorKind::usage, "model.vocab_size is {}, but the shards of data.train ({}) use a vocabulary of {}",
         model.vocab_size, config.data.train, metadata.vocab_size);
  }
  // llm.c's shards say nothing and hold no padding: OPT's usual 1 would be a word like any other, which must learn.
  if (model.pad_token_id == kAuto) {
    model.pad_token_id = metadata.present || model.model_type == "opt" ? metadata.pad_id : defaults.pad_token_id;
  }
  if (model.model_type != "opt" && model.word_embed_proj_dim != 0) {
    fail(ErrorKind::usage, "model.word_embed_proj_dim is {}, but only OPT has such a projection", model.word_embed_proj_dim);
  }
  if (model.word_embed_proj_dim == model.hidden_size) model.word_embed_proj_dim = 0;
  if (model.model_type == "opt" && model.layer_norm_eps != kOptLayerNormEpsilon) {
    fail(ErrorKind::usage,
         "model.layer_norm_eps is {}, but OPT must have {}: its config.json cannot say anything else to transformers",
         model.layer_norm_eps, kOptLayerNormEpsilon);
  }
  validate(model);
  softmax_constant(model.attn_softmax);

  const bool is_bert = model.model_type == "bert";
  if (config.data.objective == "auto") config.data.objective = is_bert ? "masked_lm" : "causal_lm";
  if ((config.data.objective == "masked_lm") != is_bert) {
    fail(ErrorKind::usage, "data.objective is \"{}\", but model.model_type \"{}\" learns \"{}\"", config.data.objective,
         model.model_type, is_bert ? "masked_lm" : "causal_lm");
  }
  if (config.data.sequence_length > model.max_position_embeddings) {
    fail(ErrorKind::usage, "data.sequence_length is {}, but model.max_position_embeddings is {}",
         config.data.sequence_length, model.max_position_embeddings);
  }
  if (config.data.mask_token_id == kAuto && metadata.mask_id >= 0) config.data.mask_token_id = metadata.mask_id;
  if (config.data.objective == "masked_lm" && config.data.mask_token_id < 0) {
    fail(ErrorKind::usage,
         "data.mask_token_id is not set, and there is no metadata.json beside the shards of data.train ({}) to "
         "take it from: set it",
         config.data.train);
  }
  if (config.data.mask_token_id >= model.vocab_size) {
    fail(ErrorKind::usage, "data.mask_token_id is {}, beyond model.vocab_size {}", config.data.mask_token_id,
         model.vocab_size);
  }
  if (!config.data.special_tokens_known) {
    if (config.data.objective == "masked_lm" && metadata.special_ids.empty()) {
      fail(ErrorKind::usage,
           "data.special_token_ids is not set, and there is no metadata.json beside the shards of data.train ({}) that "
           "lists them: give the ids that must never be masked ([CLS], [SEP], padding), or [] where there are none",
           config.data.train);
    }
    config.data.special_token_ids.assign(metadata.special_ids.begin(), metadata.special_ids.end());
    config.data.special_tokens_known = true;
  }
  for (const std::int64_t id : config.data.special_token_ids) {
    if (id >= model.vocab_size) {
      fail(ErrorKind::usage, "data.special_token_ids names {}, beyond model.vocab_size {}", id, model.vocab_size);
    }
  }

  if (config.data.document_delimiter >= model.vocab_size) {
    fail(ErrorKind::usage, "data.document_delimiter is {}, beyond model.vocab_size {}", config.data.document_delimiter,
         model.vocab_size);
  }

  TrainingConfig& training = config.training;
  constexpr std::int64_t kLongestWindow = 100'000;  // each checkpoint holds it, each step reads it
  if (training.spike_window > kLongestWindow) {
    fail(ErrorKind::usage, "training.spike_window is {}, expected at most {} steps", training.spike_window, kLongestWindow);
  }
  if (training.micro_batch_size == kAuto) training.micro_batch_size = training.global_batch_size;
  if (training.global_batch_size % training.micro_batch_size != 0) {
    fail(ErrorKind::usage, "training.micro_batch_size is {}, which does not divide training.global_batch_size {}",
         training.micro_batch_size, training.global_batch_size);
  }
  if (config.evaluation.batch_size == kAuto) config.evaluation.batch_size = training.micro_batch_size;
  check_batch_tokens("training.micro_batch_size", training.micro_batch_size, config.data.sequence_length);
  check_batch_tokens("evaluation.batch_size", config.evaluation.batch_size, config.data.sequence_length);
  if (training.threads > std::numeric_limits<int>::max()) {
    fail(ErrorKind::usage, "training.threads is {}, more than any machine has; 0 takes all there are", training.threads);
  }
  std::int64_t tokens = 0;  // of the run
  if (__builtin_mul_overflow(training.steps, training.global_batch_size, &tokens) ||
      __builtin_mul_overflow(tokens, config.data.sequence_length, &tokens)) {
    fail(ErrorKind::usage,
         "training.steps is {}: with {} sequences of {} tokens a step the tokens of the run are more than 64 bits count; "
         "give fewer",
         training.steps, training.global_batch_size, config.data.sequence_length);
  }
  if (config.schedule.warmup_steps > training.steps) {
    fail(ErrorKind::usage, "schedule.warmup_steps is {}, more than training.steps {}", config.schedule.warmup_steps,
         training.steps);
  }
  if (config.schedule.type == "wsd") {
    if (config.schedule.decay_steps + config.schedule.warmup_steps > training.steps) {
      fail(ErrorKind::usage, "schedule.warmup_steps {} and schedule.decay_steps {} are together more than training.steps {}",
           config.schedule.warmup_steps, config.schedule.decay_steps, training.steps);
    }
  } else if (config.schedule.decay_steps != 0) {
    fail(ErrorKind::usage, "schedule.decay_steps is {}, but only schedule.type \"wsd\" uses it",
         config.schedule.decay_steps);
  }
}

void check_batch_tokens(const char* key, std::int64_t batch_size, std::int64_t sequence_length) {
  constexpr std::int64_t kLargest = std::numeric_limits<std::int32_t>::max();  // rows of a batch are numbered in 32 bits
  if (batch_size > kLargest / sequence_length) {
    fail(ErrorKind::usage, "{} is {}, but at {} tokens a sequence at most {} fit a batch", key, batch_size, sequence_length,
         kLargest / sequence_length);
  }
}

nlohmann::ordered_json write_config(const Config& config) {
  Config copy = config;
  return describe(copy).write();
}

std::vector<std::string> check_resume(const nlohmann::json& before, const Config& now) {
  Config copy = now;
  const Schema schema = describe(copy);
  // A key that an older checkpoint does not know had what is now its default.
  Config standard;
  standard.model = default_model_config(now.model.model_type);
  const Schema standards = describe(standard);

  std::vector<std::string> notes;
  for (std::size_t i = 0; i < schema.keys().size(); ++i) {
    const Schema::Key& key = schema.keys()[i];
    if (key.on_resume == OnResume::free) continue;
    const nlohmann::json present = key.write();
    nlohmann::json earlier = standards.keys()[i].standard;
    if (key.block.empty()) {
      if (before.contains(key.name)) earlier = before[key.name];
    } else if (before.contains(key.block) && before[key.block].contains(key.name)) {
      earlier = before[key.block][key.name];
    }
    if (earlier == present) continue;
    if (key.on_resume == OnResume::fixed) {
      fail(ErrorKind::usage,
           "cannot continue the run: \"{}\" was {} and is now {}; set it back, or start another run with --out", key.path(),
           dump_text(earlier), dump_text(present));
    }
    notes.push_back(fmt::format("{} was {} and is now {}", key.path(), dump_text(earlier), dump_text(present)));
  }
  return notes;
}

DType dtype_of(const std::string& name) {
  if (name == "fp32") return DType::f32;
  if (name == "bf16") return DType::bf16;
  fail(ErrorKind::usage, "dtype is \"{}\", but must be one of \"fp32\", \"bf16\"", name);
}

Recompute recompute_of(const std::string& name) {
  if (name == "none") return Recompute::none;
  if (name == "cheap") return Recompute::cheap;
  if (name == "block") return Recompute::block;
  fail(ErrorKind::usage, "training.recompute is \"{}\", but must be one of \"none\", \"cheap\", \"block\"", name);
}

}  // namespace outeffhop

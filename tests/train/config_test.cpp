#include "train/config.h"

#include <filesystem>

#include "kernels/attention.h"
#include "tests/train/train_support.h"
#include "train/huggingface_config.h"
#include "train/schema.h"

namespace outeffhop {
namespace {

using Catch::Matchers::Contains;
using test::caught_error;

ShardMetadata metadata() {
  ShardMetadata m;
  m.present = true;
  m.vocab_size = 64;
  m.special_ids = {0, 1, 2, 3};
  m.mask_id = 3;
  m.pad_id = 1;
  return m;
}

nlohmann::json tiny(const std::string& model_type = "bert") {
  return {{"model", {{"model_type", model_type}, {"hidden_size", 32}, {"num_attention_heads", 4}}},
          {"data", {{"train", "nowhere"}}}};
}

std::string refusal(nlohmann::json values, const std::vector<Override>& overrides = {}) {
  const Error e = caught_error([&] {
    Config config = read_config(values, "run.json", overrides);
    resolve(config, metadata());
  });
  CHECK(e.kind() == ErrorKind::usage);
  return e.what();
}

TEST_CASE("An unknown key is named together with the nearest known one") {
  CHECK_THAT(refusal(tiny(), {{"training.stpes", "3"}}),
             Contains("--set: ") && Contains("\"training.stpes\"") && Contains("did you mean \"training.steps\"?"));
  CHECK_THAT(refusal(tiny(), {{"optimizer.weight_dacay", "3"}}), Contains("did you mean \"optimizer.weight_decay\"?"));
  CHECK_THAT(refusal(tiny(), {{"training.learning_rate", "3"}}), Contains("did you mean \"optimizer.learning_rate\"?"));
  CHECK_THAT(refusal(tiny(), {{"modle.hidden_size", "3"}}), Contains("\"modle\"") && Contains("did you mean \"model\"?"));
  CHECK_THAT(refusal(tiny(), {{"model.zyxwv", "3"}}), Contains("is not a key") && !Contains("did you mean"));
}

TEST_CASE("A wrong type names key, value and expectation") {
  CHECK_THAT(refusal(tiny(), {{"training.steps", "many"}}),
             Contains("\"training.steps\" is \"many\", but must be an integer, at least 1"));
  CHECK_THAT(refusal(tiny(), {{"training.steps", "1.5"}}), Contains("is 1.5, but must be an integer"));
  CHECK_THAT(refusal(tiny(), {{"training.steps", "0"}}), Contains("is 0, but must be an integer, at least 1"));
  CHECK_THAT(refusal(tiny(), {{"data.mlm_probability", "1.5"}}), Contains("must be a number above 0, at most 1"));
  CHECK_THAT(refusal(tiny(), {{"data.mlm_probability", "0"}}), Contains("must be a number above 0, at most 1"));
  CHECK_THAT(refusal(tiny(), {{"model.layer_norm_eps", "0.0"}}), Contains("must be a number above 0, at most 1"));
  CHECK_THAT(refusal(tiny(), {{"output", "runs/\xff"}}), Contains("\"output\"") && Contains("not UTF-8"));
  CHECK_THAT(refusal(tiny(), {{"training.steps", "\xff"}}), Contains("\"training.steps\"") && Contains("not UTF-8"));
  CHECK_THAT(refusal(tiny(), {{"optimizer.wd_LN_gamma", "1"}}), Contains("must be true or false"));
  CHECK_THAT(refusal(tiny(), {{"training.recompute", "layers"}}),
             Contains("\"training.recompute\" is \"layers\"") && Contains("\"none\", \"cheap\", \"block\""));
  CHECK_THAT(refusal(tiny(), {{"schedule.type", "step"}}), Contains("\"linear\", \"cosine\", \"constant\", \"wsd\""));
  CHECK_THAT(refusal(tiny(), {{"data.special_token_ids", "[1, -2]"}}), Contains("list of integers"));
  CHECK_THAT(refusal(tiny(), {{"training", "5"}}), Contains("\"training\" is 5, but must be an object"));
  CHECK_THAT(refusal(tiny(), {{"model.model_type", "gpt2"}}), Contains("\"bert\", \"opt\""));
}

TEST_CASE("Values that make no sense together are refused by name") {
  CHECK_THAT(refusal(tiny(), {{"training.spike_window", "1000000000000"}}),
             Contains("training.spike_window is 1000000000000") && Contains("at most 100000"));
  CHECK_THAT(refusal(tiny(), {{"training.global_batch_size", "10"}, {"training.micro_batch_size", "4"}}),
             Contains("training.micro_batch_size is 4, which does not divide training.global_batch_size 10"));
  CHECK_THAT(refusal(tiny(), {{"data.sequence_length", "1024"}}),
             Contains("data.sequence_length is 1024, but model.max_position_embeddings is 512"));
  CHECK_THAT(refusal(tiny(), {{"model.num_attention_heads", "5"}}), Contains("num_attention_heads"));
  CHECK_THAT(refusal(tiny(), {{"schedule.warmup_steps", "5000"}}), Contains("schedule.warmup_steps is 5000, more than"));
  CHECK_THAT(refusal(tiny(), {{"data.objective", "causal_lm"}}), Contains("data.objective is \"causal_lm\""));
  CHECK_THAT(refusal(tiny(), {{"model.vocab_size", "60"}}),
             Contains("model.vocab_size is 60") && Contains("vocabulary of 64"));
  CHECK_THAT(refusal(tiny(), {{"model.attn_softmax", "softmax2"}}), Contains("attn_softmax") && Contains("softmax_n(N)"));
  CHECK_THAT(refusal(tiny(), {{"schedule.decay_steps", "5"}}), Contains("only schedule.type \"wsd\""));
  CHECK_THAT(refusal(tiny(), {{"model.word_embed_proj_dim", "16"}}), Contains("only OPT"));
  CHECK_THAT(refusal(tiny("opt"), {{"model.layer_norm_eps", "1e-6"}}), Contains("model.layer_norm_eps is 1e-06"));
}

TEST_CASE("A JSON file may hold comments, and no key twice") {
  const test::TemporaryDirectory directory;
  const auto file = directory.path() / "run.json";
  write_durable(file, "{ // a comment\n \"training\": {\"steps\": 1e3} /* another */ }");
  CHECK(load_config(file, {}).training.steps == 1000);
  write_durable(file, "{\"training\": {\"steps\": 1, \"steps\": 2}}");
  CHECK_THAT(caught_error([&] { load_config(file, {}); }).what(), Contains("\"steps\" stands twice"));
  write_durable(file, "{\"training\": {\"steps\": }}");
  CHECK_THAT(caught_error([&] { load_config(file, {}); }).what(), Contains("not valid JSON") && Contains("line 1"));
  CHECK(caught_error([&] { load_config(directory.path() / "none.json", {}); }).kind() == ErrorKind::io);
}

TEST_CASE("--set takes JSON and bare strings") {
  const Config config = read_config(
      tiny(), "run.json",
      {{"output", "runs/7"}, {"training.seed", "7"}, {"training.dtype", "bf16"}, {"data.special_token_ids", "[5, 6]"}});
  CHECK(config.output == "runs/7");
  CHECK(config.training.seed == 7);
  CHECK(config.training.dtype == "bf16");
  CHECK(config.data.special_token_ids == std::vector<std::int64_t>{5, 6});
  CHECK(parse_override("a.b=c=d").value == "c=d");
  CHECK(caught_error([] { parse_override("nothing"); }).kind() == ErrorKind::usage);
  CHECK_THAT(refusal(tiny(), {{"a.b.c", "1"}}), Contains("one dot at most"));
  CHECK_THAT(refusal(tiny(), {{"training", "5"}, {"training.steps", "1"}}), Contains("\"steps\" is not an object"));
}

TEST_CASE("Keys and values of any length and depth end in a sentence, soon") {
  const std::string long_text(1'000'000, 'x'), deep(1'000'000, '[');
  CHECK_THAT(refusal(tiny(), {{"training." + long_text, "1"}}), Contains("is not a key") && !Contains("did you mean"));
  CHECK_THAT(refusal(tiny(), {{long_text, "1"}}), Contains("is not a key"));
  CHECK_THAT(refusal(tiny(), {{std::string(1'000'000, '.'), "1"}}), Contains("one dot at most"));
  CHECK_THAT(refusal(tiny(), {{"training.steps", deep + std::string(1'000'000, ']')}}), Contains("must be an integer"));
  CHECK_THAT(caught_error([&] { parse_config("{\"model\": " + deep, "run.json"); }).what(), Contains("more than 64"));
}

TEST_CASE("--set changes a key however it and the file spell it") {
  nlohmann::json file = tiny("opt");
  file["model"]["hidden_dropout_prob"] = 0.2;
  file["model"]["ffn_dim"] = 64;
  const Config config = read_config(file, "run.json", {{"model.dropout", "0"}, {"model.intermediate_size", "96"}});
  CHECK(config.model.hidden_dropout_prob == 0.0);
  CHECK(config.model.intermediate_size == 96);
  CHECK(read_config(file, "run.json").model.hidden_dropout_prob == 0.2);
  // What the file says of the model's type decides the defaults only where --set does not.
  const Config other = read_config(tiny("bert"), "run.json", {{"model.model_type", "opt"}});
  CHECK(other.model.model_type == "opt");
  CHECK(other.model.hidden_act == "relu");
  CHECK(read_config(tiny("opt"), "run.json", {{"model.attn_softmax", "vanilla"}}).model.hidden_act == "relu");

  file["model"]["dropout"] = 0.1;
  CHECK_THAT(refusal(file), Contains("run.json") && Contains("\"dropout\" and \"hidden_dropout_prob\" of \"model\""));
  CHECK_THAT(refusal(tiny(), {{"model.dropout", "0"}, {"model.hidden_dropout_prob", "0.1"}}),
             Contains("--set: ") && Contains("two spellings"));
}

TEST_CASE("What the data knows is taken from its metadata, and a resolved configuration reads back unchanged") {
  for (const std::string type : {"bert", "opt"}) {
    Config config = read_config(tiny(type), "run.json");
    resolve(config, metadata());
    CHECK(config.model.vocab_size == 64);
    CHECK(config.model.pad_token_id == 1);
    CHECK(config.model.attn_softmax == attention_build().default_softmax);
    CHECK(config.data.mask_token_id == 3);
    CHECK(config.data.special_token_ids == std::vector<std::int64_t>{0, 1, 2, 3});
    CHECK(config.data.objective == (type == "bert" ? "masked_lm" : "causal_lm"));
    CHECK(config.training.micro_batch_size == config.training.global_batch_size);
    CHECK(config.model.hidden_act == (type == "bert" ? "gelu" : "relu"));

    const nlohmann::ordered_json written = write_config(config);
    Config again = read_config(written, "again");
    resolve(again, metadata());
    CHECK(write_config(again).dump() == written.dump());
  }
}

TEST_CASE("Without metadata the missing keys are asked for") {
  Config config = read_config(tiny(), "run.json");
  CHECK_THAT(caught_error([&] { resolve(config, ShardMetadata{}); }).what(), Contains("model.vocab_size is not set"));
  config = read_config(tiny(), "run.json", {{"model.vocab_size", "64"}});
  CHECK_THAT(caught_error([&] { resolve(config, ShardMetadata{}); }).what(), Contains("data.mask_token_id is not set"));
  config = read_config(tiny(), "run.json", {{"model.vocab_size", "64"}, {"data.mask_token_id", "3"}});
  CHECK_THAT(caught_error([&] { resolve(config, ShardMetadata{}); }).what(), Contains("data.special_token_ids is not set"));
  config = read_config(tiny(), "run.json",
                       {{"model.vocab_size", "64"}, {"data.mask_token_id", "3"}, {"data.special_token_ids", "[]"}});
  resolve(config, ShardMetadata{});
  CHECK(config.data.special_token_ids.empty());
  CHECK(config.model.pad_token_id == 0);
}

TEST_CASE("Where the data knows no padding token there is none, in every file") {
  ShardMetadata unpadded = metadata();
  unpadded.pad_id = -1;
  for (const std::string type : {"bert", "opt"}) {
    Config config = read_config(tiny(type), "run.json");
    resolve(config, unpadded);
    CHECK(config.model.pad_token_id == kNoId);
    CHECK(write_config(config)["model"]["pad_token_id"] == "none");
    CHECK(read_config(write_config(config), "again").model.pad_token_id == kNoId);
    const nlohmann::ordered_json written = write_huggingface_config(config.model, {});
    CHECK(written["pad_token_id"].is_null());
    CHECK(read_huggingface_config(written, "config.json").pad_token_id == kNoId);
  }
  // llm.c's shards: no metadata, and every token a real one.
  Config llmc = read_config(tiny("opt"), "run.json", {{"model.vocab_size", "64"}});
  resolve(llmc, ShardMetadata{});
  CHECK(llmc.model.pad_token_id == kNoId);
  CHECK(read_config(tiny("opt"), "run.json", {{"model.pad_token_id", "none"}}).model.pad_token_id == kNoId);
  CHECK_THAT(refusal(tiny("opt"), {{"model.pad_token_id", "-1"}}), Contains("at least 0, \"auto\" or \"none\""));
  // A config.json that does not name one means its class's default.
  CHECK(read_huggingface_config({{"model_type", "opt"}}, "config.json").pad_token_id == 1);
  CHECK(write_huggingface_config(llmc.model, {})["eos_token_id"].is_null());
  CHECK(write_huggingface_config(llmc.model, {5, 0})["eos_token_id"] == 0);
}

TEST_CASE("Numbers that fit no batch, no vocabulary and no machine are refused by name") {
  CHECK_THAT(refusal(tiny(), {{"data.special_token_ids", "[3, 64]"}}), Contains("data.special_token_ids names 64"));
  CHECK_THAT(refusal(tiny(), {{"data.special_token_ids", "[4294967299]"}}), Contains("names 4294967299"));
  CHECK_THAT(refusal(tiny(), {{"training.global_batch_size", "16777216"}}),
             Contains("training.micro_batch_size is 16777216") && Contains("at most 16777215"));
  CHECK_THAT(refusal(tiny(), {{"evaluation.batch_size", "9000000000000000"}}), Contains("evaluation.batch_size is 9000"));
  CHECK_THAT(refusal(tiny(), {{"training.threads", "4294967297"}}), Contains("training.threads is 4294967297"));
}

TEST_CASE("A resumed run may change its length, not its nature") {
  Config config = read_config(tiny(), "run.json");
  resolve(config, metadata());
  const nlohmann::json before = write_config(config);
  CHECK(check_resume(before, config).empty());

  Config longer = config;
  longer.training.steps = 5000;
  longer.data.train = "elsewhere";
  longer.training.recompute = "block";  // which changes no bit
  CHECK(check_resume(before, longer).empty());
  Config faster = config;
  faster.optimizer.learning_rate = 1.0;
  REQUIRE(check_resume(before, faster).size() == 1);
  CHECK_THAT(check_resume(before, faster)[0], Contains("optimizer.learning_rate was 0.0001 and is now 1.0"));

  for (const auto& [key, change] : std::vector<std::pair<std::string, std::function<void(Config&)>>>{
           {"model.hidden_size", [](Config& c) { c.model.hidden_size = 64; }},
           {"training.seed", [](Config& c) { c.training.seed = 1; }},
           {"training.global_batch_size", [](Config& c) { c.training.global_batch_size = 64; }},
           {"data.sequence_length", [](Config& c) { c.data.sequence_length = 64; }},
           {"training.dtype", [](Config& c) { c.training.dtype = "bf16"; }}}) {
    Config other = config;
    change(other);
    const Error e = caught_error([&] { check_resume(before, other); });
    CHECK(e.kind() == ErrorKind::usage);
    CHECK_THAT(e.what(), Contains("\"" + key + "\" was"));
  }
}

TEST_CASE("Every bundled configuration is sound") {
  ShardMetadata m = metadata();
  std::size_t count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(std::filesystem::path(OUTEFFHOP_SOURCE_DIR) / "configs")) {
    INFO(entry.path());
    Config config = load_config(entry.path(), {});
    resolve(config, m);
    CHECK(config.output == "runs/" + entry.path().stem().string());
    ++count;
  }
  CHECK(count >= 8);
}

TEST_CASE("A model's config.json reads back unchanged") {
  for (const std::string type : {"bert", "opt"}) {
    ModelConfig config = default_model_config(type);
    config.hidden_size = 48;
    config.num_attention_heads = 6;
    config.initializer_range = 0.006;
    config.attn_softmax = "softmax_n(4)";
    config.attention_init = "linear";
    config.word_embed_proj_dim = type == "opt" ? 24 : 0;
    const nlohmann::ordered_json written = write_huggingface_config(config, {});
    CHECK(written["architectures"] == nlohmann::json::array({type == "bert" ? "BertForMaskedLM" : "OPTForCausalLM"}));
    CHECK(write_huggingface_config(read_huggingface_config(written, "config.json"), {}).dump() == written.dump());
  }
}

TEST_CASE("A foreign config.json means vanilla attention, and another architecture is refused") {
  const nlohmann::json opt = {{"model_type", "opt"}, {"hidden_size", 768},   {"ffn_dim", 3072},           {"prefix", "</s>"},
                              {"dropout", 0.1},      {"num_beams", nullptr}, {"word_embed_proj_dim", 768}};
  const ModelConfig config = read_huggingface_config(opt, "config.json");
  CHECK(config.attn_softmax == "vanilla");
  CHECK(config.intermediate_size == 3072);
  CHECK(config.word_embed_proj_dim == 0);
  nlohmann::json bilingual = opt;  // BERT's name of a field is no field of OPT's class
  bilingual["intermediate_size"] = 1024;
  CHECK(read_huggingface_config(bilingual, "config.json").intermediate_size == 3072);
  nlohmann::json silent = opt;
  silent.erase("word_embed_proj_dim");
  CHECK(read_huggingface_config(silent, "config.json").embedding_size() == 768);
  const auto refused = [](nlohmann::json values, const char* key, const nlohmann::json& value) {
    values[key] = value;
    const Error e = caught_error([&] { read_huggingface_config(values, "config.json"); });
    CHECK(e.kind() == ErrorKind::unsupported);
    CHECK_THAT(e.what(), Contains(key));
  };
  refused(opt, "do_layer_norm_before", false);
  refused(opt, "enable_bias", false);
  refused(opt, "layer_norm_eps", 1e-6);
  refused(opt, "tie_word_embeddings", false);
  refused({{"model_type", "bert"}}, "position_embedding_type", "relative_key");
  refused({{"model_type", "bert"}}, "model_type", "roberta");
}

TEST_CASE("Edit distance") {
  CHECK(edit_distance("", "abc") == 3);
  CHECK(edit_distance("kitten", "sitting") == 3);
  CHECK(edit_distance("steps", "steps") == 0);
}

}  // namespace
}  // namespace outeffhop

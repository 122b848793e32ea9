// What a user can get wrong, said to the real program: one line on standard error with the value and the way out, and the
// exit code of README's table.
#include <sys/stat.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <limits>
#include <thread>

#include "tests/train/process.h"
#include "tests/train/train_support.h"
#include "train/checkpoint.h"
#include "train/model_directory.h"
#include "train/safetensors.h"

namespace outeffhop {
namespace {

using Catch::Matchers::Contains;
using test::Process;
using test::TinyCorpus;
using test::write_bytes;
namespace fs = std::filesystem;
using Words = std::vector<std::string>;

struct Situation {
  std::string what;
  Words command;
  int code;
  Words words;  ///< all in the one line on standard error
  test::ProcessOptions options = {};
};

void check(const Situation& situation) {
  Process process("outeffhop", situation.command, 0, situation.options);
  const int code = process.wait();
  const std::string error = process.error();
  INFO("situation: " << situation.what);
  INFO("said: " << error);
  CHECK(code == situation.code);
  CHECK(error.starts_with("outeffhop: "));
  CHECK(std::count(error.begin(), error.end(), '\n') == 1);
  for (const std::string& word : situation.words) CHECK_THAT(error, Contains(word));
}

/// A corpus with a configuration file and, where asked for, a finished run of three steps with two checkpoints.
struct Workplace : TinyCorpus {
  std::string config_file = path("config.json");

  Workplace() { write_durable(config_file, config("bert", "run").dump(2)); }

  std::string write(const std::string& name, const std::string& text) const { return write_bytes(path(name), text); }
  Words train(const Words& more = {}) const {
    Words command = {"train", "--config", config_file};
    command.insert(command.end(), more.begin(), more.end());
    return command;
  }
  Words set(const std::string& change) const { return train({"--set", change}); }
  Words eval(const std::string& checkpoint, const Words& more = {}) const {
    Words command = {"eval", "--checkpoint", checkpoint, "--data", path("tiny_val_*.bin")};
    command.insert(command.end(), more.begin(), more.end());
    return command;
  }
  /// Trains in process and returns the run's newest checkpoint.
  fs::path trained(std::int64_t steps = 3) const {
    const std::string count = std::to_string(steps);
    CHECK(train_quietly({"training.steps=" + count, "checkpoint.interval=1", "data.validation="}) == 0);
    return list_checkpoints(path("run")).front();
  }
  int train_quietly(const Words& changes) const {
    return outeffhop::train(test::quiet_options(config("bert", "run"), changes));
  }
};

TEST_CASE("Command lines and configurations that cannot be meant") {
  const Workplace w;
  const std::string deep(2'000'000, '[');
  const std::vector<Situation> situations = {
      {"no such config", {"train", "--config", w.path("none.json")}, 5, {"none.json", "No such file"}},
      {"a directory as config", {"train", "--config", w.path("")}, 5, {"is a directory"}},
      {"a path below a file", {"train", "--config", w.config_file + "/x"}, 5, {"Not a directory"}},
      {"malformed JSON",
       {"train", "--config", w.write("a.json", "{\"model\": {\n  \"hidden_size\" 3\n}}")},
       2,
       {"a.json", "line 2, column", "expected ':'"}},
      {"an empty config", {"train", "--config", w.write("b.json", "")}, 2, {"b.json", "line 1", "end of input"}},
      {"no UTF-8",
       {"train", "--config", w.write("c.json", "{\"model\": {\n \"hidden_act\": \"a\xe9\"}}")},
       2,
       {"c.json", "line 2", "UTF-8"}},
      {"brackets without end", {"train", "--config", w.write("d.json", deep)}, 2, {"d.json"}},
      {"a key twice", {"train", "--config", w.write("f.json", "{\"model\": {}, \"model\": {}}")}, 2, {"\"model\"", "twice"}},
      {"a list for a config", {"train", "--config", w.write("g.json", "[1]")}, 2, {"expected a JSON object"}},
      {"an unknown key", w.set("training.stpes=3"), 2, {"training.stpes", "did you mean \"training.steps\"?"}},
      {"a wrong type", w.set("model.hidden_size=wide"), 2, {"model.hidden_size", "\"wide\"", "an integer"}},
      {"a fraction", w.set("training.steps=1.5"), 2, {"training.steps", "1.5", "an integer"}},
      {"a block as a value", w.set("model=3"), 2, {"\"model\" is 3", "object"}},
      {"no value to set", w.set("nonsense"), 2, {"nonsense", "KEY=VALUE"}},
      {"no key to set", w.set("=3"), 2, {"KEY=VALUE"}},
      {"heads that do not divide", w.set("model.num_attention_heads=5"), 2, {"32", "num_attention_heads", "5"}},
      {"no layers", w.set("model.num_hidden_layers=0"), 2, {"num_hidden_layers", "at least 1"}},
      {"too many layers", w.set("model.num_hidden_layers=2000000000"), 2, {"num_hidden_layers", "at most"}},
      {"a micro-batch that does not divide", w.set("training.micro_batch_size=3"), 2, {"micro_batch_size", "3", "8"}},
      {"more parameters than can be", w.set("model.hidden_size=1000000000"), 2, {"hidden_size", "1000000000", "parameters"}},
      {"more memory than there is", w.set("model.vocab_size=2147483647"), 6, {"2147483647 token ids", "GB", "this machine"}},
      {"a batch beyond the memory",
       w.train({"--set", "training.global_batch_size=134217727", "--set", "training.micro_batch_size=auto"}),
       6,
       {"134217727 sequences", "micro_batch_size", "training.recompute"}},
      {"more steps than can be counted", w.set("training.steps=9223372036854775807"), 2, {"training.steps", "64 bits"}},
      {"a sequence longer than positions", w.set("data.sequence_length=17"), 2, {"17", "max_position_embeddings is 16"}},
      {"a glob without shards", w.set("data.train=" + w.path("none_*.bin")), 3, {"none_*.bin", "tokenize_corpus.py"}},
      {"more threads than processors", w.set("training.threads=100000"), 2, {"100000", "0 for all"}},
      {"threads that are no number", w.set("training.threads=two"), 2, {"training.threads", "\"two\""}},
      {"a rate that is no number", w.set("optimizer.learning_rate=nan"), 2, {"learning_rate", "a number"}},
      {"a run directory that is a file", w.train({"--out", w.config_file}), 5, {"config.json", "Not a directory"}},
      {"a run directory where none can be", w.train({"--out", "/proc/outeffhop"}), 5, {"/proc/outeffhop"}},
      {"resuming what is nothing", w.train({"--resume", "nonsense"}), 2, {"nonsense", "\"auto\", \"never\""}},
      {"resuming what is no checkpoint", w.train({"--resume", w.path("")}), 4, {"manifest.json"}},
      {"an unknown command", {"trian", "--config", "x"}, 2, {"\"trian\"", "did you mean \"train\"?"}},
      {"an unknown option", w.train({"--resmue", "auto"}), 2, {"\"--resmue\"", "did you mean \"--resume\"?"}},
      {"a negative count", w.eval("x", {"--threads", "-1"}), 2, {"--threads", "-1", "0 to"}},
      {"an unknown dtype", w.eval(w.trained().string(), {"--dtype", "fp8"}), 2, {"fp8", "bf16"}},
      {"an unknown instruction set",
       {"--version"},
       2,
       {"OUTEFFHOP_MAX_ISA", "sse9", "avx2"},
       {"", {"OUTEFFHOP_MAX_ISA=sse9"}}},
      {"a full disk for the result", w.eval(w.trained().string()), 5, {"standard output", "No space"}, {"/dev/full"}},
  };
  for (const Situation& situation : situations) check(situation);
}

TEST_CASE("Files that a user without rights cannot read or make") {
  const Workplace w;
  fs::permissions(w.path(""), fs::perms(0755));
  fs::permissions(w.config_file, fs::perms(0600));
  // Where the tests do not run as root their user owns the file, so nobody may read it.
  if (geteuid() != 0) fs::permissions(w.config_file, fs::perms(0000));
  const test::ProcessOptions nobody = {"", {"GOMP_SPINCOUNT=2000"}, true};
  check({"an unreadable config", w.train(), 5, {"config.json", "Permission denied"}, nobody});
  fs::permissions(w.config_file, fs::perms(0644));
  if (geteuid() != 0) fs::permissions(w.path(""), fs::perms(0555));
  check({"an unwritable place for the run", w.train(), 5, {"/run", "Permission denied"}, nobody});
  fs::permissions(w.path(""), fs::perms(0755));
  fs::permissions(w.path("tiny_train_001.bin"), fs::perms(geteuid() == 0 ? 0600 : 0000));
  check({"an unreadable shard", w.train(), 5, {"tiny_train_001.bin", "Permission denied"}, nobody});
}

TEST_CASE("Damaged shards") {
  const Workplace w;
  const std::string shard = w.path("tiny_train_000.bin"), sound = read_file(shard);
  const auto with = [&](std::size_t word, std::uint32_t value) {
    std::string bytes = sound;
    for (std::size_t i = 0; i < 4; ++i) bytes[4 * word + i] = static_cast<char>(value >> (8 * i));
    return bytes;
  };
  const auto expect = [&](const std::string& what, const std::string& bytes, Words words) {
    write_bytes(shard, bytes);
    words.push_back("tiny_train_000.bin");
    check({what, w.train(), 3, words});
  };
  expect("empty", "", {"0 bytes"});
  expect("cut in the header", sound.substr(0, 1000), {"1000 bytes", "cut"});
  expect("cut in the tokens", sound.substr(0, 2001), {"2001 bytes", "promises 4096 tokens", "cut"});
  expect("too long", sound + "xx", {"promises 4096 tokens"});
  expect("wrong magic", with(0, 7), {"not a token shard", "7", "20240520"});
  expect("wrong version", with(1, 9), {"version 9", "1 or 2"});
  expect("a negative count", with(2, 0x80000000u), {"-2147483648 tokens"});
  expect("a token beyond the vocabulary", with(256 + 5, 64u << 16 | 4u), {"token 64", "position 11", "64 ids"});
  write_bytes(shard, sound);
  w.write("metadata.json", "{\"vocab_size\": 64,\n \"mask_id\": 64}");
  check({"metadata that contradicts itself", w.train(), 3, {"metadata.json", "mask_id", "64"}});
  w.write("metadata.json", "{\"vocab_size\": 64,\n");
  check({"metadata that is no JSON", w.train(), 3, {"metadata.json", "not valid JSON"}});
}

TEST_CASE("A shard that is cut while it is read ends the run in a sentence, and leaves its checkpoints") {
  const Workplace w;
  const std::string shard = w.path("large_train_000.bin");
  test::write_shard(shard, test::chained_tokens(8 << 20));
  Process process("outeffhop", w.train({"--set", "data.train=" + shard, "--set", "training.steps=1000000", "--set",
                                        "checkpoint.interval=1"}));
  for (int i = 0; i < 1200 && list_checkpoints(w.path("run")).empty(); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(25));
  }
  fs::resize_file(shard, 4096);
  CHECK(process.wait() == 3);
  const std::string error = process.error();
  INFO(error);
  CHECK(std::count(error.begin(), error.end(), '\n') == 1);
  CHECK_THAT(error, Contains("large_train_000.bin was cut") && Contains("put it back"));
  CHECK(newest_checkpoint(w.path("run"), nullptr).has_value());
}

TEST_CASE("Every cut and flipped byte of a checkpoint is noticed, and the one before it taken") {
  const Workplace w;
  const fs::path newest = w.trained();
  const fs::path before = list_checkpoints(w.path("run"))[1];
  int tried = 0;
  for (const fs::path& file : entries_of(newest)) {
    const std::string sound = read_file(file);
    std::vector<std::string> damaged;
    for (std::size_t at = 0; at < sound.size(); at += 4096) damaged.push_back(sound.substr(0, at));
    damaged.push_back(sound.substr(0, sound.size() - 1));
    damaged.push_back(sound + '\0');
    for (std::size_t i = 0; i < 16; ++i) {
      std::string flipped = sound;
      flipped[i * (sound.size() - 1) / 15] ^= static_cast<char>(1 << i % 8);
      damaged.push_back(flipped);
    }
    for (const std::string& bytes : damaged) {
      write_bytes(file, bytes);
      INFO(file << " as " << bytes.size() << " bytes of " << sound.size());
      // White space of the manifest may change without harm; then it must still verify as what it was.
      Words notes;
      const auto found = newest_checkpoint(w.path("run"), &notes);
      if (file.filename() == "manifest.json" && found == newest) {
        CHECK(nlohmann::json::parse(bytes)["files"] == nlohmann::json::parse(sound)["files"]);
      } else {
        CHECK(found == before);
        CHECK(notes.size() == 1);
        CHECK(test::caught_error([&] { read_model_directory(newest); }).kind() == ErrorKind::checkpoint);
        CHECK(read_model_directory(w.path("run")).path == before);
      }
      ++tried;
    }
    write_bytes(file, sound);
  }
  CHECK(tried > 100);
  CHECK(newest_checkpoint(w.path("run"), nullptr) == newest);
}

TEST_CASE("Damaged checkpoints, as the program meets them") {
  const Workplace w;
  const fs::path newest = w.trained();
  fs::resize_file(newest / "optimizer.safetensors", 4096);
  check({"a checkpoint asked for by name", w.train({"--resume", newest.string()}), 4, {"step_00000003", "4096 bytes"}});
  Process resumed("outeffhop", w.set("training.steps=4"));
  CHECK(resumed.wait() == 0);
  CHECK_THAT(resumed.output(), Contains("passed over step_00000003") && Contains("4096 bytes instead of") &&
                                   Contains("step_00000002 after step 2"));
  for (const fs::path& checkpoint : list_checkpoints(w.path("run"))) fs::remove(checkpoint / "manifest.json");
  check({"no sound checkpoint", w.train(), 4, {"no checkpoint of", "sound", "--out"}});
  check({"evaluating a run without a sound checkpoint", w.eval(w.path("run")), 4, {"no sound checkpoint"}});
}

/// Replaces `value` at a key of a JSON file.
void change_json(const fs::path& file, const nlohmann::json::json_pointer& key, const nlohmann::json& value) {
  nlohmann::json whole = nlohmann::json::parse(read_file(file));
  whole[key] = value;
  write_bytes(file, whole.dump());
}

TEST_CASE("Checkpoints that contradict themselves or the run") {
  using Pointer = nlohmann::json::json_pointer;
  const Workplace w;
  const fs::path checkpoint = w.trained();
  const std::string model = w.path("model");
  // A copy without manifest is a model directory like anyone's.
  const auto copy = [&] {
    fs::remove_all(model);
    fs::copy(checkpoint, model);
    fs::remove(model + "/manifest.json");
    return fs::path(model);
  };
  change_json(copy() / "config.json", Pointer("/hidden_size"), 64);
  check({"another width", w.eval(model), 4, {"model.safetensors", "has the shape", "config.json asks for"}});
  change_json(copy() / "config.json", Pointer("/num_hidden_layers"), 3);
  check({"another depth", w.eval(model), 4, {"has no tensor", "layer.2"}});
  change_json(copy() / "config.json", Pointer("/vocab_size"), 2147483647);
  check({"a far larger vocabulary", w.eval(model), 4, {"has the shape", "2147483647"}});
  change_json(copy() / "config.json", Pointer("/model_type"), "gpt2");
  check({"another architecture", w.eval(model), 6, {"gpt2", "\"opt\""}});
  change_json(copy() / "config.json", Pointer("/num_attention_heads"), "many");
  check({"a wrong type", w.eval(model), 4, {"config.json", "num_attention_heads", "many"}});
  write_bytes(copy() / "config.json", "{\"model_type\":\n \"bert\",,}");
  check({"no JSON", w.eval(model), 4, {"config.json", "not valid JSON", "line 2"}});
  fs::remove(copy() / "model.safetensors");
  check({"no weights", w.eval(model), 4, {"no model.safetensors"}});
  fs::remove(copy() / "config.json");
  check({"no config", w.eval(model), 4, {"no config.json"}});

  const fs::path manifest = checkpoint / "manifest.json";
  const std::string sound = read_file(manifest);
  change_json(manifest, Pointer("/files/other.bin"), {{"size", 1}, {"xxh64", "0"}});
  check({"a manifest of other files", w.eval(checkpoint), 4, {"other.bin", "missing"}});
  change_json(manifest, Pointer("/files"), {{"../../config.json", {{"size", 1}, {"xxh64", "0"}}}});
  check({"a manifest that points elsewhere", w.eval(checkpoint), 4, {"manifest.json"}});
  write_bytes(manifest, sound);

  check({"another model in the run", w.set("model.hidden_size=64"), 2, {"model.hidden_size", "was 32", "now 64", "--out"}});
  check({"another seed", w.set("training.seed=8"), 2, {"training.seed", "--out"}});
  test::write_shard(w.path("tiny_train_000.bin"), test::chained_tokens(4096, 17));
  check({"other shards", w.train(), 2, {"shards", "tiny_train_*.bin"}});
}

TEST_CASE("Weights that are not numbers are named, and training stops with 7 when it makes them") {
  const Workplace w;
  const fs::path checkpoint = w.trained();
  std::string bytes = read_file(checkpoint / "model.safetensors");
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::copy_n(reinterpret_cast<const char*>(&nan), sizeof nan, bytes.end() - 4);
  write_bytes(checkpoint / "model.safetensors", bytes);
  const nlohmann::json entry = {{"size", bytes.size()}, {"xxh64", hash_bytes(bytes)}};
  change_json(checkpoint / "manifest.json", nlohmann::json::json_pointer("/files/model.safetensors"), entry);

  Process evaluated("outeffhop", w.eval(checkpoint));
  CHECK(evaluated.wait() == 0);
  CHECK_THAT(evaluated.output(), Contains("1 of the") && Contains("are not finite") && Contains("loss"));
  check({"going on from it", w.set("training.steps=9"), 4, {"are not finite", "--resume DIR"}});

  fs::remove_all(w.path("run"));
  check({"a rate at which nothing stays finite",
         w.train({"--set", "optimizer.learning_rate=1e38", "--set", "optimizer.max_gradient_norm=0", "--set",
                  "schedule.warmup_steps=0", "--set", "training.max_bad_steps=3", "--set", "training.steps=30"}),
         7,
         {"3 steps in a row", "learning_rate"}});
  const auto metrics = test::read_metrics(w.path("run"));
  REQUIRE(metrics.size() >= 3);
  for (std::size_t i = metrics.size() - 3; i < metrics.size(); ++i) {
    CHECK(metrics[i]["skipped"] == true);
    CHECK(metrics[i].contains("samples"));
  }
}

TEST_CASE("A safetensors file that lies") {
  const Workplace w;
  const fs::path checkpoint = w.trained();
  const std::string batch = w.path("batch.safetensors");
  const auto expect = [&](const std::string& what, const std::string& header, std::size_t data, Words words,
                          std::uint64_t length = 0) {
    std::string bytes;
    test::append_little_endian(bytes, length ? length : header.size(), 8);
    write_bytes(batch, bytes + header + std::string(data, '\1'));
    words.push_back("batch.safetensors");
    check({what, {"probe", "--checkpoint", checkpoint, "--batch", batch, "--out", w.path("out.safetensors")}, 3, words});
  };
  const auto tensor = [](const std::string& name, const std::string& type, const std::string& shape, const std::string& at) {
    return fmt::format(R"("{}":{{"dtype":"{}","shape":{},"data_offsets":{}}})", name, type, shape, at);
  };
  const std::string ids = tensor("input_ids", "I32", "[2,2]", "[0,16]");
  expect("a length of 2^63", "{}", 0, {"9223372036854775808", "allows"}, std::uint64_t{1} << 63);
  expect("a length beyond the file", "{}", 0, {"claims 1000 bytes", "file of 10"}, 1000);
  expect("no JSON", "{\"a\": ", 0, {"not"});
  expect("deep nesting", std::string(1'000'000, '['), 0, {"header"});
  expect("no UTF-8", "{\"\xff\": 1}", 0, {"UTF-8"});
  expect("a type that is none", "{" + tensor("input_ids", "F7", "[2,2]", "[0,16]") + "}", 16, {"F7", "I32"});
  expect("a size that is not the shape's", "{" + tensor("input_ids", "I32", "[2,3]", "[0,16]") + "}", 16,
         {"needs 24", "claims 16"});
  expect("offsets beyond the file", "{" + tensor("input_ids", "I32", "[2,4]", "[0,32]") + "}", 16, {"0 to 32", "16"});
  expect("offsets that run backwards", "{" + tensor("input_ids", "I32", "[2,2]", "[16,0]") + "}", 16, {"16 to 0"});
  expect("overlap", "{" + ids + "," + tensor("labels", "I32", "[2,2]", "[8,24]") + "}", 24, {"\"labels\" starts at byte 8"});
  expect("a gap", "{" + tensor("input_ids", "I32", "[2,2]", "[4,20]") + "}", 20, {"starts at byte 4 instead of 0"});
  expect("sizes that overflow", "{" + tensor("input_ids", "I32", "[4294967296,4294967296]", "[0,16]") + "}", 16,
         {"overflows"});
  expect("three dimensions", "{" + tensor("input_ids", "I32", "[2,1,2]", "[0,16]") + "}", 16,
         {"(2, 1, 2)", "(sequences, tokens)"});
  expect("floating ids", "{" + tensor("input_ids", "F32", "[2,2]", "[0,16]") + "}", 16, {"F32", "integers"});
  expect("no ids", "{" + tensor("labels", "I32", "[2,2]", "[0,16]") + "}", 16, {"no tensor \"input_ids\""});
  expect("labels of another shape", "{" + ids + "," + tensor("labels", "I32", "[2,1]", "[16,24]") + "}", 24,
         {"labels", "(2, 1)", "(2, 2)"});
  expect("too long", "{" + tensor("input_ids", "I32", "[1,17]", "[0,68]") + "}", 68, {"17 tokens", "16 positions"});
  expect("ids beyond the vocabulary", "{" + ids + "}", 16, {"16843009", "0 to 63"});

  const std::vector<std::int32_t> negative = {4, -1, 5, 6};
  write_safetensors(batch, {{"input_ids", FileType::i32, {2, 2}, negative.data()}});
  check({"an id of -1",
         {"probe", "--checkpoint", checkpoint, "--batch", batch, "--out", w.path("out.safetensors")},
         3,
         {"-1", "0 to 63"}});
  check({"no batch", {"probe", "--checkpoint", checkpoint, "--batch", w.path("none"), "--out", w.path("o")}, 5, {"none"}});
  check({"no checkpoint", {"probe", "--checkpoint", w.path("none"), "--batch", batch, "--out", w.path("o")}, 5, {"none"}});
  const std::vector<std::int32_t> sound = {4, 7, 5, 6};
  write_safetensors(batch, {{"input_ids", FileType::i32, {2, 2}, sound.data()}});
  check({"no place for the result",
         {"probe", "--checkpoint", checkpoint, "--batch", batch, "--out", batch + "/o"},
         5,
         {"Not a directory"}});
}

TEST_CASE("What happens beside a run: another process, output that goes, a directory that is removed") {
  const Workplace w;
  const Words endless = w.train({"--set", "training.steps=1000000"});
  const auto wait_for = [&](const std::string& file) {
    for (int i = 0; i < 1200 && !(fs::exists(file) && fs::file_size(file) > 0); ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(25));
    }
  };
  {
    Process first("outeffhop", endless);
    wait_for(w.path("run/metrics.jsonl"));
    check({"a second process in the run", endless, 2, {"another process is training in", "/run", "--out"}});
    first.signal(SIGTERM);
    CHECK(first.wait() == 75);
    CHECK(newest_checkpoint(w.path("run"), nullptr).has_value());
  }
  {
    Process process("outeffhop", w.train({"--set", "training.steps=3", "--out", w.path("full")}), 0, {"/dev/full"});
    CHECK(process.wait() == 0);
    CHECK(newest_checkpoint(w.path("full"), nullptr).has_value());
  }
  {
    // A pipe whose reader has gone.
    const std::string pipe = w.path("pipe");
    REQUIRE(mkfifo(pipe.c_str(), 0600) == 0);
    const int reader = open(pipe.c_str(), O_RDONLY | O_NONBLOCK);
    Process process("outeffhop", w.train({"--set", "training.steps=200", "--out", w.path("piped")}), 0, {pipe});
    wait_for(w.path("piped/metrics.jsonl"));
    close(reader);
    CHECK(process.wait() == 0);
    CHECK(newest_checkpoint(w.path("piped"), nullptr).has_value());
  }
  {
    Process process("outeffhop", w.train({"--set", "training.steps=1000000", "--out", w.path("gone")}));
    wait_for(w.path("gone/metrics.jsonl"));
    fs::remove_all(w.path("gone"));
    process.signal(SIGTERM);
    // The weights are what matters: the directory is made again for them.
    CHECK(process.wait() == 75);
    CHECK(newest_checkpoint(w.path("gone"), nullptr).has_value());
  }
}

}  // namespace
}  // namespace outeffhop

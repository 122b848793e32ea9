// Times ops of a device, one case a line of standard input, one line of JSON each: scripts/gpu_bench.py drives it.
//
//   bench_ops cpu|cuda SECONDS SAMPLES [THREADS] < cases
//   a case: {"op": "layernorm_forward", "dtype": "bf16", "B": 128, "T": 128, "C": 768, "residual": 1}
//   its answer: {"seconds": [of one op, in each sample], "repeats": ops in a sample, "copies": sets of tensors}, or
//   {"error": TEXT}
//
// A sample is some hundred ops in a row between two synchronisations of the device, recorded and replayed where the device
// can (Device::repeat): what the host takes to launch is no part of it. Sets of tensors take turns, so many that each one
// has left a cache of 50 MB when its turn comes again.
#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <functional>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "kernels/device.h"
#include "kernels/error.h"

namespace outeffhop {
namespace {

using Json = nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

constexpr std::size_t kCacheBytes = std::size_t{128} << 20;  // twice the L2 cache of an H100, and more
constexpr std::int64_t kMostCopies = 32, kMostRepeats = 1024;
constexpr double kSampleSeconds = 10e-3;  // a synchronisation's ten microseconds are a thousandth of this

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

/// What a case says, and the device memory that its tensors are in.
class Case {
 public:
  Case(Device& device, const Json& values)
      : device(device), values_(values), dtype(values.value("dtype", "bf16") == "fp32" ? DType::f32 : DType::bf16) {}

  std::int64_t operator()(const char* name) const {
    if (!values_.contains(name)) fail(ErrorKind::usage, "the case {} lacks \"{}\"", values_.dump(), name);
    return values_[name].get<std::int64_t>();
  }
  template <class T>
  T value(const char* name, T otherwise) const {
    return values_.value(name, otherwise);
  }

  /// Values about 1 in magnitude with both signs, never denormal: the same block again and again.
  Tensor tensor(std::int64_t count, DType type) {
    constexpr std::int64_t kBlock = 1 << 16;
    std::vector<float> block(static_cast<std::size_t>(std::min(count, kBlock)));
    std::uint32_t state = 1;
    for (float& value : block) {
      state = state * 1664525u + 1013904223u;
      value = (0.25f + static_cast<float>(state >> 9) * 0x1p-23f) * (state & 256 ? 1.0f : -1.0f);
    }
    std::vector<bf16> narrow(block.begin(), block.end());
    const void* source = type == DType::bf16 ? static_cast<const void*>(narrow.data()) : block.data();
    const Tensor made{memory(static_cast<std::size_t>(count) * size_of(type)), type};
    for (std::int64_t at = 0; at < count; at += kBlock)
      device.copy_in(made.at(at).data, source, static_cast<std::size_t>(std::min(kBlock, count - at)) * size_of(type));
    return made;
  }
  Tensor tensor(std::int64_t count) { return tensor(count, dtype); }
  /// (count) values in [0, bound): scattered, or rising without a repeat when `distinct`.
  const std::int32_t* ids(std::int64_t count, std::int64_t bound, bool distinct = false) {
    std::vector<std::int32_t> host(static_cast<std::size_t>(count));
    std::uint64_t state = 7;
    for (std::int64_t i = 0; i < count; ++i) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      const std::int64_t id =
          distinct ? i * bound / count : static_cast<std::int64_t>((state >> 33) % static_cast<std::uint64_t>(bound));
      host[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(id);
    }
    return upload(host);
  }
  const std::int32_t* positions(std::int64_t B, std::int64_t T) {
    std::vector<std::int32_t> host;
    for (std::int64_t i = 0; i < B * T; ++i) host.push_back(static_cast<std::int32_t>(i % T));
    return upload(host);
  }
  Dropout dropout(std::int64_t B) {
    const double probability = value("dropout", 0.0);
    std::vector<std::uint64_t> samples(static_cast<std::size_t>(B));
    for (std::size_t b = 0; b < samples.size(); ++b) samples[b] = 1000 + b;
    return probability > 0 ? Dropout::make(probability, 1, 3, upload(samples)) : Dropout{};
  }
  StepControl* control() {
    StepControl host;
    host.learning_rate = 1e-9f;
    host.gradient_scale = 1e-6f;
    host.updates = 10;
    host.label_count = 1;
    return const_cast<StepControl*>(upload(std::vector<StepControl>{host}));
  }
  void* memory(std::size_t bytes) {
    buffers_.emplace_back(device, bytes);
    bytes_ += bytes;
    return buffers_.back().data();
  }
  std::size_t bytes() const { return bytes_; }

  Device& device;

 private:
  template <class T>
  const T* upload(const std::vector<T>& host) {
    void* data = memory(host.size() * sizeof(T));
    device.copy_in(data, host.data(), host.size() * sizeof(T));
    return static_cast<const T*>(data);
  }

  const Json& values_;
  std::vector<Buffer> buffers_;
  std::size_t bytes_ = 0;

 public:
  const DType dtype;
};

using Run = std::function<void()>;

/// Runs `op`, whose tensors are the case's.
template <class Op>
Run runner(Case& c, const Op& op) {
  return [&device = c.device, op] { device.run(op); };
}

Activation activation_of(Case& c) {
  const std::string name = c.value<std::string>("activation", "none");
  if (name == "gelu_erf") return Activation::gelu_erf;
  if (name == "gelu_tanh") return Activation::gelu_tanh;
  if (name == "relu") return Activation::relu;
  if (name != "none") fail(ErrorKind::usage, "activation \"{}\" is none of none, gelu_erf, gelu_tanh, relu", name);
  return Activation::none;
}

struct AttentionTensors {
  AttentionProblem problem;
  Tensor qkv, o, lse;
  HeadView q, k, v, o_view;
};

/// Part `which` of a packed (B, T, 3, H, D) projection, as in the models.
HeadView part(const AttentionProblem& p, Tensor packed, std::int64_t which) {
  const std::int64_t row = 3 * p.H * p.D;
  return {packed.at(which * p.H * p.D).data, packed.dtype, p.Tq * row, row, p.D};
}

AttentionTensors attention(Case& c) {
  AttentionTensors t;
  AttentionProblem& p = t.problem;
  p.B = c("B");
  p.H = c("H");
  p.Tq = p.Tk = c("T");
  p.D = c("D");
  p.scale = 1.0f / std::sqrt(static_cast<float>(p.D));
  p.n = c.value("n", 1.0f);
  p.causal = c.value("causal", 0) != 0;
  p.dropout = c.dropout(p.B);
  const std::int64_t count = p.B * p.Tq * p.H * p.D;
  t.qkv = c.tensor(3 * count);
  t.o = c.tensor(count);
  t.lse = c.tensor(p.B * p.H * p.Tq, DType::f32);
  t.q = part(p, t.qkv, 0);
  t.k = part(p, t.qkv, 1);
  t.v = part(p, t.qkv, 2);
  t.o_view = {t.o.data, t.o.dtype, p.Tq * p.H * p.D, p.H * p.D, p.D};
  return t;
}

Run attention_forward(Case& c) {
  const AttentionTensors t = attention(c);
  return runner(c, AttentionForward{t.problem, t.q, t.k, t.v, t.o_view, t.lse});
}

Run attention_backward(Case& c) {
  const AttentionTensors t = attention(c);
  const AttentionProblem& p = t.problem;
  c.device.run(AttentionForward{p, t.q, t.k, t.v, t.o_view, t.lse});
  const std::int64_t count = p.B * p.Tq * p.H * p.D;
  const Tensor d_o = c.tensor(count), d_qkv = c.tensor(3 * count);
  HeadView d_o_view = t.o_view;
  d_o_view.data = d_o.data;
  AttentionBackward op;
  op.problem = p;
  op.q = t.q;
  op.k = t.k;
  op.v = t.v;
  op.o = t.o_view;
  op.d_o = d_o_view;
  op.lse = t.lse;
  op.d_q = part(p, d_qkv, 0);
  op.d_k = part(p, d_qkv, 1);
  op.d_v = part(p, d_qkv, 2);
  return runner(c, op);
}

Run linear_forward(Case& c) {
  LinearForward op;
  op.rows = c("rows");
  op.in = c("in");
  op.out_features = c("out");
  op.x = Operand(c.tensor(op.rows * op.in));
  op.weight = Operand(c.tensor(op.out_features * op.in));
  op.bias = c.tensor(op.out_features);
  op.activation = activation_of(c);
  if (c.value("pre", 0)) op.pre = c.tensor(op.rows * op.out_features);
  op.out_stride = c.value("row_stride", op.out_features);
  op.out = c.tensor(op.rows * op.out_stride);
  return runner(c, op);
}

Run linear_backward(Case& c) {
  LinearBackward op;
  op.rows = c("rows");
  op.in = c("in");
  op.out_features = c("out");
  op.d_out_stride = c.value("row_stride", op.out_features);
  op.d_out = c.tensor(op.rows * op.d_out_stride);
  op.x = c.tensor(op.rows * op.in);
  op.weight = c.tensor(op.out_features * op.in);
  op.d_x = c.tensor(op.rows * op.in);
  op.d_weight = c.tensor(op.out_features * op.in, DType::f32);
  if (c.value("bias", 1)) op.d_bias = c.tensor(op.out_features, DType::f32);
  return runner(c, op);
}

Run activation_forward(Case& c) {
  const std::int64_t count = c("count");
  return runner(c, ActivationForward{count, activation_of(c), c.tensor(count), c.tensor(count)});
}

Run activation_backward(Case& c) {
  const std::int64_t count = c("count");
  return runner(c, ActivationBackward{count, activation_of(c), c.tensor(count), c.tensor(count), c.tensor(count)});
}

Run layernorm_forward(Case& c) {
  LayerNormForward op;
  op.B = c("B");
  op.T = c("T");
  op.C = c("C");
  const std::int64_t rows = op.B * op.T, count = rows * op.C;
  op.x = c.tensor(count);
  if (c.value("residual", 1)) op.residual = c.tensor(count);
  op.weight = c.tensor(op.C);
  op.bias = c.tensor(op.C);
  op.dropout = c.dropout(op.B);
  op.sum = c.tensor(count);
  op.out = c.tensor(count);
  op.mean = c.tensor(rows, DType::f32);
  op.rstd = c.tensor(rows, DType::f32);
  return runner(c, op);
}

Run layernorm_backward(Case& c) {
  LayerNormBackward op;
  op.B = c("B");
  op.T = c("T");
  op.C = c("C");
  const std::int64_t rows = op.B * op.T, count = rows * op.C;
  op.d_out = c.tensor(count);
  if (c.value("d_sum_in", 1)) op.d_sum_in = c.tensor(count);
  op.sum = c.tensor(count);
  op.mean = c.tensor(rows, DType::f32);
  op.rstd = c.tensor(rows, DType::f32);
  op.weight = c.tensor(op.C);
  op.dropout = c.dropout(op.B);
  op.d_sum = c.tensor(count);
  op.d_x = c.tensor(count);
  op.d_weight = c.tensor(op.C, DType::f32);
  op.d_bias = c.tensor(op.C, DType::f32);
  return runner(c, op);
}

Run dropout_add(Case& c) {
  DropoutAdd op;
  op.B = c("B");
  op.T = c("T");
  op.C = c("C");
  const std::int64_t count = op.B * op.T * op.C;
  op.x = c.tensor(count);
  if (c.value("residual", 1)) op.residual = c.tensor(count);
  op.out = c.tensor(count);
  op.dropout = c.dropout(op.B);
  return runner(c, op);
}

Run embedding_forward(Case& c) {
  EmbeddingForward op;
  const std::int64_t B = c("B"), T = c("T"), V = c("V"), types = c("types");
  op.rows = B * T;
  op.C = c("C");
  op.token_ids = c.ids(op.rows, V);
  op.position_ids = c.positions(B, T);
  op.token_table = c.tensor(V * op.C);
  op.position_table = c.tensor(T * op.C);
  if (types) op.type_table = c.tensor(types * op.C);
  op.out = c.tensor(op.rows * op.C);
  return runner(c, op);
}

Run embedding_backward(Case& c) {
  EmbeddingBackward op;
  const std::int64_t B = c("B"), T = c("T");
  op.rows = B * T;
  op.C = c("C");
  op.vocabulary = c("V");
  op.positions = T;
  op.types = c("types");
  op.token_ids = c.ids(op.rows, op.vocabulary);
  op.position_ids = c.positions(B, T);
  op.d_out = c.tensor(op.rows * op.C);
  op.d_token_table = c.tensor(op.vocabulary * op.C, DType::f32);
  op.d_position_table = c.tensor(T * op.C, DType::f32);
  if (op.types) op.d_type_table = c.tensor(op.types * op.C, DType::f32);
  return runner(c, op);
}

Run gather_rows(Case& c) {
  const std::int64_t count = c("count"), rows = c("rows"), C = c("C");
  return runner(c, GatherRows{count, C, c.ids(count, rows, true), c.tensor(rows * C), c.tensor(count * C)});
}

Run scatter_rows(Case& c) {
  const std::int64_t count = c("count"), rows = c("rows"), C = c("C");
  return runner(c, ScatterRows{count, rows, C, c.ids(count, rows, true), c.tensor(count * C), c.tensor(rows * C)});
}

Run cross_entropy(Case& c) {
  CrossEntropy op;
  op.rows = c("rows");
  op.V = c("V");
  op.row_stride = c.value("row_stride", op.V);
  op.logits = c.tensor(op.rows * op.row_stride);
  op.targets = c.ids(op.rows, op.V);
  op.write_gradient = c.value("gradient", 1) != 0;
  op.losses = c.tensor(op.rows, DType::f32);
  op.loss_sum = static_cast<double*>(c.memory(sizeof(double)));
  return runner(c, op);
}

Run global_norm(Case& c) {
  const std::int64_t count = c("count");
  return runner(c, GlobalNorm{count, c.tensor(count, DType::f32), c.control()});
}

Run step_decision(Case& c) {
  StepControl* const control = c.control();
  return runner(c, StepDecision{control});
}

Run adamw(Case& c) {
  const std::int64_t count = c("count");
  // A model of 12 layers has some two hundred tensors; two runs of neighbours with one weight decay are enough to time.
  auto segments = std::make_shared<std::vector<AdamWSegment>>();
  segments->push_back({0, count / 2, 0.01f});
  segments->push_back({count / 2, count - count / 2, 0.0f});
  AdamW op;
  op.master = c.tensor(count, DType::f32);
  op.m = c.tensor(count, DType::f32);
  const Tensor v{c.memory(static_cast<std::size_t>(count) * sizeof(float)), DType::f32};  // zero: never negative
  op.v = v;
  op.gradient = c.tensor(count, DType::f32);
  if (c.dtype == DType::bf16) op.storage = c.tensor(count);
  op.segments = segments->data();
  op.segment_count = static_cast<std::int64_t>(segments->size());
  op.control = c.control();
  return [&device = c.device, op, segments] { device.run(op); };
}

Run row_moments(Case& c) {
  const std::int64_t rows = c("rows"), C = c("C");
  auto* const moments = static_cast<Moments*>(c.memory(static_cast<std::size_t>(rows) * sizeof(Moments)));
  return runner(c, RowMoments{rows, C, c.tensor(rows * C), moments});
}

Run cast(Case& c) {
  const std::int64_t count = c("count");
  return runner(c, Cast{count, c.tensor(count, DType::f32), c.tensor(count, DType::bf16)});
}

struct Named {
  const char* name;
  Run (*make)(Case&);
};
constexpr Named kOps[] = {
    {"attention_forward", attention_forward},
    {"attention_backward", attention_backward},
    {"linear_forward", linear_forward},
    {"linear_backward", linear_backward},
    {"activation_forward", activation_forward},
    {"activation_backward", activation_backward},
    {"layernorm_forward", layernorm_forward},
    {"layernorm_backward", layernorm_backward},
    {"dropout_add", dropout_add},
    {"embedding_forward", embedding_forward},
    {"embedding_backward", embedding_backward},
    {"gather_rows", gather_rows},
    {"scatter_rows", scatter_rows},
    {"cross_entropy", cross_entropy},
    {"global_norm", global_norm},
    {"step_decision", step_decision},
    {"adamw", adamw},
    {"row_moments", row_moments},
    {"cast", cast},
};

Json measure(const DeviceOptions& options, const Json& values, double seconds, int samples) {
  const std::string op = values.value("op", "");
  const auto* named = std::find_if(std::begin(kOps), std::end(kOps), [&](const Named& n) { return n.name == op; });
  if (named == std::end(kOps)) fail(ErrorKind::usage, "there is no op \"{}\"", op);
  const std::unique_ptr<Device> device = make_device(options);  // its own: what one case recorded is gone before the next

  std::vector<std::unique_ptr<Case>> cases;
  std::vector<Run> sets;
  const auto add = [&] {
    cases.push_back(std::make_unique<Case>(*device, values));
    sets.push_back(named->make(*cases.back()));
    sets.back()();  // makes plans, grows the workspace
  };
  add();
  const auto copies = std::clamp<std::int64_t>(
      static_cast<std::int64_t>(kCacheBytes / std::max<std::size_t>(cases[0]->bytes(), 1)) + 1, 1, kMostCopies);
  while (static_cast<std::int64_t>(sets.size()) < copies) add();
  device->synchronize();

  const auto run = [&](std::int64_t repeats) {
    for (std::int64_t i = 0; i < repeats; ++i) sets[static_cast<std::size_t>(i % copies)]();
  };
  Clock::time_point begin = Clock::now();
  run(copies);
  device->synchronize();
  const double one = std::max(seconds_since(begin) / static_cast<double>(copies), 1e-7);
  // Whole turns of the copies, so that each sample is of the same ones.
  const double turns = std::min(kSampleSeconds, seconds) / one / static_cast<double>(copies);
  const std::int64_t repeats = copies * std::clamp<std::int64_t>(static_cast<std::int64_t>(turns), 1,
                                                                 std::max<std::int64_t>(kMostRepeats / copies, 1));
  const std::function<void()> work = [&] { run(repeats); };
  const WorkKey key{"bench_ops", {repeats}};
  for (int warm_up = 0; warm_up < 3; ++warm_up) device->repeat(key, work);  // once to run, once to record, once as timed
  device->synchronize();

  Json times = Json::array();
  const Clock::time_point first = Clock::now();
  while (static_cast<int>(times.size()) < samples || seconds_since(first) < seconds) {
    begin = Clock::now();
    device->repeat(key, work);
    device->synchronize();
    times.push_back(seconds_since(begin) / static_cast<double>(repeats));
  }
  return {{"seconds", times}, {"repeats", repeats}, {"copies", copies}};
}

template <class T>
T number(const char* text, const char* name) {
  T value{};
  const std::string digits = text;
  const auto end = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (end.ptr != digits.data() + digits.size() || !(value > T{0}))
    fail(ErrorKind::usage, "{} is \"{}\", but must be a number above 0", name, text);
  return value;
}

void answer(const Json& json) {
  std::puts(json.dump().c_str());
  std::fflush(stdout);
}

void bench(int argc, char** argv) {
  if (argc < 4 || argc > 5) fail(ErrorKind::usage, "expected: bench_ops cpu|cuda SECONDS SAMPLES [THREADS] < cases");
  DeviceOptions options{argv[1], argc == 5 ? number<int>(argv[4], "THREADS") : 0};
  const double seconds = number<double>(argv[2], "SECONDS");
  const int samples = number<int>(argv[3], "SAMPLES");
  for (std::string line; std::getline(std::cin, line);) {
    try {
      answer(measure(options, Json::parse(line), seconds, samples));
    } catch (const std::exception& e) {
      answer({{"error", e.what()}});
    }
  }
}

}  // namespace
}  // namespace outeffhop

int main(int argc, char** argv) {
  try {
    outeffhop::bench(argc, argv);
    return 0;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "bench_ops: %s\n", e.what());
    return 2;
  }
}

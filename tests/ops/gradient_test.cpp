// Each backward of the reference against central differences of its forward, in fp64.
//
// For a scalar L(x) the difference quotient D(h) = (L(x + h) - L(x - h)) / 2h errs by h^2 L'''/6 + O(h^4), so D(h) - D(h/2)
// is three times the truncation error of D(h/2), and bounds it. Each evaluation of L = sum w_i out_i errs by at most K 2^-53
// sum |w_i out_i| with K the roundings on the way to one output, below 64 in these shapes: 2 K 2^-53 S / h after division by
// the step h of D(h/2). The sum of both is the tolerance. A test also fails where the tolerance is too wide to tell a wrong
// gradient from a right one.
#include <algorithm>
#include <functional>
#include <map>

#include "kernels/reference/reference.h"
#include "tests/catch.h"
#include "tests/test_support.h"

namespace outeffhop::test {
namespace {

using Values = std::vector<double>;
using Named = std::map<std::string, Values>;

constexpr double kStep = 0x1p-12;

/// A weighted sum of outputs, and the sum of the magnitudes of its terms.
struct Scalar {
  double value = 0, magnitude = 0;

  void add(const Values& outputs, const Values& weights) {
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      value += outputs[i] * weights[i];
      magnitude += std::fabs(outputs[i] * weights[i]);
    }
  }
};

/// Compares `gradient` with the differences of `scalar` for every element of the inputs that it names.
void check_gradient(Named inputs, const Named& gradient, const std::function<Scalar(Named&)>& scalar) {
  for (const auto& [name, analytic] : gradient) {
    INFO("gradient of " << name);
    REQUIRE(analytic.size() == inputs.at(name).size());
    for (std::size_t i = 0; i < analytic.size(); ++i) {
      double& x = inputs.at(name)[i];
      const double origin = x;
      double magnitude = 0;
      const auto quotient = [&](double h) {
        x = origin + h;
        const Scalar above = scalar(inputs);
        x = origin - h;
        const Scalar below = scalar(inputs);
        x = origin;
        magnitude = std::max({magnitude, above.magnitude, below.magnitude});
        return (above.value - below.value) / (2 * h);
      };
      const double coarse = quotient(kStep), fine = quotient(kStep / 2);
      const double tolerance = std::fabs(coarse - fine) + 64 * 0x1p-53 * 2 * magnitude / (kStep / 2);
      INFO("element " << i << ": analytic " << analytic[i] << ", difference " << fine << ", tolerance " << tolerance);
      CHECK(std::fabs(analytic[i] - fine) <= tolerance);
      CHECK(tolerance <= 1e-5 * (1 + magnitude));
    }
  }
}

Tensor tensor(Values& values) { return {values.data(), DType::f64}; }
ConstTensor tensor(const Values& values) { return {values.data(), DType::f64}; }

}  // namespace

TEST_CASE("embedding gradient") {
  auto rng = generator(11);
  constexpr std::int64_t kRows = 6, kChannels = 3, kVocabulary = 5, kPositions = 4, kTypes = 2, kPadding = 3;
  const std::vector<std::int32_t> tokens{1, 4, 1, 3, 1, 3}, positions{0, 1, 2, 0, 1, 2}, types{0, 0, 1, 1, 0, 1};
  Named inputs{{"base", normal_values(rng, kRows * kChannels)},
               {"tokens", normal_values(rng, kVocabulary * kChannels)},
               {"positions", normal_values(rng, kPositions * kChannels)},
               {"types", normal_values(rng, kTypes * kChannels)}};
  const Values weights = normal_values(rng, kRows * kChannels);
  const auto device = make_reference_device();
  const auto scalar = [&](Named& in) {
    Values out(kRows * kChannels);
    device->run(EmbeddingForward{kRows, kChannels, tokens.data(), positions.data(), types.data(), tensor(in["base"]),
                                 tensor(in["tokens"]), tensor(in["positions"]), tensor(in["types"]), tensor(out)});
    Scalar s;
    s.add(out, weights);
    return s;
  };
  const auto gradient = [&](std::int32_t padding) {
    Named g{{"tokens", Values(kVocabulary * kChannels)},
            {"positions", Values(kPositions * kChannels)},
            {"types", Values(kTypes * kChannels)}};
    device->run(EmbeddingBackward{kRows, kChannels, kVocabulary, kPositions, kTypes, tokens.data(), positions.data(),
                                  types.data(), padding, tensor(weights), tensor(g["tokens"]), tensor(g["positions"]),
                                  tensor(g["types"])});
    return g;
  };
  Named whole = gradient(-1);
  whole["base"] = weights;
  check_gradient(inputs, whole, scalar);
  // The padding token's row alone gets none.
  Named padded = gradient(kPadding);
  for (std::int64_t c = 0; c < kChannels; ++c) whole["tokens"][kPadding * kChannels + c] = 0;
  whole.erase("base");
  CHECK(padded == whole);
}

TEST_CASE("layer norm gradient") {
  auto rng = generator(12);
  constexpr std::int64_t B = 2, T = 2;
  const std::vector<std::uint64_t> samples{7, 1234567890123};
  const auto device = make_reference_device();
  for (const std::int64_t C : {1, 5, 8})
    for (const bool dropped : {false, true}) {
      const std::int64_t count = B * T * C;
      Named inputs{{"x", normal_values(rng, count)},
                   {"residual", normal_values(rng, count)},
                   {"weight", normal_values(rng, C)},
                   {"bias", normal_values(rng, C)}};
      const Values out_weights = normal_values(rng, count), sum_weights = normal_values(rng, count);
      const Dropout dropout = dropped ? Dropout::make(0.3, 5, 1, samples.data()) : Dropout{};
      Values sum(count), out(count), mean(B * T), rstd(B * T);
      const auto forward = [&](Named& in) {
        LayerNormForward op;
        op.B = B;
        op.T = T;
        op.C = C;
        op.epsilon = 1e-3;
        op.x = tensor(in["x"]);
        op.residual = tensor(in["residual"]);
        op.weight = tensor(in["weight"]);
        op.bias = tensor(in["bias"]);
        op.dropout = dropout;
        op.sum = tensor(sum);
        op.out = tensor(out);
        op.mean = tensor(mean);
        op.rstd = tensor(rstd);
        device->run(op);
        Scalar s;
        s.add(out, out_weights);
        s.add(sum, sum_weights);
        return s;
      };
      forward(inputs);
      Named gradient{{"x", Values(count)}, {"residual", Values(count)}, {"weight", Values(C)}, {"bias", Values(C)}};
      LayerNormBackward op;
      op.B = B;
      op.T = T;
      op.C = C;
      op.d_out = tensor(out_weights);
      op.d_sum_in = tensor(sum_weights);
      op.sum = tensor(sum);
      op.mean = tensor(mean);
      op.rstd = tensor(rstd);
      op.weight = tensor(inputs["weight"]);
      op.dropout = dropout;
      op.d_sum = tensor(gradient["residual"]);
      op.d_x = tensor(gradient["x"]);
      op.d_weight = tensor(gradient["weight"]);
      op.d_bias = tensor(gradient["bias"]);
      device->run(op);
      check_gradient(inputs, gradient, forward);
    }
}

TEST_CASE("linear and activation gradient") {
  auto rng = generator(13);
  constexpr std::int64_t kRows = 3, kIn = 4, kOut = 5;
  const auto device = make_reference_device();
  for (const Activation activation : {Activation::none, Activation::gelu_erf, Activation::gelu_tanh, Activation::relu}) {
    Named inputs{{"x", normal_values(rng, kRows * kIn)},
                 {"weight", normal_values(rng, kOut * kIn)},
                 {"bias", normal_values(rng, kOut)}};
    const Values weights = normal_values(rng, kRows * kOut);
    Values pre(kRows * kOut), out(kRows * kOut);
    const auto forward = [&](Named& in) {
      LinearForward op;
      op.rows = kRows;
      op.in = kIn;
      op.out_features = kOut;
      op.x = Operand(tensor(in["x"]));
      op.weight = Operand(tensor(in["weight"]));
      op.bias = tensor(in["bias"]);
      op.activation = activation;
      op.pre = tensor(pre);
      op.out = tensor(out);
      device->run(op);
      Scalar s;
      s.add(out, weights);
      return s;
    };
    forward(inputs);
    // Clear of the kink of ReLU: a step moves pre by at most kStep max |x|.
    for (const double value : pre) REQUIRE(std::fabs(value) > 8 * kStep);
    Named gradient{{"x", Values(kRows * kIn)}, {"weight", Values(kOut * kIn)}, {"bias", Values(kOut)}};
    Values d_pre(kRows * kOut);
    device->run(ActivationBackward{kRows * kOut, activation, tensor(pre), tensor(weights), tensor(d_pre)});
    LinearBackward op;
    op.rows = kRows;
    op.in = kIn;
    op.out_features = kOut;
    op.d_out = tensor(d_pre);
    op.x = tensor(inputs["x"]);
    op.weight = tensor(inputs["weight"]);
    op.d_x = tensor(gradient["x"]);
    op.d_weight = tensor(gradient["weight"]);
    op.d_bias = tensor(gradient["bias"]);
    device->run(op);
    check_gradient(inputs, gradient, forward);
  }
}

TEST_CASE("the derivative of ReLU at 0 is 0") {
  const Values pre{0.0, -0.0, 1.0, -1.0}, d_out{1, 1, 1, 1};
  Values d_pre(4);
  make_reference_device()->run(ActivationBackward{4, Activation::relu, tensor(pre), tensor(d_out), tensor(d_pre)});
  CHECK(d_pre == Values{0, 0, 1, 0});
}

TEST_CASE("dropout gradient is the same op on the gradient") {
  auto rng = generator(14);
  constexpr std::int64_t B = 2, T = 3, C = 9, kCount = B * T * C;
  const std::vector<std::uint64_t> samples{5, 6};
  const Dropout dropout = Dropout::make(0.4, 1, 0, samples.data());
  const auto device = make_reference_device();
  Named inputs{{"x", normal_values(rng, kCount)}, {"residual", normal_values(rng, kCount)}};
  const Values weights = normal_values(rng, kCount);
  Named gradient{{"x", Values(kCount)}, {"residual", weights}};
  device->run(DropoutAdd{B, T, C, tensor(weights), {}, tensor(gradient["x"]), dropout});
  check_gradient(inputs, gradient, [&](Named& in) {
    Values out(kCount);
    device->run(DropoutAdd{B, T, C, tensor(in["x"]), tensor(in["residual"]), tensor(out), dropout});
    Scalar s;
    s.add(out, weights);
    return s;
  });
}

TEST_CASE("scatter is the transpose of gather") {
  auto rng = generator(15);
  constexpr std::int64_t kRows = 6, C = 3, kCount = 4;
  const std::vector<std::int32_t> index{4, 0, -1, 5};
  const auto device = make_reference_device();
  Named inputs{{"x", normal_values(rng, kRows * C)}};
  const Values weights = normal_values(rng, kCount * C);
  Named gradient{{"x", Values(kRows * C, 99.0)}};
  device->run(ScatterRows{kCount, kRows, C, index.data(), tensor(weights), tensor(gradient["x"])});
  check_gradient(inputs, gradient, [&](Named& in) {
    Values out(kCount * C, 99.0);
    device->run(GatherRows{kCount, C, index.data(), tensor(in["x"]), tensor(out)});
    Scalar s;
    s.add(out, weights);
    return s;
  });
}

TEST_CASE("cross-entropy gradient") {
  auto rng = generator(16);
  constexpr std::int64_t kRows = 4, V = 6, kStride = 8;
  constexpr float kScale = 0.25f;
  const std::vector<std::int32_t> targets{2, -1, 5, 0};
  const auto device = make_reference_device();
  const auto run = [&](Values& logits, Values& losses, bool write) {
    CrossEntropy op;
    op.rows = kRows;
    op.V = V;
    op.row_stride = kStride;
    op.logits = tensor(logits);
    op.targets = targets.data();
    op.write_gradient = write;
    op.gradient_scale = kScale;
    op.losses = tensor(losses);
    device->run(op);
  };
  Named inputs{{"logits", normal_values(rng, kRows * kStride, 2.0)}};
  Named gradient = inputs;
  Values unused(kRows);
  run(gradient["logits"], unused, true);
  for (std::int64_t r = 0; r < kRows; ++r)
    for (std::int64_t c = V; c < kStride; ++c) {
      double& beyond = gradient["logits"][r * kStride + c];
      CHECK(beyond == inputs["logits"][r * kStride + c]);
      beyond = 0;  // nothing depends on it
    }
  check_gradient(inputs, gradient, [&](Named& in) {
    Values losses(kRows);
    run(in["logits"], losses, false);
    Scalar s;
    s.add(losses, Values(kRows, kScale));
    return s;
  });
}

namespace {

struct AttentionShape {
  const char* name;
  float n = 1;
  bool causal = false;
  std::int64_t offset = 0, Tq = 3, Tk = 4;
  std::vector<std::int32_t> lengths = {};
  double dropout = 0;
  bool shared_query = false, shared_keys = false;
  std::vector<std::int32_t> ranges = {};
};

void check_attention_gradient(const AttentionShape& shape, std::uint64_t seed) {
  auto rng = generator(seed);
  constexpr std::int64_t B = 2, H = 2, D = 3;
  const std::vector<std::uint64_t> samples{3, 99999999999};
  const auto device = make_reference_device();
  AttentionProblem problem;
  problem.B = B;
  problem.H = H;
  problem.Tq = shape.Tq;
  problem.Tk = shape.Tk;
  problem.D = D;
  problem.scale = 0.7f;
  problem.n = shape.n;
  problem.causal = shape.causal;
  problem.causal_offset = shape.offset;
  problem.key_lengths = shape.lengths.empty() ? nullptr : shape.lengths.data();
  problem.key_ranges = shape.ranges.empty() ? nullptr : shape.ranges.data();
  if (shape.dropout > 0) problem.dropout = Dropout::make(shape.dropout, 17, 4, samples.data());
  const auto view = [&](Values& values, std::int64_t T, bool shared) {
    return HeadView{values.data(), DType::f64, shared ? 0 : T * H * D, H * D, D};
  };
  const std::size_t queries = B * shape.Tq * H * D, keys = B * shape.Tk * H * D;
  const std::size_t query_count = shape.shared_query ? queries / B : queries,
                    key_count = shape.shared_keys ? keys / B : keys;
  Named inputs{
      {"q", normal_values(rng, query_count)}, {"k", normal_values(rng, key_count)}, {"v", normal_values(rng, key_count)}};
  const Values weights = normal_values(rng, queries);
  Values o(queries), lse(B * H * shape.Tq);
  const auto forward = [&](Named& in) {
    device->run(AttentionForward{problem, view(in["q"], shape.Tq, shape.shared_query),
                                 view(in["k"], shape.Tk, shape.shared_keys), view(in["v"], shape.Tk, shape.shared_keys),
                                 view(o, shape.Tq, false), tensor(lse)});
    Scalar s;
    s.add(o, weights);
    return s;
  };
  forward(inputs);
  Values d_o = weights;
  const auto backward = [&](Named& gradient, bool accumulate) {
    AttentionBackward op;
    op.problem = problem;
    op.q = view(inputs["q"], shape.Tq, shape.shared_query);
    op.k = view(inputs["k"], shape.Tk, shape.shared_keys);
    op.v = view(inputs["v"], shape.Tk, shape.shared_keys);
    op.o = view(o, shape.Tq, false);
    op.d_o = view(d_o, shape.Tq, false);
    op.lse = tensor(lse);
    op.d_q = view(gradient["q"], shape.Tq, shape.shared_query);
    op.d_k = view(gradient["k"], shape.Tk, shape.shared_keys);
    op.d_v = view(gradient["v"], shape.Tk, shape.shared_keys);
    op.accumulate_d_q = op.accumulate_d_k = op.accumulate_d_v = accumulate;
    device->run(op);
  };
  Named gradient{{"q", Values(query_count, 5.0)}, {"k", Values(key_count, 5.0)}, {"v", Values(key_count, 5.0)}};
  backward(gradient, false);
  Named accumulated{{"q", Values(query_count, 5.0)}, {"k", Values(key_count, 5.0)}, {"v", Values(key_count, 5.0)}};
  backward(accumulated, true);
  for (const auto& [name, values] : gradient)
    for (std::size_t i = 0; i < values.size(); ++i) CHECK(accumulated[name][i] == 5.0 + values[i]);
  check_gradient(inputs, gradient, forward);
}

}  // namespace

TEST_CASE("attention gradient") {
  std::vector<AttentionShape> shapes;
  std::vector<std::int32_t> packed;
  append_key_ranges({2, 1, 2}, 5, packed);
  append_key_ranges({3}, 5, packed);
  for (const float n : {0.0f, 1.0f, 0.5f, 4.0f}) {
    shapes.push_back({"plain", n});
    shapes.push_back({"causal", n, true, 1});
    shapes.push_back({"lengths", n, false, 0, 3, 4, {3, 0}});
    shapes.push_back({"dropout", n, false, 0, 3, 4, {}, 0.4});
    shapes.push_back({"packed", n, false, 0, 5, 5, {}, 0, false, false, packed});
    shapes.push_back({"packed, causal, dropout", n, true, 0, 5, 5, {5, 3}, 0.3, false, false, packed});
    shapes.push_back({"all at once", n, true, 1, 3, 4, {4, 2}, 0.3});
  }
  shapes.push_back({"causal, rows without a key", 0, true, -1, 4, 3});
  shapes.push_back({"causal, rows without a key", 1, true, -2, 4, 3});
  shapes.push_back({"one key", 1, false, 0, 2, 1});
  shapes.push_back({"more queries than keys", 1, false, 0, 5, 2});
  shapes.push_back({"shared query", 1, false, 0, 2, 5, {5, 1}, 0.3, true, false});
  shapes.push_back({"shared memory", 0, false, 0, 3, 4, {}, 0, false, true});
  shapes.push_back({"both shared", 1, true, 2, 2, 4, {}, 0.2, true, true});
  std::uint64_t seed = 100;
  for (const AttentionShape& shape : shapes) {
    INFO(shape.name << ", n = " << shape.n);
    check_attention_gradient(shape, seed++);
  }
}

}  // namespace outeffhop::test

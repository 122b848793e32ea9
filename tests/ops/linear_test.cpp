#include "kernels/linear.h"

#include <cmath>
#include <numbers>

#include "tests/catch.h"
#include "tests/ops/op_harness.h"
#include "tests/test_support.h"

namespace outeffhop::test {
namespace {

struct Shape {
  std::int64_t rows, in, out;
};
const std::vector<Shape> kShapes = {{1, 1, 1},    {1, 7, 200},    {7, 1, 127},   {7, 127, 1},  {127, 7, 7},
                                    {3, 200, 64}, {127, 64, 200}, {200, 127, 7}, {64, 96, 32}, {33, 768, 48}};
const std::vector<Activation> kActivations = {Activation::none, Activation::gelu_erf, Activation::gelu_tanh,
                                              Activation::relu};

/// A matrix whose rows begin every `stride` elements, the last of which ends the tensor.
HeadLayout rows_apart(std::int64_t rows, std::int64_t columns, std::int64_t stride) {
  return {1, rows, 1, columns, 0, stride};
}

struct Forward {
  Activation activation = Activation::none;
  bool bias = true, pre = false, fp32_out = false, max_abs = false;
  std::int64_t gap = 0;  ///< elements between rows of out
};

OpCase forward_case(const Shape& shape, const Forward& f) {
  auto rng = generator(71);
  OpCase op_case;
  op_case.name = fmt::format(
      "linear forward, rows {}, in {}, out {}, activation {}, bias {}, pre {}, fp32 out {}, max_abs {}, gap {}", shape.rows,
      shape.in, shape.out, static_cast<int>(f.activation), f.bias, f.pre, f.fp32_out, f.max_abs, f.gap);
  const HeadLayout out = rows_apart(shape.rows, shape.out, shape.out + f.gap);
  op_case.input("x", normal_values(rng, shape.rows * shape.in));
  op_case.input("weight", normal_values(rng, shape.out * shape.in, 1.5 / std::sqrt(static_cast<double>(shape.in))));
  op_case.input("bias", normal_values(rng, shape.out));
  if (f.pre) op_case.output("pre", shape.rows * shape.out);
  op_case.output("out", out.extent(), f.fp32_out ? Precision::statistic : Precision::storage).region("rows", out);
  if (f.pre) op_case.output("out_again", shape.rows * shape.out);
  if (f.max_abs) op_case.output("max_abs", 1, Precision::fp32).not_judged();
  op_case.also = [=](const Results& results) {
    if (f.pre) CHECK(results["out_again"].bytes == results["out"].bytes);
    if (!f.max_abs) return;
    double largest = 0;
    for (const double value : results["out"].values) largest = std::max(largest, std::fabs(value));
    CHECK(results["max_abs"].values[0] == largest);  // of what is stored, so exactly
  };
  op_case.call = [=](Device& device, const Operands& at) {
    LinearForward op;
    op.rows = shape.rows;
    op.in = shape.in;
    op.out_features = shape.out;
    op.x = Operand(at["x"]);
    op.weight = Operand(at["weight"]);
    if (f.bias) op.bias = at["bias"];
    op.activation = f.activation;
    if (f.pre) op.pre = at["pre"];
    op.out = at["out"];
    if (f.gap) op.out_stride = out.row_stride;
    if (f.max_abs) op.max_abs = at.float_pointer("max_abs");
    device.run(op);
    if (f.pre) device.run(ActivationForward{shape.rows * shape.out, f.activation, at["pre"], at["out_again"]});
  };
  return op_case;
}

struct Backward {
  bool d_x = true, d_weight = true, d_bias = true, accumulate_d_x = false;
  std::int64_t gap = 0;  ///< elements between rows of d_out, which are NaN
};

OpCase backward_case(const Shape& shape, const Backward& b) {
  auto rng = generator(81);
  OpCase op_case;
  op_case.name =
      fmt::format("linear backward, rows {}, in {}, out {}, d_x {}, d_weight {}, d_bias {}, accumulate {}, gap {}",
                  shape.rows, shape.in, shape.out, b.d_x, b.d_weight, b.d_bias, b.accumulate_d_x, b.gap);
  const HeadLayout d_out = rows_apart(shape.rows, shape.out, shape.out + b.gap);
  auto d_out_values = normal_values(rng, d_out.extent());
  const std::vector<bool> given = d_out.elements(d_out.extent());
  for (std::size_t i = 0; i < given.size(); ++i)
    if (!given[i]) d_out_values[i] = std::nan("");
  op_case.input("d_out", d_out_values);
  op_case.input("x", normal_values(rng, shape.rows * shape.in));
  op_case.input("weight", normal_values(rng, shape.out * shape.in, 1 / std::sqrt(static_cast<double>(shape.out))));
  if (b.d_x && b.accumulate_d_x) op_case.update("d_x", normal_values(rng, shape.rows * shape.in));
  if (b.d_x && !b.accumulate_d_x) op_case.output("d_x", shape.rows * shape.in);
  if (b.d_weight) op_case.update("d_weight", normal_values(rng, shape.out * shape.in), Precision::statistic);
  if (b.d_bias) op_case.update("d_bias", normal_values(rng, shape.out), Precision::statistic);
  op_case.call = [=](Device& device, const Operands& at) {
    LinearBackward op;
    op.rows = shape.rows;
    op.in = shape.in;
    op.out_features = shape.out;
    op.d_out = at["d_out"];
    if (b.gap) op.d_out_stride = d_out.row_stride;
    op.x = at["x"];
    op.weight = at["weight"];
    if (b.d_x) op.d_x = at["d_x"];
    op.accumulate_d_x = b.accumulate_d_x;
    if (b.d_weight) op.d_weight = at["d_weight"];
    if (b.d_bias) op.d_bias = at["d_bias"];
    device.run(op);
  };
  return op_case;
}

}  // namespace

TEST_CASE("linear forward") {
  for (const Shape& shape : kShapes) {
    check(forward_case(shape, {}));
    check(forward_case(shape, {.bias = false}));
    check(forward_case(shape, {.bias = false, .fp32_out = true}));
    check(forward_case(shape, {.fp32_out = true, .max_abs = true}));
  }
}

TEST_CASE("linear forward with an activation") {
  for (const Shape& shape : kShapes)
    for (const Activation activation : kActivations) {
      check(forward_case(shape, {.activation = activation}));
      check(forward_case(shape, {.activation = activation, .pre = true}));
      check(forward_case(shape, {.activation = activation, .bias = false, .pre = true, .max_abs = true}));
    }
}

TEST_CASE("linear backward of a vocabulary, whose gradient is made in parts") {
  check(backward_case({3, 5, 8192 + 7}, {}));
  check(backward_case({20, 3, 2 * 8192 + 1}, {.d_x = false}));
}

TEST_CASE("linear backward") {
  for (const Shape& shape : kShapes) {
    check(backward_case(shape, {}));
    check(backward_case(shape, {.accumulate_d_x = true}));
    check(backward_case(shape, {.d_weight = false, .d_bias = false}));
    check(backward_case(shape, {.d_x = false, .d_bias = false}));
    check(backward_case(shape, {.d_x = false, .d_weight = false}));
    check(backward_case(shape, {.d_x = false}));
  }
}

// What lies between rows stays as it is, and does not count. Gaps of 8 - out % 8 align all rows, as a vocabulary's logits
// are.
TEST_CASE("linear with rows of its result apart") {
  for (const Shape& shape : kShapes)
    for (const std::int64_t gap : {std::int64_t{1}, 8 - shape.out % 8, std::int64_t{64}}) {
      check(forward_case(shape, {.gap = gap}));
      check(forward_case(shape, {.bias = false, .fp32_out = true, .gap = gap}));
      check(forward_case(shape, {.fp32_out = true, .gap = gap}));
      check(backward_case(shape, {.gap = gap}));
      check(backward_case(shape, {.accumulate_d_x = true, .gap = gap}));
    }
  check(backward_case({3, 5, 8192 + 7}, {.gap = 57}));
}

TEST_CASE("linear refuses rows that overlap, and rows apart with what goes with a product") {
  for (DeviceUnderTest& under_test : devices_under_test()) {
    Buffer memory(*under_test.device, 64);
    const Tensor tensor{memory.data(), DType::f32};
    LinearForward op;
    op.rows = op.in = 1;
    op.out_features = 2;
    op.x = Operand(tensor);
    op.weight = Operand(tensor.at(2));
    op.out = tensor.at(4);
    op.out_stride = 3;
    CHECK_NOTHROW(under_test.device->run(op));
    for (const int which : {0, 1, 2, 3}) {
      LinearForward refused = op;
      if (which == 0) refused.out_stride = 1;
      if (which == 1) refused.activation = Activation::relu;
      if (which == 2) refused.pre = tensor.at(8);
      if (which == 3) refused.max_abs = static_cast<float*>(tensor.at(12).data);
      CHECK_THROWS_AS(under_test.device->run(refused), Error);
    }
    LinearBackward backward;
    backward.rows = backward.in = 1;
    backward.out_features = 2;
    backward.d_out_stride = 1;
    CHECK_THROWS_AS(under_test.device->run(backward), Error);
  }
}

// Called again with other shapes and pointers in between, an op that caches what it prepared must not mix them up.
TEST_CASE("linear forward keeps no stale state between calls") {
  for (int round = 0; round < 2; ++round)
    for (const Shape& shape : {Shape{7, 64, 24}, Shape{7, 24, 64}, Shape{9, 64, 24}})
      for (const bool bias : {true, false})
        check(forward_case(shape, {.activation = Activation::gelu_erf, .bias = bias, .pre = round == 1}));
}

TEST_CASE("linear refuses a scaled operand of a plain dtype") {
  for (DeviceUnderTest& under_test : devices_under_test()) {
    Buffer memory(*under_test.device, 64);
    const Tensor one{memory.data(), DType::f32};
    LinearForward op;
    op.rows = op.in = op.out_features = 1;
    op.x = Operand(one);
    op.weight = Operand(one);
    op.out = one.at(4);
    op.x.scale = 0.5f;
    CHECK_THROWS_AS(under_test.device->run(op), Error);
    op.x.scale = 1.0f;
    op.weight.zero_point = 3;
    CHECK_THROWS_AS(under_test.device->run(op), Error);
  }
}

TEST_CASE("activation forward") {
  for (const Activation activation : kActivations)
    for (const std::int64_t count : {1, 7, 33, 1000})
      for (const bool in_place : {false, true}) {
        auto rng = generator(93);
        OpCase op_case;
        op_case.name = fmt::format("activation forward, activation {}, count {}, in place {}", static_cast<int>(activation),
                                   count, in_place);
        const auto pre = normal_values(rng, count, 3.0);
        in_place ? op_case.update("out", pre) : op_case.input("pre", pre);
        if (!in_place) op_case.output("out", count);
        op_case.call = [=](Device& device, const Operands& at) {
          device.run(ActivationForward{count, activation, at[in_place ? "out" : "pre"], at["out"]});
        };
        check(op_case);
      }
}

TEST_CASE("activation backward") {
  for (const Activation activation : kActivations)
    for (const std::int64_t count : {1, 7, 33, 1000})
      for (const bool in_place : {false, true}) {
        auto rng = generator(91);
        OpCase op_case;
        op_case.name = fmt::format("activation backward, activation {}, count {}, in place {}", static_cast<int>(activation),
                                   count, in_place);
        auto pre = normal_values(rng, count, 2.0);
        // The flat ends, the middle, and the dip of GELU's derivative.
        const std::vector<double> special = {0.0, -0.0, 30.0, -30.0, 5.5, -5.5, -1.4142135};
        for (std::size_t i = 0; i < std::min(pre.size() / 2, special.size()); ++i) pre[i] = special[i];
        op_case.input("pre", pre);
        in_place ? op_case.update("d", normal_values(rng, count)) : op_case.input("d_out", normal_values(rng, count));
        if (!in_place) op_case.output("d", count).exact_zeros = activation == Activation::relu;
        op_case.call = [=](Device& device, const Operands& at) {
          device.run(ActivationBackward{count, activation, at["pre"], at[in_place ? "d" : "d_out"], at["d"]});
        };
        check(op_case);
      }
}

// The error rule judges against the largest element; here each is judged by itself, in fp32: both forms within a few units
// in the last place of max(1, |x|), and the erf form's lower tail, where Phi is far below 1, relative to what it is.
TEST_CASE("GELU and its derivative over the whole range") {
  std::vector<float> x, ones;
  for (int i = -3000; i <= 3000; ++i) x.push_back(static_cast<float>(i) * 0.01f);
  ones.assign(x.size(), 1.0f);
  const auto count = static_cast<std::int64_t>(x.size());
  const std::size_t bytes = x.size() * sizeof(float);
  for (DeviceUnderTest& under_test : devices_under_test()) {
    if (under_test.choose) under_test.choose();
    Device& device = *under_test.device;
    Buffer pre(device, bytes), d_out(device, bytes), out(device, bytes), d_pre(device, bytes);
    device.copy_in(pre.data(), x.data(), bytes);
    device.copy_in(d_out.data(), ones.data(), bytes);
    const auto tensor = [](const Buffer& buffer) { return Tensor{buffer.data(), DType::f32}; };
    for (const Activation activation : {Activation::gelu_erf, Activation::gelu_tanh}) {
      device.run(ActivationForward{count, activation, tensor(pre), tensor(out)});
      device.run(ActivationBackward{count, activation, tensor(pre), tensor(d_out), tensor(d_pre)});
      std::vector<float> value(x.size()), slope(x.size());
      device.copy_out(value.data(), out.data(), bytes);
      device.copy_out(slope.data(), d_pre.data(), bytes);
      double worst = 0, worst_slope = 0, worst_tail = 0;
      for (std::size_t i = 0; i < x.size(); ++i) {
        const double t = x[i], root = std::sqrt(2 / std::numbers::pi);
        const double phi = std::exp(-0.5 * t * t) / std::sqrt(2 * std::numbers::pi);
        const double s = 1 / (1 + std::exp(-2 * root * (t + 0.044715 * t * t * t)));
        const bool erf = activation == Activation::gelu_erf;
        const double true_value = t * (erf ? 0.5 * std::erfc(-t / std::numbers::sqrt2) : s);
        const double true_slope = erf ? 0.5 * std::erfc(-t / std::numbers::sqrt2) + t * phi
                                      : s + t * s * (1 - s) * 2 * root * (1 + 3 * 0.044715 * t * t);
        const double scale = std::max(1.0, std::fabs(t));
        worst = std::max(worst, std::fabs(value[i] - true_value) / scale);
        worst_slope = std::max(worst_slope, std::fabs(slope[i] - true_slope));
        if (erf && t < -1 && t > -12) worst_tail = std::max(worst_tail, std::fabs(value[i] / true_value - 1));
      }
      INFO(under_test.name << ", activation " << static_cast<int>(activation));
      CHECK(worst < 8 * 0x1p-24);
      CHECK(worst_slope < 8 * 0x1p-24);
      CHECK(worst_tail < 2e-5);
    }
  }
}

// Far from 0 GELU is 0 or the identity; a tanh or exp that overflows would make a NaN of it.
TEST_CASE("activations at large magnitudes") {
  for (const Activation activation : kActivations) {
    OpCase op_case;
    op_case.name = fmt::format("activation {} of large values", static_cast<int>(activation));
    op_case.input("x", {1, -1, 8, -8, 40, -40, 1000, -1000, 1e10, -1e10, 0});
    op_case.input("weight", {1});
    op_case.output("out", 11);
    op_case.call = [=](Device& device, const Operands& at) {
      LinearForward op;
      op.rows = 11;
      op.in = op.out_features = 1;
      op.x = Operand(at["x"]);
      op.weight = Operand(at["weight"]);
      op.activation = activation;
      op.out = at["out"];
      device.run(op);
    };
    op_case.also = [=](const Results& results) {
      const auto& out = results["out"].values;
      CHECK(out[10] == 0.0);
      if (activation == Activation::none) return;
      // |gelu(x)| <= 1e-7 |x| from |x| = 8 on, in fp32; the error rule judges against the largest output and would not see
      // it.
      for (const std::size_t negative : {5, 7, 9}) CHECK(std::fabs(out[negative]) == 0.0);
    };
    check(op_case);
  }
}

}  // namespace outeffhop::test

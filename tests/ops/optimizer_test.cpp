#include "kernels/optimizer.h"

#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "tests/catch.h"
#include "tests/ops/op_harness.h"
#include "tests/test_support.h"

namespace outeffhop::test {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// A StepControl in device memory.
class Control {
 public:
  Control(Device& device, const StepControl& values) : device_(device), memory_(device, sizeof(StepControl)) {
    device_.copy_in(memory_.data(), &values, sizeof values);
  }
  StepControl* get() const { return memory_.as<StepControl>(); }
  StepControl fetch() const {
    StepControl values;
    device_.synchronize();
    device_.copy_out(&values, memory_.data(), sizeof values);
    return values;
  }

 private:
  Device& device_;
  Buffer memory_;
};

StepControl decide(Device& device, const StepControl& before) {
  const Control control(device, before);
  device.run(StepDecision{control.get()});
  return control.fetch();
}

double norm_square(Device& device, const std::vector<float>& gradient) {
  Buffer memory(device, gradient.size() * sizeof(float));
  if (!gradient.empty()) device.copy_in(memory.data(), gradient.data(), gradient.size() * sizeof(float));
  StepControl values;
  values.learning_rate = 0.5f;
  values.updates = 7;
  const Control control(device, values);
  device.run(GlobalNorm{static_cast<std::int64_t>(gradient.size()), {memory.data(), DType::f32}, control.get()});
  const StepControl after = control.fetch();
  CHECK(after.learning_rate == 0.5f);
  CHECK(after.updates == 7);
  return after.gradient_square_sum;
}

}  // namespace

TEST_CASE("global norm") {
  for (const std::int64_t count : {std::int64_t{0}, std::int64_t{1}, std::int64_t{1000}, kGlobalNormBlock - 1,
                                   kGlobalNormBlock, kGlobalNormBlock + 1, 5 * kGlobalNormBlock + 77}) {
    auto rng = generator(141);
    std::vector<float> gradient(static_cast<std::size_t>(count));
    long double exact = 0;
    for (float& g : gradient) {
      g = static_cast<float>(std::normal_distribution<double>(0, 1e-3)(rng));
      exact += static_cast<long double>(g) * g;
    }
    std::vector<double> found;
    for (DeviceUnderTest& under_test : devices_under_test()) {
      found.push_back(norm_square(*under_test.device, gradient));
      // Squares of fp32 are exact in double; a sum of count positive terms, in any order, errs by at most (count - 1) 2^-53.
      CHECK(std::fabs(static_cast<double>(found.back() - exact)) <=
            static_cast<double>(count) * 0x1p-53 * static_cast<double>(exact));
      CHECK(found.back() == norm_square(*under_test.device, gradient));
    }
    for (const double value : found) CHECK(value == found.front());  // the same bits for any thread count
  }
}

TEST_CASE("global norm shows a NaN, an infinity and what overflows fp32") {
  for (DeviceUnderTest& under_test : devices_under_test()) {
    std::vector<float> gradient(kGlobalNormBlock + 100, 1.0f);
    gradient[kGlobalNormBlock + 50] = std::numeric_limits<float>::quiet_NaN();
    CHECK(std::isnan(norm_square(*under_test.device, gradient)));
    gradient[kGlobalNormBlock + 50] = -std::numeric_limits<float>::infinity();
    CHECK(norm_square(*under_test.device, gradient) == kInfinity);
    CHECK(norm_square(*under_test.device, {1e30f, 0.0f}) == Approx(1e60).epsilon(1e-6));
    CHECK(norm_square(*under_test.device, {1e-30f, 0.0f}) == Approx(1e-60).epsilon(1e-6));
  }
}

TEST_CASE("step decision of a sound step") {
  for (DeviceUnderTest& under_test : devices_under_test()) {
    StepControl before;
    before.learning_rate = 0.25f;
    before.label_count = 50;
    before.loss_sum = 125;
    before.gradient_square_sum = 10000;  // the sum's norm is 100, the mean's 2
    before.updates = 41;

    const StepControl unclipped = decide(*under_test.device, before);
    CHECK(unclipped.loss == 2.5);
    CHECK(unclipped.gradient_norm == 2.0);
    CHECK(unclipped.skip == 0);
    CHECK(unclipped.updates == 42);
    CHECK(unclipped.gradient_scale == 0.02f);
    CHECK(unclipped.learning_rate == 0.25f);
    CHECK(unclipped.label_count == 50);
    CHECK(unclipped.loss_sum == 125);

    before.max_gradient_norm = 1.0f;
    const StepControl clipped = decide(*under_test.device, before);
    CHECK(clipped.gradient_norm == 2.0);  // reported unclipped
    CHECK(clipped.gradient_scale == static_cast<float>(1.0 / (2.0 + 1e-6) / 50));

    before.max_gradient_norm = 3.0f;  // a norm below the limit is never scaled up
    CHECK(decide(*under_test.device, before).gradient_scale == 0.02f);
  }
}

TEST_CASE("step decision skips what is not finite") {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  struct Bad {
    double loss_sum, square_sum, label_count;
  };
  for (DeviceUnderTest& under_test : devices_under_test())
    for (const Bad& bad :
         {Bad{nan, 1, 10}, Bad{kInfinity, 1, 10}, Bad{1, nan, 10}, Bad{1, kInfinity, 10}, Bad{nan, nan, 10}, Bad{0, 0, 0}}) {
      StepControl before;
      before.label_count = bad.label_count;
      before.loss_sum = bad.loss_sum;
      before.gradient_square_sum = bad.square_sum;
      before.max_gradient_norm = 1.0f;
      before.updates = 5;
      const StepControl after = decide(*under_test.device, before);
      INFO("loss sum " << bad.loss_sum << ", square sum " << bad.square_sum << ", labels " << bad.label_count);
      CHECK(after.skip == kSkipNotFinite);
      CHECK(after.updates == 5);
      // A step after it that is sound is taken again.
      StepControl next = after;
      next.label_count = next.loss_sum = next.gradient_square_sum = 4;
      CHECK(decide(*under_test.device, next).skip == 0);
    }
}

TEST_CASE("step decision skips what is above its limits") {
  for (DeviceUnderTest& under_test : devices_under_test()) {
    StepControl before;
    before.label_count = 50;
    before.loss_sum = 125;               // loss 2.5
    before.gradient_square_sum = 10000;  // norm 2
    before.updates = 41;
    struct Limits {
      double loss, gradient_norm;
      std::int32_t skip;
    };
    for (const Limits& limits :
         {Limits{kInfinity, kInfinity, 0}, Limits{2.5, 2.0, 0}, Limits{2.4999, 2.0, kSkipSpike},
          Limits{2.5, 1.9999, kSkipSpike}, Limits{kInfinity, 1.0, kSkipSpike}, Limits{-1.0, kInfinity, kSkipSpike}}) {
      before.loss_limit = limits.loss;
      before.gradient_norm_limit = limits.gradient_norm;
      const StepControl after = decide(*under_test.device, before);
      INFO("limits " << limits.loss << ", " << limits.gradient_norm);
      CHECK(after.skip == limits.skip);
      CHECK(after.updates == (limits.skip ? 41 : 42));
      CHECK(after.gradient_scale == (limits.skip ? 0.0f : 0.02f));
      CHECK(after.loss == 2.5);
      CHECK(after.gradient_norm == 2.0);
    }
    // What is not finite is called so, whatever the limits are.
    before.loss_limit = before.gradient_norm_limit = 1.0;
    before.loss_sum = kInfinity;
    CHECK(decide(*under_test.device, before).skip == kSkipNotFinite);
  }
}

namespace {

struct AdamWVariant {
  bool storage_copy = true;
  std::int32_t skip = 0;
  std::int64_t updates = 1;
  float gradient_scale = 0.01f;
};

OpCase adamw_case(std::int64_t count, std::vector<AdamWSegment> segments, const AdamWVariant& variant) {
  auto rng = generator(151);
  OpCase op_case;
  op_case.name = fmt::format("AdamW, count {}, segments {}, copy {}, skip {}, update {}", count, segments.size(),
                             variant.storage_copy, variant.skip, variant.updates);
  std::vector<bool> inside(static_cast<std::size_t>(count), false);
  if (!variant.skip)
    for (const AdamWSegment& segment : segments) std::fill_n(inside.begin() + segment.begin, segment.count, true);
  const auto master = normal_values(rng, count, 0.05);
  auto m = normal_values(rng, count, 1e-3), v = normal_values(rng, count, 1e-3);
  for (double& value : v) value *= value;
  if (variant.updates == 1) {  // as at the start of training
    m.assign(m.size(), 0.0);
    v.assign(v.size(), 0.0);
  }
  auto gradient = normal_values(rng, count, 0.1);
  if (count > 3) gradient[3] = 0;  // with v = 0 this is 0 / epsilon
  op_case.update("master", master, Precision::statistic).region("master", inside);
  op_case.update("m", m, Precision::statistic).region("m", inside);
  op_case.update("v", v, Precision::statistic).region("v", inside);
  op_case.input("gradient", gradient, Precision::statistic);
  op_case.storages = {variant.storage_copy ? DType::bf16 : DType::f32};
  if (variant.storage_copy) op_case.update("storage", master).region("storage", inside);
  StepControl control;
  control.learning_rate = 2e-3f;
  control.gradient_scale = variant.gradient_scale;
  control.skip = variant.skip;
  control.updates = variant.updates;
  const auto words = std::bit_cast<std::array<std::uint64_t, sizeof(StepControl) / 8>>(control);
  op_case.samples("control", {words.begin(), words.end()});
  op_case.call = [=](Device& device, const Operands& at) {
    AdamW op;
    op.beta1 = 0.9;
    op.beta2 = 0.98;
    op.epsilon = 1e-6;
    op.master = at["master"];
    op.m = at["m"];
    op.v = at["v"];
    op.gradient = at["gradient"];
    if (variant.storage_copy) op.storage = at["storage"];
    op.segments = segments.data();
    op.segment_count = static_cast<std::int64_t>(segments.size());
    op.control = reinterpret_cast<const StepControl*>(at.samples("control"));
    device.run(op);
  };
  op_case.also = [=](const Results& results) {
    if (!variant.storage_copy) return;
    std::int64_t wrong = 0;
    for (std::size_t i = 0; i < inside.size(); ++i)
      if (inside[i])
        wrong += results["storage"].values[i] != static_cast<float>(bf16(static_cast<float>(results["master"].values[i])));
    CHECK(wrong == 0);  // the copy is the rounding of the master weights, to the bit
  };
  return op_case;
}

}  // namespace

TEST_CASE("AdamW") {
  const std::vector<std::vector<AdamWSegment>> layouts = {
      {{0, 1, 0.0f}},
      {{0, 7, 0.01f}},
      {{0, 1000, 0.1f}},
      {{0, 100, 0.01f}, {100, 33, 0.0f}, {133, 1, 0.5f}, {134, 66, 0.0f}},
      {{3, 64, 0.01f}, {80, 100, 0.0f}, {190, 9, 0.02f}},  // gaps before, between and after
      {},
  };
  for (const auto& segments : layouts)
    for (const bool storage_copy : {true, false})
      for (const std::int64_t updates : {1, 2, 1000, 200000}) {
        const std::int64_t count = segments.size() == 1 ? segments[0].count : 200;
        check(adamw_case(count, segments, {.storage_copy = storage_copy, .updates = updates}));
      }
  check(adamw_case(70000, {{0, 40000, 0.01f}, {40064, 29936, 0.0f}}, {.updates = 3}));
}

// A GPU takes a table of segments with each launch, which has room for so many.
TEST_CASE("AdamW of more segments than one launch has room for") {
  std::vector<AdamWSegment> segments;
  std::int64_t at = 0;
  for (std::int64_t s = 0; s < 1300; ++s) {
    segments.push_back({at, s % 7, s % 2 == 0 ? 0.0f : 0.5f});  // some are empty
    at += s % 7 + s % 3;
  }
  check(adamw_case(at, segments, {.updates = 2}));
}

TEST_CASE("AdamW leaves everything as it is when the step is skipped") {
  for (const std::int32_t skip : {kSkipNotFinite, kSkipSpike})
    for (const float scale : {0.0f, std::numeric_limits<float>::quiet_NaN()})
      check(adamw_case(200, {{0, 200, 0.1f}}, {.skip = skip, .updates = 4, .gradient_scale = scale}));
}

// One element by hand, in the words of torch.optim.AdamW: p = 1, g = 0.5, lr = 0.1, decay = 0.1, first step. The decayed
// weight is 0.99; the bias-corrected moments are 0.5 and 0.25, their quotient 1 but for epsilon, so the step is 0.1.
TEST_CASE("the first AdamW step of one weight") {
  for (DeviceUnderTest& under_test : devices_under_test()) {
    Device& device = *under_test.device;
    Buffer memory(device, 64);
    const std::array<float, 4> before{1.0f, 0.0f, 0.0f, 5.0f};
    device.copy_in(memory.data(), before.data(), sizeof before);
    StepControl values;
    values.learning_rate = 0.1f;
    values.gradient_scale = 0.1f;
    values.updates = 1;
    const Control control(device, values);
    const AdamWSegment segment{0, 1, 0.1f};
    const Tensor base{memory.data(), DType::f32};
    AdamW op;
    op.master = base;
    op.m = base.at(1);
    op.v = base.at(2);
    op.gradient = base.at(3);
    op.segments = &segment;
    op.segment_count = 1;
    op.control = control.get();
    device.run(op);
    device.synchronize();
    std::array<float, 4> after;
    device.copy_out(after.data(), memory.data(), sizeof after);
    CHECK(after[0] == Approx(0.89).epsilon(1e-6));
    CHECK(after[1] == Approx(0.05).epsilon(1e-6));
    CHECK(after[2] == Approx(0.00025).epsilon(1e-6));
    CHECK(after[3] == 5.0f);
  }
}

// With one gradient for ever, the bias-corrected moments are g and g^2 at every t: each step is the learning rate.
TEST_CASE("AdamW steps by the learning rate under a constant gradient") {
  for (DeviceUnderTest& under_test : devices_under_test()) {
    Device& device = *under_test.device;
    Buffer memory(device, 64);
    const std::array<float, 4> before{1.0f, 0.0f, 0.0f, -0.5f};
    device.copy_in(memory.data(), before.data(), sizeof before);
    const AdamWSegment segment{0, 1, 0.0f};
    const Tensor base{memory.data(), DType::f32};
    for (int t = 1; t <= 20; ++t) {
      StepControl values;
      values.learning_rate = 0.01f;
      values.gradient_scale = 1.0f;
      values.updates = t;
      const Control control(device, values);
      AdamW op;
      op.master = base;
      op.m = base.at(1);
      op.v = base.at(2);
      op.gradient = base.at(3);
      op.segments = &segment;
      op.segment_count = 1;
      op.control = control.get();
      device.run(op);
      device.synchronize();
      std::array<float, 4> after;
      device.copy_out(after.data(), memory.data(), sizeof after);
      CHECK(after[0] == Approx(1 + 0.01 * t).epsilon(1e-5));
    }
  }
}

}  // namespace outeffhop::test

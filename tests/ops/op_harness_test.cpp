// The harness must catch each kind of defect it exists for: a case that misbehaves on the device under test alone.
#include "tests/ops/op_harness.h"

#include "kernels/reference/reference.h"
#include "tests/catch.h"
#include "tests/test_support.h"

namespace outeffhop::test {
namespace {

constexpr std::int64_t kRows = 5, kChannels = 12;

using Misdeed = std::function<void(Device&, const Operands&)>;

/// Broken rules of a DropoutAdd that is followed by `misdeed` on the device under test.
std::vector<std::string> rules_broken_by(const Misdeed& misdeed, bool partly_written = false) {
  std::vector<DeviceUnderTest> devices;
  devices.push_back({"suspect", make_reference_device(DType::f32)});
  const Device* suspect = devices.front().device.get();
  auto rng = generator(1);
  OpCase op_case;
  op_case.name = "misdeed";
  op_case.input("x", normal_values(rng, kRows * kChannels));
  op_case.input("residual", normal_values(rng, kRows * kChannels));
  auto& out = op_case.output("out", kRows * kChannels + (partly_written ? 1 : 0));
  if (partly_written) {
    std::vector<bool> written(kRows * kChannels + 1, true);
    written.back() = false;
    out.region("out", written);
  }
  op_case.call = [&](Device& device, const Operands& at) {
    device.run(DropoutAdd{1, kRows, kChannels, at["x"], at["residual"], at["out"], {}});
    if (&device == suspect) misdeed(device, at);
  };
  return broken_rules(op_case, devices);
}

bool mentions(const std::vector<std::string>& rules, const std::string& words) {
  for (const std::string& rule : rules)
    if (rule.find(words) != std::string::npos) return true;
  return false;
}

void change_byte(Tensor tensor, std::int64_t element) { *static_cast<unsigned char*>(tensor.at(element).data) ^= 0x40; }

void scale_element(Tensor tensor, std::int64_t i, float factor) {
  if (tensor.dtype == DType::f32) static_cast<float*>(tensor.data)[i] *= factor;
  if (tensor.dtype == DType::bf16) {
    auto* values = static_cast<bf16*>(tensor.data);
    values[i] = bf16(static_cast<float>(values[i]) * factor);
  }
}

}  // namespace

TEST_CASE("a sound op breaks no rule of the harness") {
  const auto rules = rules_broken_by([](Device&, const Operands&) {});
  INFO((rules.empty() ? std::string() : rules.front()));
  CHECK(rules.empty());
  CHECK(rules_broken_by([](Device&, const Operands&) {}, true).empty());
}

TEST_CASE("the harness sees a wrong value") {
  // 5 % on every element is beyond any rounding, in bf16 too.
  const auto rules = rules_broken_by([](Device&, const Operands& at) {
    for (std::int64_t i = 0; i < kRows * kChannels; ++i) scale_element(at["out"], i, 1.05f);
  });
  CHECK(mentions(rules, "fp32, suspect: out: error"));
  CHECK(mentions(rules, "bf16, suspect: out: error"));
}

TEST_CASE("the harness sees an error of a few ulp in fp32") {
  const auto rules = rules_broken_by([](Device&, const Operands& at) {
    for (std::int64_t i = 0; i < kRows * kChannels; ++i) scale_element(at["out"], i, 1.0f + 0x1p-20f);
  });
  CHECK(mentions(rules, "fp32, suspect: out: error"));
}

TEST_CASE("the harness sees a NaN") {
  const auto rules = rules_broken_by(
      [](Device&, const Operands& at) { scale_element(at["out"], 7, std::numeric_limits<float>::quiet_NaN()); });
  CHECK(mentions(rules, "element 7 is"));
}

TEST_CASE("the harness sees writes where nothing should be written") {
  CHECK(mentions(rules_broken_by([](Device&, const Operands& at) { change_byte(at["out"], kRows * kChannels); }),
                 "out: written before its begin or after its end"));
  CHECK(mentions(rules_broken_by([](Device&, const Operands& at) { change_byte(at["out"], -1); }),
                 "out: written before its begin or after its end"));
  CHECK(mentions(rules_broken_by([](Device&, const Operands& at) { change_byte(at["x"], 3); }), "x: 1 elements outside"));
  CHECK(mentions(rules_broken_by([](Device&, const Operands& at) { change_byte(at["out"], kRows * kChannels); }, true),
                 "out: 1 elements outside"));
}

TEST_CASE("the harness sees an output that was not written") {
  std::vector<DeviceUnderTest> devices;
  devices.push_back({"suspect", make_reference_device(DType::f32)});
  OpCase op_case;
  op_case.input("from", {1, 2, 3});
  op_case.output("to", 3);
  op_case.call = [](Device& device, const Operands& at) { device.run(Cast{2, at["from"], at["to"]}); };
  CHECK(mentions(broken_rules(op_case, devices), "to: 1 elements of the output were not written"));
}

TEST_CASE("the harness sees runs that differ") {
  int runs = 0;
  const auto rules = rules_broken_by([&](Device&, const Operands& at) {
    if (++runs == 2) scale_element(at["out"], 0, at["out"].dtype == DType::f32 ? 1.0f + 0x1p-23f : 1.0f + 0x1p-7f);
  });
  CHECK(mentions(rules, "a second run gave other bits"));
}

}  // namespace outeffhop::test

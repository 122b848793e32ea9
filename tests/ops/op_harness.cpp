#include "tests/ops/op_harness.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <random>
#include <tuple>

#include "kernels/reference/reference.h"
#include "kernels/reference/values.h"
#include "tests/catch.h"
#include "tests/test_support.h"

namespace outeffhop::test {
namespace {

constexpr std::size_t kGuardBytes = 256;  // a multiple of the 64-byte alignment that ops may rely on
constexpr int kRandomPerturbations = 4;

/// A NaN whose bits no arithmetic makes.
template <class Word>
constexpr Word poison_bits() {
  if constexpr (sizeof(Word) == 8) return 0x7ff8dead5eedbeefull;
  if constexpr (sizeof(Word) == 4) return 0x7fedbeefu;
  return 0x7fed;
}

template <class Word>
void fill(std::byte* begin, std::size_t bytes) {
  const Word word = poison_bits<Word>();
  for (std::size_t i = 0; i + sizeof word <= bytes; i += sizeof word) std::memcpy(begin + i, &word, sizeof word);
}

void poison(std::byte* begin, std::size_t bytes, std::size_t word) {
  if (word == 8) fill<std::uint64_t>(begin, bytes);
  if (word == 4) fill<std::uint32_t>(begin, bytes);
  if (word == 2) fill<std::uint16_t>(begin, bytes);
}

DType dtype_of(Precision precision, DType storage) {
  switch (precision) {
    case Precision::storage:
      return storage;
    case Precision::statistic:
      return storage == DType::f64 ? DType::f64 : DType::f32;
    case Precision::fp32:
      return DType::f32;
    case Precision::fp64:
      return DType::f64;
  }
  return storage;
}

double rounded(double value, DType dtype) {
  if (dtype == DType::f32) return static_cast<float>(value);
  if (dtype == DType::bf16) return static_cast<float>(reference::nearest_bf16(value));
  return value;
}

double unit_roundoff(DType dtype) {
  if (dtype == DType::f32) return 0x1p-24;
  if (dtype == DType::bf16) return 0x1p-8;
  return 0x1p-53;
}

/// How the inputs of a run of the truth are changed, to see what the op's conditioning makes of it.
struct Perturbation {
  enum class Kind { none, random, growing, shrinking } kind = Kind::none;
  double relative = 0;
  std::mt19937_64* rng = nullptr;

  double operator()(double value) const {
    switch (kind) {
      case Kind::none:
        return value;
      case Kind::random:
        return value * (1 + (((*rng)() & 1u) ? relative : -relative));
      case Kind::growing:
        return value + relative * std::fabs(value);
      case Kind::shrinking:
        return value - relative * std::fabs(value);
    }
    return value;
  }
};

/// Where tensors begin: at the alignment that a device allocates with, or one element further on, as in a flat parameter
/// array.
enum class Placement { aligned, one_element_on };

/// Device memory with a guard band on either side, and the bytes as they were put there.
struct Guarded {
  std::size_t front;  ///< bytes of the guard band before the elements
  Buffer buffer;
  std::vector<std::byte> before;

  Guarded(Device& device, const std::vector<std::byte>& bytes, std::size_t word, Placement placement)
      : front(kGuardBytes + (placement == Placement::aligned ? 0 : word)),
        buffer(device, front + bytes.size() + kGuardBytes),
        before(front + bytes.size() + kGuardBytes) {
    poison(before.data(), front, word);
    if (!bytes.empty()) std::memcpy(before.data() + front, bytes.data(), bytes.size());
    poison(before.data() + front + bytes.size(), kGuardBytes, word);
    device.copy_in(buffer.data(), before.data(), before.size());
  }
  void* data() const { return static_cast<std::byte*>(buffer.data()) + front; }
  std::vector<std::byte> fetch(Device& device) const {
    std::vector<std::byte> after(before.size());
    device.copy_out(after.data(), buffer.data(), after.size());
    return after;
  }
  bool guards_intact(const std::vector<std::byte>& after) const {
    return std::equal(before.begin(), before.begin() + static_cast<std::ptrdiff_t>(front), after.begin()) &&
           std::equal(before.end() - kGuardBytes, before.end(), after.end() - kGuardBytes);
  }
};

struct Placed {
  std::string name;
  DType dtype;
  Guarded memory;
};

class PlacedOperands final : public Operands {
 public:
  PlacedOperands(const OpCase& op_case, Device& device, DType storage, DType rounding, const Perturbation& perturbation,
                 Placement placement) {
    for (const auto& tensor : op_case.tensors) {
      const DType dtype = dtype_of(tensor->precision, storage);
      const DType input_dtype = dtype_of(tensor->precision, rounding);
      std::vector<std::byte> bytes(static_cast<std::size_t>(tensor->count) * size_of(dtype));
      if (tensor->role == Role::output) {
        poison(bytes.data(), bytes.size(), size_of(dtype));
      } else {
        for (std::int64_t i = 0; i < tensor->count; ++i) {
          const double value = rounded(tensor->values[static_cast<std::size_t>(i)], input_dtype);
          reference::write<double>({bytes.data(), dtype}, i, perturbation(value));
        }
      }
      tensors_.push_back({tensor->name, dtype, Guarded(device, bytes, size_of(dtype), placement)});
    }
    for (const auto& [name, values] : op_case.int_arrays)
      ints_.push_back({name, DType::i32, place(device, values, placement)});
    for (const auto& [name, values] : op_case.sample_arrays)
      samples_.push_back({name, DType::i32, place(device, values, placement)});
  }

  Tensor operator[](const std::string& name) const override {
    const Placed& placed = find(tensors_, name);
    return {placed.memory.data(), placed.dtype};
  }
  const std::int32_t* ints(const std::string& name) const override {
    return static_cast<const std::int32_t*>(find(ints_, name).memory.data());
  }
  const std::uint64_t* samples(const std::string& name) const override {
    return static_cast<const std::uint64_t*>(find(samples_, name).memory.data());
  }

  Results results(const OpCase& op_case, Device& device) const {
    Results results;
    for (std::size_t k = 0; k < tensors_.size(); ++k) read_back(*op_case.tensors[k], tensors_[k], device, results);
    for (const auto* arrays : {&ints_, &samples_})
      for (const Placed& array : *arrays)
        if (array.memory.fetch(device) != array.memory.before)
          results.violations.push_back(array.name + ": a read-only array was changed");
    return results;
  }

 private:
  template <class T>
  static Guarded place(Device& device, const std::vector<T>& values, Placement placement) {
    std::vector<std::byte> bytes(values.size() * sizeof(T));
    if (!values.empty()) std::memcpy(bytes.data(), values.data(), bytes.size());
    return Guarded(device, bytes, sizeof(T), placement);
  }

  static const Placed& find(const std::vector<Placed>& all, const std::string& name) {
    for (const Placed& placed : all)
      if (placed.name == name) return placed;
    fail(ErrorKind::internal, "an op case asked for a tensor \"{}\" that it does not declare", name);
  }

  static void read_back(const TensorCase& tensor, const Placed& placed, Device& device, Results& results) {
    const std::vector<std::byte> after = placed.memory.fetch(device);
    if (!placed.memory.guards_intact(after))
      results.violations.push_back(tensor.name + ": written before its begin or after its end");
    Results::Entry entry{
        placed.dtype, {after.begin() + static_cast<std::ptrdiff_t>(placed.memory.front), after.end() - kGuardBytes}, {}};
    entry.values = reference::load<double>({entry.bytes.data(), entry.dtype}, tensor.count);
    std::vector<bool> written(static_cast<std::size_t>(tensor.count), tensor.role != Role::input && tensor.regions.empty());
    for (const auto& [label, elements] : tensor.regions)
      for (std::size_t i = 0; i < elements.size(); ++i)
        if (elements[i]) written[i] = true;
    const std::size_t word = size_of(placed.dtype);
    std::int64_t touched = 0, missed = 0;
    std::vector<std::byte> poisoned(word);
    poison(poisoned.data(), word, word);
    const bool changed = after != placed.memory.before;
    for (std::int64_t i = 0; i < tensor.count && (changed || tensor.role == Role::output); ++i) {
      const std::byte* now = entry.bytes.data() + static_cast<std::size_t>(i) * word;
      const std::byte* was = placed.memory.before.data() + placed.memory.front + static_cast<std::size_t>(i) * word;
      if (!written[static_cast<std::size_t>(i)]) touched += std::memcmp(now, was, word) != 0;
      const bool is_nan = std::isnan(entry.values[static_cast<std::size_t>(i)]);
      if (written[static_cast<std::size_t>(i)] && tensor.role == Role::output && is_nan)
        missed += std::memcmp(now, poisoned.data(), word) == 0;
    }
    if (touched)
      results.violations.push_back(
          fmt::format("{}: {} elements outside what the op writes were changed", tensor.name, touched));
    if (missed)
      results.violations.push_back(fmt::format("{}: {} elements of the output were not written", tensor.name, missed));
    results.tensors.emplace_back(tensor.name, std::move(entry));
  }

  std::vector<Placed> tensors_, ints_, samples_;
};

Results execute(const OpCase& op_case, Device& device, DType storage, DType rounding, const Perturbation& perturbation,
                Placement placement) {
  const PlacedOperands operands(op_case, device, storage, rounding, perturbation, placement);
  op_case.call(device, operands);
  device.synchronize();
  return operands.results(op_case, device);
}

/// The distance of two results over the elements of a region.
struct Distance {
  double maximum = 0, rms = 0;
};

struct Comparison {
  Distance distance;
  std::string mismatch;  ///< an element that no tolerance excuses
};

Comparison compare(const std::vector<double>& truth, const std::vector<double>& result, const std::vector<bool>& elements,
                   bool exact_zeros) {
  Comparison c;
  double squares = 0;
  std::int64_t count = 0;
  for (std::size_t i = 0; i < truth.size(); ++i) {
    if (!elements[i]) continue;
    ++count;
    const double t = truth[i], r = result[i];
    const bool same_kind = std::isfinite(t) ? std::isfinite(r) : (std::isnan(t) ? std::isnan(r) : t == r);
    if (!same_kind || (exact_zeros && t == 0.0 && r != 0.0)) {
      if (c.mismatch.empty()) c.mismatch = fmt::format("element {} is {}, but should be {}", i, r, t);
      continue;
    }
    if (!std::isfinite(t)) continue;
    const double error = std::fabs(r - t);
    c.distance.maximum = std::max(c.distance.maximum, error);
    squares += error * error;
  }
  c.distance.rms = std::sqrt(squares / static_cast<double>(std::max<std::int64_t>(count, 1)));
  return c;
}

Distance larger(Distance a, Distance b) { return {std::max(a.maximum, b.maximum), std::max(a.rms, b.rms)}; }

/// The truth and all that the bounds of one storage dtype are made of.
struct Yardstick {
  const OpCase& op_case;
  DType storage;
  std::unique_ptr<Device> exact = make_reference_device(DType::f64);
  Results truth = execute(op_case, *exact, DType::f64, storage);
  Results plain = execute(op_case, *make_reference_device(DType::f32), storage, storage);
  std::vector<Results> changed = {};

  /// The truth of inputs a little changed: made when first asked for, as most results are within a bound without it.
  const std::vector<Results>& perturbed() {
    std::mt19937_64 rng(1);
    const auto perturb = [&](Perturbation::Kind kind) {
      const Perturbation perturbation{kind, op_case.perturbation, &rng};
      changed.push_back(execute(op_case, *exact, DType::f64, storage, perturbation, Placement::aligned));
    };
    if (!changed.empty()) return changed;
    for (int k = 0; k < kRandomPerturbations; ++k) perturb(Perturbation::Kind::random);
    perturb(Perturbation::Kind::growing);
    perturb(Perturbation::Kind::shrinking);
    return changed;
  }
};

void judge(const TensorCase& tensor, const std::string& label, const std::vector<bool>& elements, Yardstick& yardstick,
           const Results& result, const std::string& where, std::vector<std::string>& broken) {
  const auto& truth = yardstick.truth[tensor.name].values;
  const Results::Entry& got = result[tensor.name];
  const Comparison mine = compare(truth, got.values, elements, tensor.exact_zeros);
  if (!mine.mismatch.empty()) {
    broken.push_back(fmt::format("{} {}: {}", where, label, mine.mismatch));
    return;
  }
  const Distance plain = compare(truth, yardstick.plain[tensor.name].values, elements, false).distance;
  const Distance magnitude = compare(std::vector<double>(truth.size(), 0.0), truth, elements, false).distance;
  const double u = unit_roundoff(got.dtype);
  const double cancelling = 0x1p-24 * tensor.cancelling;
  double maximum_bound = 2 * plain.maximum + u * magnitude.maximum + cancelling;
  double rms_bound = 2 * plain.rms + u * magnitude.rms + cancelling;
  const auto within = [&] { return mine.distance.maximum <= maximum_bound && mine.distance.rms <= rms_bound; };
  if (within()) return;  // the inputs' conditioning can only raise the bounds
  Distance conditioning;
  for (const Results& p : yardstick.perturbed())
    conditioning = larger(conditioning, compare(truth, p[tensor.name].values, elements, false).distance);
  maximum_bound += conditioning.maximum;
  rms_bound += conditioning.rms;
  if (!within())
    broken.push_back(
        fmt::format("{} {}: error {:.3g} (rms {:.3g}) is above the bound {:.3g} (rms {:.3g}); plain formula {:.3g} (rms "
                    "{:.3g}), conditioning "
                    "{:.3g} (rms {:.3g}), magnitude {:.3g} (rms {:.3g})",
                    where, label, mine.distance.maximum, mine.distance.rms, maximum_bound, rms_bound, plain.maximum,
                    plain.rms, conditioning.maximum, conditioning.rms, magnitude.maximum, magnitude.rms));
}

void judge(const OpCase& op_case, Yardstick& yardstick, const Results& result, const std::string& where,
           std::vector<std::string>& broken) {
  for (const auto& tensor : op_case.tensors) {
    if (tensor->role == Role::input || !tensor->judged) continue;
    if (tensor->regions.empty())
      judge(*tensor, tensor->name, std::vector<bool>(static_cast<std::size_t>(tensor->count), true), yardstick, result,
            where, broken);
    for (const auto& [label, elements] : tensor->regions) judge(*tensor, label, elements, yardstick, result, where, broken);
  }
}

std::string difference(const Results& a, const Results& b) {
  for (std::size_t k = 0; k < a.tensors.size(); ++k)
    if (a.tensors[k].second.bytes != b.tensors[k].second.bytes) return a.tensors[k].first;
  return "";
}

void append(std::vector<std::string>& all, const std::string& where, const std::vector<std::string>& violations) {
  for (const std::string& violation : violations) all.push_back(where + " " + violation);
}

}  // namespace

HeadLayout HeadLayout::dense(std::int64_t B, std::int64_t T, std::int64_t H, std::int64_t D) {
  return {B, T, H, D, T * H * D, H * D, D, 0};
}
HeadLayout HeadLayout::packed(std::int64_t B, std::int64_t T, std::int64_t H, std::int64_t D, int which, int parts) {
  return {B, T, H, D, T * parts * H * D, parts * H * D, D, which * H * D};
}
HeadLayout HeadLayout::shared(std::int64_t B, std::int64_t T, std::int64_t H, std::int64_t D) {
  return {B, T, H, D, 0, H * D, D, 0};
}

std::int64_t HeadLayout::extent() const {
  if (B * T * H * D == 0) return offset;
  return element(B - 1, T - 1, H - 1, D - 1) + 1;
}

std::vector<bool> HeadLayout::elements(std::int64_t count) const {
  require(extent() <= count, "a view of {} elements was laid into a tensor of {}", extent(), count);
  std::vector<bool> reached(static_cast<std::size_t>(count), false);
  for (std::int64_t b = 0; b < B; ++b)
    for (std::int64_t t = 0; t < T; ++t)
      for (std::int64_t h = 0; h < H; ++h)
        for (std::int64_t d = 0; d < D; ++d) reached[static_cast<std::size_t>(element(b, t, h, d))] = true;
  return reached;
}

TensorCase& TensorCase::region(const std::string& label, std::vector<bool> elements) {
  require(static_cast<std::int64_t>(elements.size()) == count, "region {} of {} has {} elements, the tensor {}", label, name,
          elements.size(), count);
  regions.emplace_back(label, std::move(elements));
  return *this;
}

TensorCase& TensorCase::cancels(double magnitude) {
  cancelling = magnitude;
  return *this;
}

TensorCase& TensorCase::not_judged() {
  judged = false;
  return *this;
}

TensorCase& TensorCase::with_exact_zeros() {
  exact_zeros = true;
  return *this;
}

HeadView Operands::view(const std::string& name, const HeadLayout& layout) const {
  const Tensor tensor = (*this)[name].at(layout.offset);
  return {tensor.data, tensor.dtype, layout.batch_stride, layout.row_stride, layout.head_stride};
}

float* Operands::float_pointer(const std::string& name) const {
  const Tensor tensor = (*this)[name];
  require(tensor.dtype == DType::f32, "tensor {} is {}, not fp32", name, name_of(tensor.dtype));
  return static_cast<float*>(tensor.data);
}

double* Operands::double_pointer(const std::string& name) const {
  const Tensor tensor = (*this)[name];
  require(tensor.dtype == DType::f64, "tensor {} is {}, not fp64", name, name_of(tensor.dtype));
  return static_cast<double*>(tensor.data);
}

const Results::Entry& Results::operator[](const std::string& name) const {
  for (const auto& [candidate, entry] : tensors)
    if (candidate == name) return entry;
  fail(ErrorKind::internal, "a test asked for the result \"{}\" that its case does not declare", name);
}

TensorCase& OpCase::input(const std::string& tensor, std::vector<double> values, Precision precision) {
  const auto count = static_cast<std::int64_t>(values.size());
  tensors.push_back(std::make_unique<TensorCase>(
      TensorCase{tensor, Role::input, precision, count, std::move(values), {}, false, 0, true}));
  return *tensors.back();
}
TensorCase& OpCase::output(const std::string& tensor, std::int64_t count, Precision precision) {
  tensors.push_back(
      std::make_unique<TensorCase>(TensorCase{tensor, Role::output, precision, count, {}, {}, false, 0, true}));
  return *tensors.back();
}
TensorCase& OpCase::update(const std::string& tensor, std::vector<double> values, Precision precision) {
  TensorCase& added = input(tensor, std::move(values), precision);
  added.role = Role::update;
  return added;
}
void OpCase::ints(const std::string& array, std::vector<std::int32_t> values) {
  int_arrays.emplace_back(array, std::move(values));
}
void OpCase::samples(const std::string& array, std::vector<std::uint64_t> values) {
  sample_arrays.emplace_back(array, std::move(values));
}

Results execute(const OpCase& op_case, Device& device, DType storage, DType rounding) {
  return execute(op_case, device, storage, rounding, Perturbation{}, Placement::aligned);
}

std::vector<std::string> broken_rules(const OpCase& op_case, std::vector<DeviceUnderTest>& devices) {
  std::vector<std::string> broken;
  for (const DType storage : op_case.storages) {
    const std::string dtype = name_of(storage);
    Yardstick yardstick{op_case, storage};
    append(broken, dtype + ", fp64 reference:", yardstick.truth.violations);
    append(broken, dtype + ", plain formula:", yardstick.plain.violations);
    struct Runs {
      Results aligned, unaligned;
    };
    std::unique_ptr<Runs> first;
    for (DeviceUnderTest& under_test : devices) {
      const std::string where = fmt::format("{}, {}:", dtype, under_test.name);
      if (under_test.choose) under_test.choose();
      const Results result = execute(op_case, *under_test.device, storage, storage);
      append(broken, where, result.violations);
      judge(op_case, yardstick, result, where, broken);
      if (op_case.also) op_case.also(result);
      if (!(first && under_test.always_as_first)) {  // else what the first one did, in another order, is the other run
        const std::string differing = difference(result, execute(op_case, *under_test.device, storage, storage));
        if (!differing.empty()) broken.push_back(fmt::format("{} {}: a second run gave other bits", where, differing));
      }
      const Results unaligned =
          execute(op_case, *under_test.device, storage, storage, Perturbation{}, Placement::one_element_on);
      const std::string shifted = where + " tensors off their alignment:";
      append(broken, shifted, unaligned.violations);
      judge(op_case, yardstick, unaligned, shifted, broken);
      if (first && (op_case.thread_invariant || under_test.always_as_first)) {
        for (const auto& [mine, of_first, when] :
             {std::tuple{&result, &first->aligned, where}, {&unaligned, &first->unaligned, shifted}})
          if (const std::string other = difference(*of_first, *mine); !other.empty())
            broken.push_back(fmt::format("{} {}: other bits than with {}", when, other, devices.front().name));
      }
      if (!first) first = std::make_unique<Runs>(Runs{result, unaligned});
    }
  }
  return broken;
}

void check(const OpCase& op_case) {
  INFO(op_case.name);
  for (const std::string& rule : broken_rules(op_case, devices_under_test())) FAIL_CHECK(rule);
  SUCCEED();
}

}  // namespace outeffhop::test

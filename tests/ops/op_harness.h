// One way to test an op, in the manner of ggml's test-backend-ops: an OpCase names the tensors of one call of one op and
// says how to make the call; the harness makes it on
//   - the fp64 reference with fp64 tensors: the truth, of inputs that are already rounded to the dtype under test;
//   - the fp32 reference with tensors of the dtype under test: the plain formula;
//   - each device under test (the CPU on one and on two threads; or CUDA on the executor in three orders of lanes, which must
//     agree to the bit), with aligned tensors, twice, and once with every tensor off its alignment,
// for both storage dtypes, and checks for every output tensor
//   1. error(device) <= 2 error(plain formula) + rounding noise, in the maximum and in the root-mean-square norm;
//   2. that nothing is touched which the case does not declare as written: read-only inputs, elements between strided rows,
//      and guard bands before and after each tensor, which hold NaNs, so that a stray read shows as well as a stray write;
//   3. that the second run has the same bits as the first, and, where the contract promises it, any thread count has.
//
// Rounding noise, derived. The plain formula may be right by luck (one element, a sum that happens to be exact), so a bound
// of a multiple of its error alone could be 0. A sound kernel differs from the truth by
//   - the rounding of what it stores, at most u |t| an element, u = 2^-24 (fp32), 2^-8 (bf16), which even an exact kernel
//     commits: u max |t| in the maximum norm, u rms(t) in the root-mean-square norm;
//   - roundings of intermediate values in fp32. An algorithm is called backward stable when they act like a relative change
//     of the inputs by a few 2^-24; one ulp (2^-23) is allowed. What such a change does to the output is measured: the fp64
//     reference runs again with every floating-point input x changed by 2^-23 x or -2^-23 x, the signs drawn at random (four
//     times) or such that all x grow, or all shrink, by 2^-23 |x| (the worst case of a sum); the largest change counts;
//   - where a formula subtracts values that are equal in exact arithmetic (the layer norm of one channel), their rounding:
//     a case says how large they are (TensorCase::cancels), and 2^-24 of that counts.
// So an op that is ill-conditioned for its inputs (layer norm of a huge mean) gets the slack that its conditioning gives
// everyone, and no more.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/device.h"

namespace outeffhop::test {

/// Which dtype a tensor has: on the fp64 reference / with the storage dtype S under test.
enum class Precision {
  storage,    ///< fp64 / S
  statistic,  ///< fp64 / fp32: statistics, losses, gradients of parameters
  fp32,       ///< fp32 / fp32: what a contract types as float*
  fp64,       ///< fp64 / fp64: what a contract types as double*
};

enum class Role {
  input,   ///< read only
  output,  ///< written: holds NaNs before the call
  update,  ///< read and written: accumulated into, or an allowed alias of an input
};

/// A (B, T, H, D) view into a tensor of a case: strides and offset in elements, as in HeadView.
struct HeadLayout {
  std::int64_t B = 0, T = 0, H = 0, D = 0;
  std::int64_t batch_stride = 0, row_stride = 0, head_stride = 0, offset = 0;

  static HeadLayout dense(std::int64_t B, std::int64_t T, std::int64_t H, std::int64_t D);
  /// Part `which` of a packed (B, T, parts, H, D) projection.
  static HeadLayout packed(std::int64_t B, std::int64_t T, std::int64_t H, std::int64_t D, int which, int parts = 3);
  /// One (T, H, D) tensor shared by the batch: batch stride 0.
  static HeadLayout shared(std::int64_t B, std::int64_t T, std::int64_t H, std::int64_t D);

  std::int64_t element(std::int64_t b, std::int64_t t, std::int64_t h, std::int64_t d) const {
    return offset + b * batch_stride + t * row_stride + h * head_stride + d;
  }
  /// Elements a tensor needs to hold the view.
  std::int64_t extent() const;
  /// True at each element of a tensor of `count` elements that the view reaches.
  std::vector<bool> elements(std::int64_t count) const;
};

struct TensorCase {
  std::string name;
  Role role = Role::input;
  Precision precision = Precision::storage;
  std::int64_t count = 0;
  std::vector<double> values;  ///< of inputs and updates
  /// Parts whose errors are judged apart; together, what the call writes. None: the whole tensor is written.
  std::vector<std::pair<std::string, std::vector<bool>>> regions;
  bool exact_zeros = false;  ///< where the truth is exactly 0, the result has to be
  double cancelling = 0;     ///< the magnitude of intermediate values that cancel exactly in the truth
  bool judged = true;        ///< false: the error rule does not apply, OpCase::also says what must hold

  /// Declares that of this tensor only the given regions are written.
  TensorCase& region(const std::string& label, std::vector<bool> elements);
  TensorCase& region(const std::string& label, const HeadLayout& layout) { return region(label, layout.elements(count)); }
  TensorCase& with_exact_zeros();
  TensorCase& not_judged();
  TensorCase& cancels(double magnitude);
};

/// The tensors of a case on one device, by name; what a case builds the op's argument struct from.
class Operands {
 public:
  virtual ~Operands() = default;
  virtual Tensor operator[](const std::string& name) const = 0;
  /// int32 and uint64 arrays in device memory.
  virtual const std::int32_t* ints(const std::string& name) const = 0;
  virtual const std::uint64_t* samples(const std::string& name) const = 0;
  HeadView view(const std::string& name, const HeadLayout& layout) const;
  float* float_pointer(const std::string& name) const;    ///< of a tensor of Precision::fp32
  double* double_pointer(const std::string& name) const;  ///< of a tensor of Precision::fp64
};

/// What a call left in the tensors of a case.
struct Results {
  struct Entry {
    DType dtype;
    std::vector<std::byte> bytes;  ///< of the elements, guards left out
    std::vector<double> values;    ///< the same, decoded
  };
  std::vector<std::pair<std::string, Entry>> tensors;
  std::vector<std::string> violations;  ///< guard bands, inputs or gaps that were touched; outputs that were not written

  const Entry& operator[](const std::string& name) const;
};

struct OpCase {
  std::string name;
  std::function<void(Device&, const Operands&)> call;

  /// Exact properties beyond the error rule, checked with Catch macros on the results of each device under test.
  std::function<void(const Results&)> also;
  bool thread_invariant = false;  ///< the contract promises the same bits for any thread count
  std::vector<DType> storages = {DType::f32, DType::bf16};
  double perturbation =
      0x1p-23;  ///< of the inputs, for the rounding noise: other than one fp32 ulp where an op computes in double

  TensorCase& input(const std::string& name, std::vector<double> values, Precision precision = Precision::storage);
  TensorCase& output(const std::string& name, std::int64_t count, Precision precision = Precision::storage);
  TensorCase& update(const std::string& name, std::vector<double> values, Precision precision = Precision::storage);
  void ints(const std::string& name, std::vector<std::int32_t> values);
  void samples(const std::string& name, std::vector<std::uint64_t> values);

  std::vector<std::unique_ptr<TensorCase>> tensors;
  std::vector<std::pair<std::string, std::vector<std::int32_t>>> int_arrays;
  std::vector<std::pair<std::string, std::vector<std::uint64_t>>> sample_arrays;
};

struct DeviceUnderTest {
  std::string name;
  std::unique_ptr<Device> device;
  std::function<void()> choose = nullptr;  ///< called before the device is used, where several share what is global
  bool always_as_first = false;            ///< has to give the bits that the first device gives, in every case
};

/// Each test program has its own: the CPU on one and two threads (tests/ops/cpu_devices.cpp), or the CUDA backend on the
/// executor in three orders (tests/simt/simt_devices.cpp).
std::vector<DeviceUnderTest>& devices_under_test();

/// Makes the call on one device. `storage` is fp64 for the truth; inputs are rounded to `rounding` (fp32 for statistics)
/// first.
Results execute(const OpCase& op_case, Device& device, DType storage, DType rounding);

/// Every broken rule, in words; empty when the device keeps all of them.
std::vector<std::string> broken_rules(const OpCase& op_case, std::vector<DeviceUnderTest>& devices);

/// Runs a case on all devices under test and fails the test for each broken rule.
void check(const OpCase& op_case);

}  // namespace outeffhop::test

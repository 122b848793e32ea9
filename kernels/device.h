// A device: memory and the ops, behind one interface. Models and the trainer hold a Device and never learn which one.
//
// To add a backend: implement this class, and make it in kernels/make_device.cpp, the only file that knows them all.
// To add an op: a header of its contract, a line here, a row in tests/.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "kernels/attention.h"
#include "kernels/cross_entropy.h"
#include "kernels/dropout.h"
#include "kernels/embedding.h"
#include "kernels/error.h"
#include "kernels/gather.h"
#include "kernels/layernorm.h"
#include "kernels/linear.h"
#include "kernels/optimizer.h"
#include "kernels/statistics.h"
#include "kernels/tensor.h"

namespace outeffhop {

class Device;

/// Owned device memory, 64-byte aligned, zero-filled. Movable; frees itself. Must not outlive its device.
class Buffer {
 public:
  Buffer() = default;
  Buffer(Device& device, std::size_t bytes);
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  ~Buffer();

  void* data() const { return data_; }
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  std::size_t bytes() const { return bytes_; }

 private:
  Device* device_ = nullptr;
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

/// What tells apart work that is done again and again, such as the micro-batches of a run: work of one key runs the same
/// ops, of the same sizes, on the same memory. What changes from one time to the next lies in that memory.
struct WorkKey {
  std::string_view name;                ///< of static storage; profilers show it
  std::array<std::int64_t, 8> shape{};  ///< all that decides which ops are run

  auto operator<=>(const WorkKey&) const = default;
};

/// Memory of a device, in bytes; 0 where the device does not tell (a CPU: see train/memory_limit.h).
struct DeviceMemory {
  std::size_t total = 0, available = 0;
};

/// Device::logit_bytes of a CPU, whose products are as fast in parts, and of a GPU, which is not busy with a few hundred rows.
constexpr std::size_t kHostLogitBytes = std::size_t{128} << 20, kGpuLogitBytes = std::size_t{1} << 30;

class Device {
 public:
  virtual ~Device() = default;

  /// One line for logs: "CPU, 2 threads, AVX-512 (bf16 products), oneDNN 2.6.3".
  virtual std::string description() const = 0;

  /// Multiplications and additions a second of dense matrix products in `storage`, at the device's highest clock, as its
  /// maker counts them; 0: unknown.
  virtual double peak_flops(DType storage) const {
    (void)storage;
    return 0.0;
  }
  virtual DeviceMemory memory() const { return {}; }
  /// What the device has taken of its memory for its ops to work in, beside what was asked of allocate(). It grows where an
  /// op needs more than any before it: all that a step needs is in it after the first one.
  virtual std::size_t workspace_bytes() const { return 0; }

  /// Bytes of logits, of all that a batch has, for a model to make at a time: as few as leave products their full speed.
  virtual std::size_t logit_bytes() const { return kHostLogitBytes; }

  /// How the device runs matrix products, where it measured several ways: text for another device of the same kind, with
  /// which it gives the same bits. Empty where there is nothing to keep.
  virtual std::string plans() const { return {}; }
  /// Takes what plans() gave. False, and nothing changes, where it was made by another chip or library.
  virtual bool use_plans(std::string_view plans) { return plans.empty(); }

  // Memory. Copies are ordered with the ops of the device; synchronize() waits for all of them.
  virtual void* allocate(
      std::size_t bytes) = 0;  ///< 64-byte aligned, zero-filled; throws Error(unsupported) when there is none
  virtual void release(void* data) noexcept = 0;
  virtual void copy_in(void* device_destination, const void* host_source, std::size_t bytes) = 0;
  virtual void copy_out(void* host_destination, const void* device_source, std::size_t bytes) = 0;
  virtual void copy(void* device_destination, const void* device_source, std::size_t bytes) = 0;
  virtual void zero(void* data, std::size_t bytes) = 0;
  virtual void synchronize() = 0;

  /// As copy_in, but beside the ops that run: they see the bytes after the next await_copies_ahead(). What the destination
  /// held may have been read only by ops from before the latest await_copies_ahead(): two destinations in turn.
  virtual void copy_in_ahead(void* device_destination, const void* host_source, std::size_t bytes) {
    copy_in(device_destination, host_source, bytes);
  }
  virtual void await_copies_ahead() {}

  /// Runs `work`, or what it did when it was run for this key before: a device that can records the ops then (CUDA graphs),
  /// and `work` is not called again. It may call ops, copy(), zero() and ranges; anything it does on the host is done
  /// only sometimes. Does not allocate if `work` wraps a std::reference_wrapper.
  virtual void repeat(const WorkKey& key, const std::function<void()>& work) {
    (void)key;
    work();
  }

  /// Names what is run until the end of the range, for profilers. Ranges nest; see Range.
  virtual void begin_range(const char* name) { (void)name; }
  virtual void end_range() {}

  // Ops: each contract in the header of its name.
  virtual void run(const EmbeddingForward& op) = 0;
  virtual void run(const EmbeddingBackward& op) = 0;
  virtual void run(const LayerNormForward& op) = 0;
  virtual void run(const LayerNormBackward& op) = 0;
  virtual void run(const LinearForward& op) = 0;
  virtual void run(const LinearBackward& op) = 0;
  virtual void run(const ActivationForward& op) = 0;
  virtual void run(const ActivationBackward& op) = 0;
  virtual void run(const AttentionForward& op) = 0;
  virtual void run(const AttentionBackward& op) = 0;
  virtual void run(const AttentionScores& op) = 0;
  virtual void run(const AttentionProbabilities& op) = 0;
  virtual void run(const AttentionContext& op) = 0;
  virtual void run(const DropoutAdd& op) = 0;
  virtual void run(const GatherRows& op) = 0;
  virtual void run(const ScatterRows& op) = 0;
  virtual void run(const CrossEntropy& op) = 0;
  virtual void run(const GlobalNorm& op) = 0;
  virtual void run(const StepDecision& op) = 0;
  virtual void run(const AdamW& op) = 0;
  virtual void run(const RowMoments& op) = 0;
  virtual void run(const Cast& op) = 0;
};

/// A named part of a step, while it lives.
class Range {
 public:
  Range(Device& device, const char* name) : device_(device) { device_.begin_range(name); }
  Range(const Range&) = delete;
  Range& operator=(const Range&) = delete;
  ~Range() { device_.end_range(); }

 private:
  Device& device_;
};

struct DeviceOptions {
  std::string kind = "auto";  ///< "auto", "cpu", "cuda"
  int threads = 0;            ///< CPU threads; 0: all that this process may use
  bool eager = false;         ///< never record and replay: every op is launched by itself, within named ranges
};

/// What a kind of device stands for on this machine.
struct DeviceChoice {
  std::string kind;
  std::string reason;  ///< why "auto" stands for it; empty where another kind was asked for
};

/// "auto" stands for "cuda" where this build has it and the machine a GPU that it can use, else for "cpu"; any other kind
/// for itself.
DeviceChoice choose_device(const std::string& kind);

/// Makes the device of the options. Throws Error(unsupported) with what this build and machine do have, Error(usage) for a
/// kind that there is nowhere.
std::unique_ptr<Device> make_device(const DeviceOptions& options);

/// Device::logit_bytes of the device that make_device would make, wherever it can be made.
std::size_t logit_bytes(const DeviceOptions& options);

/// What this build has, whatever the machine: "CPU, CUDA (toolkit 13.0.88 for sm_80, sm_90a)".
std::string built_backends();

inline Buffer::Buffer(Device& device, std::size_t bytes)
    : device_(&device), data_(bytes ? device.allocate(bytes) : nullptr), bytes_(bytes) {}
inline Buffer::Buffer(Buffer&& other) noexcept : device_(other.device_), data_(other.data_), bytes_(other.bytes_) {
  other.data_ = nullptr;
  other.bytes_ = 0;
}
inline Buffer& Buffer::operator=(Buffer&& other) noexcept {
  if (this != &other) {
    if (data_) device_->release(data_);
    device_ = other.device_;
    data_ = other.data_;
    bytes_ = other.bytes_;
    other.data_ = nullptr;
    other.bytes_ = 0;
  }
  return *this;
}
inline Buffer::~Buffer() {
  if (data_) device_->release(data_);
}

}  // namespace outeffhop

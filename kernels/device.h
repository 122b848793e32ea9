// A device: memory and the ops, behind one interface. Models and the trainer hold a Device and never learn which one.
//
// To add a backend: implement this class, and make it in kernels/make_device.cpp, the only file that knows them all.
// To add an op: a header of its contract, a line here, a row in tests/.
#pragma once

#include <memory>
#include <string>

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

class Device {
 public:
  virtual ~Device() = default;

  /// One line for logs: "CPU, 2 threads, AVX-512 (bf16 products), oneDNN 2.6.3".
  virtual std::string description() const = 0;

  // Memory. Copies are ordered with the ops of the device; synchronize() waits for all of them.
  virtual void* allocate(std::size_t bytes) = 0;  ///< 64-byte aligned, zero-filled; throws Error(unsupported) when there is none
  virtual void release(void* data) noexcept = 0;
  virtual void copy_in(void* device_destination, const void* host_source, std::size_t bytes) = 0;
  virtual void copy_out(void* host_destination, const void* device_source, std::size_t bytes) = 0;
  virtual void zero(void* data, std::size_t bytes) = 0;
  virtual void synchronize() = 0;

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

struct DeviceOptions {
  std::string kind = "auto";  ///< "auto", "cpu", "cuda"
  int threads = 0;            ///< CPU threads; 0: all that this process may use
};

/// Makes the device of the options. Throws Error(unsupported) with what this build and machine do have, Error(usage) for a
/// kind that there is nowhere.
std::unique_ptr<Device> make_device(const DeviceOptions& options);

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

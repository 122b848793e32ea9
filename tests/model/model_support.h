// What the model tests share: small configs, random batches on a device, and a model whose parameters, loss and gradients
// are plain vectors of doubles whatever the dtype.
#pragma once

#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/device.h"
#include "model/model.h"

namespace outeffhop::test {

/// What backend_test.cpp tests: each test program has its own.
std::unique_ptr<Device> backend_under_test();

/// Two layers, three heads of size 4, dropout 0.2 and 0.3; sizes that are no multiple of anything.
ModelConfig tiny_bert(const std::string& attn_softmax = "softmax1");
/// The same for OPT, with GELU: finite differences have no kink to step over. `word_embed_proj_dim` 0: no projections.
ModelConfig tiny_opt(const std::string& attn_softmax = "softmax1", std::int64_t word_embed_proj_dim = 0);

/// A batch in host memory.
struct HostBatch {
  std::int64_t B = 0, T = 0;
  std::vector<std::int32_t> input_ids, position_ids, type_ids, key_lengths;
  std::vector<std::uint64_t> sample_ids;
  std::vector<std::int32_t> label_rows, label_ids;
};

/// Random tokens other than padding, random types, about half of the positions labelled. Positions from key_length on are
/// padding: pad_token_id, the model's padding position, no label. `key_lengths` empty: no padding.
HostBatch random_batch(const ModelConfig& config, std::mt19937_64& rng, std::int64_t B, std::int64_t T,
                       std::vector<std::int32_t> key_lengths = {});

/// Sample `b` of a batch alone.
HostBatch one_sample(const HostBatch& batch, std::int64_t b);

/// A batch copied to a device.
class DeviceBatch {
 public:
  DeviceBatch(Device& device, const HostBatch& batch);
  const ModelBatch& view() const { return view_; }

 private:
  template <class T>
  const T* copy(Device& device, const std::vector<T>& values);
  std::vector<Buffer> buffers_;
  ModelBatch view_;
};

/// Random values for every element, biases and layer norms included, of a size that keeps activations of order 1.
std::vector<double> random_parameters(const ParameterTable& table, std::mt19937_64& rng);

struct LossAndGradient {
  double loss = 0.0;
  std::vector<double> gradient;  ///< flat, as the parameter table lies
};

class ModelUnderTest {
 public:
  ModelUnderTest(const ModelConfig& config, const ModelOptions& options, Device& device);

  Model& operator*() { return *model_; }
  Model* operator->() { return model_.get(); }
  Device& device() { return device_; }

  /// Writes the master weights and rounds them to storage.
  void set_parameters(const std::vector<double>& flat);
  /// What the model reads: the master weights, or their rounding.
  std::vector<double> stored_parameters();

  double forward(const HostBatch& batch, SiteVisitor* visitor = nullptr);
  /// Starts from zero gradients.
  LossAndGradient forward_backward(const HostBatch& batch, bool dropout);
  /// Of several micro-batches, accumulated.
  LossAndGradient forward_backward(const std::vector<HostBatch>& batches, bool dropout);
  std::vector<double> logits(const HostBatch& batch);

 private:
  Device& device_;
  std::unique_ptr<Model> model_;
  Buffer loss_;
};

/// Device memory as doubles, and back.
std::vector<double> read_tensor(Device& device, ConstTensor tensor, std::int64_t count);
void write_tensor(Device& device, Tensor tensor, const std::vector<double>& values);

/// The message of the Error that `action` throws; empty when it throws none.
std::string error_message(const std::function<void()>& action);
bool contains(const std::string& text, const std::string& part);

double norm(const std::vector<double>& values);
/// || a - b ||, over the elements of one parameter.
double distance(const Parameter& parameter, const std::vector<double>& a, const std::vector<double>& b);
double norm(const Parameter& parameter, const std::vector<double>& values);

/// What a gradient's error is measured against: its own norm, or for a key bias, whose true gradient vanishes under any
/// shift-invariant softmax, the norm of the query bias's gradient if that is larger.
double error_scale(const ParameterTable& table, const Parameter& parameter, const std::vector<double>& truth);

}  // namespace outeffhop::test

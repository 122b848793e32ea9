// The parameters of a model in device memory: flat arrays laid out by the parameter table, and views of single parameters.
#pragma once

#include <string>

#include "kernels/device.h"
#include "model/parameters.h"

namespace outeffhop {

/// One parameter: what the forward reads and where the backward accumulates (null when the model does not train).
struct Weight {
  Tensor value;     ///< storage dtype
  Tensor gradient;  ///< fp32 (fp64 in an fp64 model)

  Weight at(std::int64_t elements) const { return {value.at(elements), gradient.at(elements)}; }
};

/// A Hugging Face Linear: weight (out, in), bias (out) or null.
struct LinearLayer {
  Weight weight, bias;
  std::int64_t in = 0, out = 0;
};

/// The dtype of what is never rounded to storage: statistics, gradients, master weights.
constexpr DType unrounded(DType storage) { return storage == DType::f64 ? DType::f64 : DType::f32; }

class Weights {
 public:
  Weights(Device& device, ParameterTable table, DType dtype, bool training);

  const ParameterTable& table() const { return table_; }
  Weight operator[](const std::string& name) const;
  LinearLayer linear(const std::string& name, std::int64_t in, std::int64_t out, bool bias = true) const;

  Tensor master() const { return {master_.data(), unrounded(dtype_)}; }
  Tensor storage() const { return {storage_.data() ? storage_.data() : master_.data(), dtype_}; }
  Tensor gradients() const { return {gradients_.data(), unrounded(dtype_)}; }
  void round_to_storage();

  std::size_t master_bytes() const { return master_.bytes(); }
  std::size_t storage_bytes() const { return storage_.bytes(); }
  std::size_t gradient_bytes() const { return gradients_.bytes(); }

 private:
  Device& device_;
  ParameterTable table_;
  DType dtype_;
  Buffer master_, storage_, gradients_;
};

}  // namespace outeffhop

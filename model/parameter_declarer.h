// Declares the parameters of Hugging Face's modules: what a Linear, a LayerNorm or an Embedding adds to the table, how it
// starts and whether it decays.
#pragma once

#include <array>
#include <string>

#include "model/config.h"
#include "model/parameters.h"

namespace outeffhop {

class ParameterDeclarer {
 public:
  explicit ParameterDeclarer(const ModelConfig& config) : config_(config) {}

  /// NAME.weight (rows, columns), N(0, initializer_range); `zero_row` as in Parameter.
  void embedding(const std::string& name, std::int64_t rows, std::int64_t columns, std::int64_t zero_row = -1);
  /// NAME.weight (out, in), N(0, initializer_range), and NAME.bias (out), 0, if asked for.
  void linear(const std::string& name, std::int64_t out, std::int64_t in, bool bias = true);
  /// A linear layer of the attention: as `linear`, or uniform with config.attention_init "linear".
  void attention_linear(const std::string& name, std::int64_t size);
  /// Query, key and value: three (C, C) weights back to back, read as one (3C, C) matrix, then three biases likewise.
  void query_key_value(const std::array<std::string, 3>& names, std::int64_t size);
  /// NAME.weight (size) ones and NAME.bias (size) zeros.
  void layernorm(const std::string& name, std::int64_t size);
  /// A bias of its own, 0.
  void bias(const std::string& full_name, std::int64_t size);

  ParameterTable take() { return std::move(table_); }

 private:
  Parameter normal_weight(const std::string& name, std::int64_t out, std::int64_t in) const;
  Parameter attention_weight(const std::string& name, std::int64_t size) const;
  Parameter attention_bias(const std::string& name, std::int64_t size) const;

  const ModelConfig& config_;
  ParameterTable table_;
};

}  // namespace outeffhop

// The parameters of a model as a table: names and shapes as Hugging Face has them, and where each lies in a flat array.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace outeffhop {

/// How a parameter starts.
enum class Init : std::uint8_t { zero, one, normal, uniform_fan_in };

struct Parameter {
  std::string name;                  ///< Hugging Face name, e.g. "bert.encoder.layer.0.attention.self.query.weight"
  std::vector<std::int64_t> shape;
  std::int64_t offset = 0;           ///< elements from the start of the flat array
  std::int64_t count = 0;            ///< product of shape
  bool decay = true;                 ///< takes weight decay whatever wd_LN_gamma says (weights and embeddings)
  bool layernorm_weight = false;     ///< takes weight decay only under wd_LN_gamma
  Init init = Init::zero;
  double init_scale = 0.0;           ///< standard deviation (normal) or half-width (uniform)
  std::int64_t zero_row = -1;        ///< a row that starts at 0 (the padding token's embedding); -1: none
};

class ParameterTable {
 public:
  /// Appends one parameter; its offset is aligned to 64 elements. Returns its index.
  std::size_t add(Parameter parameter);
  /// Appends parameters that lie back to back, so that they can also be read as one matrix (query, key, value).
  std::size_t add_fused(std::vector<Parameter> parameters);

  const std::vector<Parameter>& all() const { return parameters_; }
  const Parameter& operator[](std::size_t i) const { return parameters_[i]; }
  const Parameter* find(const std::string& name) const;
  std::int64_t flat_size() const { return flat_size_; }  ///< elements of the flat array, padding included
  std::int64_t total() const;                            ///< elements of all parameters, padding excluded

 private:
  std::vector<Parameter> parameters_;
  std::int64_t flat_size_ = 0;
};

/// Fills `flat` (table.flat_size() floats, host) with initial values: a pure function of (seed, name, element).
/// Normal values by Box-Muller from Philox stream kStreamInitialisation.
void initialise(const ParameterTable& table, std::uint64_t seed, float* flat);

}  // namespace outeffhop

#include "kernels/cuda/plan_text.h"

#include <cstring>
#include <nlohmann/json.hpp>

#include "kernels/cuda/check.h"

namespace outeffhop::cuda {
namespace {

using nlohmann::json;

/// What has to be the same for an algorithm to mean the same.
json origin() {
  int device = 0, runtime = 0;
  cudaDeviceProp properties{};
  OUTEFFHOP_CUDA(cudaGetDevice(&device));
  OUTEFFHOP_CUDA(cudaGetDeviceProperties(&properties, device));
  OUTEFFHOP_CUDA(cudaRuntimeGetVersion(&runtime));
  return {{"format", 1},
          {"chip", properties.name},
          {"compute_capability", fmt::format("{}.{}", properties.major, properties.minor)},
          {"multiprocessors", properties.multiProcessorCount},
          {"cublaslt", cublasLtGetVersion()},
          {"cudart", runtime}};
}

// The algorithm is stored as it lies in memory: "trivially serializable", says NVIDIA, for the same version of the library.
std::string hexadecimal(const cublasLtMatmulAlgo_t& algorithm) {
  std::string text;
  for (const std::uint64_t word : algorithm.data) text += fmt::format("{:016x}", word);
  return text;
}
cublasLtMatmulAlgo_t algorithm_of(const std::string& text) {
  cublasLtMatmulAlgo_t algorithm{};
  for (std::size_t i = 0; i < std::size(algorithm.data); ++i)
    algorithm.data[i] = std::stoull(text.substr(16 * i, 16), nullptr, 16);
  return algorithm;
}

json written(const ProductKey& key, const cublasLtMatmulAlgo_t& algorithm) {
  return {{"M", key.M},
          {"N", key.N},
          {"K", key.K},
          {"a_stride", key.a_stride},
          {"out_stride", key.out_stride},
          {"operands", name_of(key.operands)},
          {"out", name_of(key.out)},
          {"a_transposed", key.a_transposed},
          {"b_transposed", key.b_transposed},
          {"epilogue", key.epilogue},
          {"alignments", {key.a_alignment, key.b_alignment, key.out_alignment}},
          {"algorithm", hexadecimal(algorithm)}};
}

ProductKey key_of(const json& product) {
  const auto number = [&](const char* name) { return product.at(name).get<std::int64_t>(); };
  const auto refuse_unless = [](bool sound) {
    if (!sound) throw std::invalid_argument("no product");
  };
  const auto dtype = [&](const char* name) {
    const auto text = product.at(name).get<std::string>();
    refuse_unless(text == name_of(DType::bf16) || text == name_of(DType::f32));
    return text == name_of(DType::bf16) ? DType::bf16 : DType::f32;
  };
  const auto alignment = [&](int i) {
    const auto bytes = product.at("alignments").at(i).get<std::int64_t>();
    refuse_unless(bytes == 1 || bytes == 2 || bytes == 4 || bytes == 8 || bytes == 16);
    return static_cast<std::uint32_t>(bytes);
  };
  const auto epilogue = product.at("epilogue").get<std::int64_t>();
  refuse_unless(epilogue == CUBLASLT_EPILOGUE_DEFAULT || epilogue == CUBLASLT_EPILOGUE_BIAS ||
                epilogue == CUBLASLT_EPILOGUE_GELU || epilogue == CUBLASLT_EPILOGUE_GELU_BIAS);
  const bool a_transposed = product.at("a_transposed").get<bool>();
  refuse_unless(number("M") > 0 && number("N") > 0 && number("K") > 0 && number("out_stride") >= number("N") &&
                number("a_stride") >= (a_transposed ? number("M") : number("K")));
  return {number("M"),
          number("N"),
          number("K"),
          number("a_stride"),
          number("out_stride"),
          dtype("operands"),
          dtype("out"),
          a_transposed,
          product.at("b_transposed").get<bool>(),
          static_cast<std::uint32_t>(epilogue),
          alignment(0),
          alignment(1),
          alignment(2)};
}

}  // namespace

std::string write_algorithms(const Algorithms& algorithms) {
  json text = origin();
  text["products"] = json::array();
  for (const auto& [key, algorithm] : algorithms) text["products"].push_back(written(key, algorithm));
  return text.dump();
}

std::optional<Algorithms> read_algorithms(std::string_view text) {
  const json parsed = json::parse(text, nullptr, false);
  if (!parsed.is_object()) return {};
  const json here = origin();
  for (const auto& [name, value] : here.items())
    if (!parsed.contains(name) || parsed[name] != value) return {};
  try {
    Algorithms algorithms;
    for (const json& product : parsed.at("products"))
      algorithms[key_of(product)] = algorithm_of(product.at("algorithm").get<std::string>());
    return algorithms;
  } catch (const json::exception&) {
    return {};
  } catch (const std::logic_error&) {  // of std::stoull and std::string
    return {};
  }
}

}  // namespace outeffhop::cuda

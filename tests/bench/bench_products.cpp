// Times the bare matrix products of a training step: for each linear layer the forward product, the gradient of its input
// and that of its weight, by the product engine of the CPU backend (oneDNN) alone: no bias, no activation, no accumulation.
//
//   bench_products fp32|bf16 THREADS PASSES < layers       a layer a line: how many of it, rows, in, out
//
// Prints JSON: the median over passes of the seconds of all products of a step, their FLOPs, and who multiplied.
#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <iostream>
#include <string>
#include <vector>

#include "kernels/cpu/product.h"
#include "kernels/error.h"
#include "kernels/tensor.h"

namespace outeffhop {
namespace {

struct Layer {
  std::int64_t count, rows, in, out;
};

/// Values that are neither 0 nor denormal, which a processor may treat otherwise.
std::vector<char> filled(std::int64_t elements, DType dtype) {
  std::vector<char> bytes(static_cast<std::size_t>(elements) * (dtype == DType::bf16 ? 2 : 4));
  for (std::int64_t i = 0; i < elements; ++i) {
    const auto value = static_cast<std::uint32_t>(0x3F800000u + (static_cast<std::uint32_t>(i) % 127u << 16));
    if (dtype == DType::bf16) {
      reinterpret_cast<std::uint16_t*>(bytes.data())[i] = static_cast<std::uint16_t>(value >> 16);
    } else {
      reinterpret_cast<std::uint32_t*>(bytes.data())[i] = value;
    }
  }
  return bytes;
}

std::vector<cpu::Product> products_of(const Layer& layer, DType dtype, std::vector<std::vector<char>>& memory) {
  const std::int64_t rows = layer.rows, in = layer.in, out = layer.out;
  const auto make = [&](std::int64_t elements, DType type) {
    memory.push_back(filled(elements, type));
    return Tensor{memory.back().data(), type};
  };
  const Tensor x = make(rows * in, dtype), weight = make(out * in, dtype), y = make(rows * out, dtype);
  const Tensor d_weight = make(out * in, DType::f32);
  cpu::Product forward, input_gradient;
  forward.M = rows, forward.N = out, forward.K = in;
  forward.a = x, forward.b = weight, forward.b_transposed = true, forward.c = y;
  input_gradient.M = rows, input_gradient.N = in, input_gradient.K = out;
  input_gradient.a = y, input_gradient.b = weight, input_gradient.c = x;
  std::vector<cpu::Product> products = {forward, input_gradient};
  // In parts, as kernels/cpu/linear.cpp multiplies: that is faster, and what the step is held against should be the fastest.
  constexpr std::int64_t kGradientRows = 8192;
  for (std::int64_t begin = 0; begin < out; begin += kGradientRows) {
    cpu::Product part;
    part.M = std::min(kGradientRows, out - begin), part.N = in, part.K = rows;
    part.a = y.at(begin), part.a_transposed = true, part.a_stride = out, part.b = x, part.c = d_weight.at(begin * in);
    products.push_back(part);
  }
  return products;
}

int positive(const char* text, const char* name) {
  int value = 0;
  const std::string digits = text;
  const auto end = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (end.ptr != digits.data() + digits.size() || value < 1) {
    fail(ErrorKind::usage, "{} is \"{}\", but must be a whole number, at least 1", name, text);
  }
  return value;
}

void bench(DType dtype, int threads, int passes) {
  using Clock = std::chrono::steady_clock;
  std::vector<Layer> layers;
  for (Layer l{}; std::cin >> l.count >> l.rows >> l.in >> l.out;) layers.push_back(l);
  if (layers.empty() || !std::cin.eof()) {
    fail(ErrorKind::usage, "line {} of standard input is not a layer: expected \"count rows in out\"", layers.size() + 1);
  }
  cpu::ProductEngine engine(threads);
  std::vector<double> seconds(static_cast<std::size_t>(passes), 0.0);
  double flops = 0.0;
  // Layer by layer, not pass by pass: the memory of one layer at a time.
  for (const Layer& layer : layers) {
    std::vector<std::vector<char>> memory;
    for (const cpu::Product& product : products_of(layer, dtype, memory)) {
      const auto count = static_cast<double>(layer.count);
      engine.run(product);  // makes the primitive
      for (double& pass : seconds) {
        const Clock::time_point begin = Clock::now();
        engine.run(product);
        pass += count * std::chrono::duration<double>(Clock::now() - begin).count();
      }
      flops += count * 2.0 * static_cast<double>(product.M) * static_cast<double>(product.N) * static_cast<double>(product.K);
    }
  }
  std::sort(seconds.begin(), seconds.end());
  const double median = seconds[seconds.size() / 2];
  fmt::print(R"({{"seconds": {:.6g}, "flops": {:.17g}, "gflops_per_second": {:.6g}, "products": "{}"}})"
             "\n",
             median, flops, flops / median * 1e-9, engine.description());
}

}  // namespace
}  // namespace outeffhop

int main(int argc, char** argv) {
  try {
    const std::string type = argc == 4 ? argv[1] : "";
    if (type != "fp32" && type != "bf16") {
      outeffhop::fail(outeffhop::ErrorKind::usage, "expected: bench_products fp32|bf16 THREADS PASSES < layers");
    }
    outeffhop::bench(type == "bf16" ? outeffhop::DType::bf16 : outeffhop::DType::f32,
                     outeffhop::positive(argv[2], "THREADS"), outeffhop::positive(argv[3], "PASSES"));
    return 0;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "bench_products: %s\n", e.what());
    return 2;
  }
}

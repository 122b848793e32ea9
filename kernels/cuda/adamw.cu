// AdamW over all parameters, in one launch, after one of a single thread that computes the step's two corrections: powers in
// double take microseconds, as long as a block takes for its 4,096 elements. A block takes a tile of one segment, and finds
// its segment in a table that comes with the launch. Reads four arrays and writes four, each once: 30 bytes a parameter.
//
// A thread updates four elements at a time: neighbouring threads then load neighbouring 16 bytes of the fp32 arrays, where
// eight elements would be two loads with gaps. Segments of a parameter table begin at multiples of 64 elements; one that
// begins elsewhere, or arrays that do, take an element a thread.
#include <algorithm>

#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx/bf16_pair.cuh"
#include "kernels/cuda/storage.h"

namespace outeffhop::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTile = 4096;     // elements of a block: enough that finding its segment costs little
constexpr int kSegments = 512;  // of one launch: 12 KiB of the 32,764 bytes that kernel parameters may have

struct Segment {
  std::int64_t begin, count;
  unsigned first_block;  ///< the first of the blocks that share it
  float weight_decay;
};

/// What depends on the step alone.
struct StepCorrections {
  float step_size, inverse_root_of_correction2;
};

struct AdamWTable {
  float* master;
  float* m;
  float* v;
  const float* gradient;
  bf16* storage;  ///< or null
  const StepControl* control;
  const StepCorrections* corrections;
  double beta1, beta2, epsilon;
  bool aligned;  ///< the arrays begin at multiples of four elements
  int segments;
  Segment segment[kSegments];
};

/// The scalars of one step, for one weight decay.
struct StepFactors {
  float gradient_scale, decay_factor, beta1, beta2, one_minus_beta1, one_minus_beta2, step_size, inverse_root_of_correction2,
      epsilon;
};

__device__ __forceinline__ void update(float& p, float& m, float& v, float gradient, const StepFactors& step) {
  const float g = gradient * step.gradient_scale;
  m = m * step.beta1 + g * step.one_minus_beta1;
  v = v * step.beta2 + g * g * step.one_minus_beta2;
  p = p * step.decay_factor - step.step_size * (m / (sqrtf(v) * step.inverse_root_of_correction2 + step.epsilon));
}

__device__ __forceinline__ int segment_of_block(const AdamWTable& table) {
  int low = 0, high = table.segments;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (table.segment[middle].first_block <= blockIdx.x ? low : high) = middle;
  }
  return low;
}

/// Powers and differences of numbers near 1 are taken in double. A step that is skipped has updates = 0 at first, whose
/// corrections are infinite: nobody reads them.
__global__ void adamw_corrections_kernel(const StepControl* control, double beta1, double beta2,
                                         StepCorrections* corrections) {
  const auto t = static_cast<double>(control->updates), learning_rate = static_cast<double>(control->learning_rate);
  corrections->step_size = static_cast<float>(learning_rate / (1.0 - pow(beta1, t)));
  corrections->inverse_root_of_correction2 = static_cast<float>(1.0 / sqrt(1.0 - pow(beta2, t)));
}

__global__ __launch_bounds__(kThreads) void adamw_kernel(const __grid_constant__ AdamWTable table) {
  const StepControl& control = *table.control;
  if (control.skip != 0) return;
  const Segment& segment = table.segment[segment_of_block(table)];
  const int thread = static_cast<int>(threadIdx.x);

  StepFactors step;
  step.gradient_scale = control.gradient_scale;
  step.step_size = table.corrections->step_size;
  step.inverse_root_of_correction2 = table.corrections->inverse_root_of_correction2;
  step.decay_factor =
      static_cast<float>(1.0 - static_cast<double>(control.learning_rate) * static_cast<double>(segment.weight_decay));
  step.beta1 = static_cast<float>(table.beta1);
  step.beta2 = static_cast<float>(table.beta2);
  step.one_minus_beta1 = static_cast<float>(1.0 - table.beta1);
  step.one_minus_beta2 = static_cast<float>(1.0 - table.beta2);
  step.epsilon = static_cast<float>(table.epsilon);

  const std::int64_t from = std::int64_t{blockIdx.x - segment.first_block} * kTile, begin = segment.begin + from;
  const int elements = static_cast<int>(min(std::int64_t{kTile}, segment.count - from));
  const int words = table.aligned && segment.begin % 4 == 0 ? elements / 4 : 0;
  for (int k = thread; k < words; k += kThreads) {
    const std::int64_t at = begin + 4 * k;
    auto* master = reinterpret_cast<float4*>(table.master + at);
    auto* m = reinterpret_cast<float4*>(table.m + at);
    auto* v = reinterpret_cast<float4*>(table.v + at);
    const float4 gradient = *reinterpret_cast<const float4*>(table.gradient + at);
    float4 p4 = *master, m4 = *m, v4 = *v;
    update(p4.x, m4.x, v4.x, gradient.x, step);
    update(p4.y, m4.y, v4.y, gradient.y, step);
    update(p4.z, m4.z, v4.z, gradient.z, step);
    update(p4.w, m4.w, v4.w, gradient.w, step);
    *master = p4;
    *m = m4;
    *v = v4;
    if (table.storage)
      __stcg(reinterpret_cast<uint2*>(table.storage + at),
             make_uint2(ptx::bf16_pair(p4.x, p4.y), ptx::bf16_pair(p4.z, p4.w)));
  }
#pragma unroll 1
  for (int i = 4 * words + thread; i < elements; i += kThreads) {
    const std::int64_t at = begin + i;
    float p = table.master[at], m = table.m[at], v = table.v[at];
    update(p, m, v, table.gradient[at], step);
    table.master[at] = p;
    table.m[at] = m;
    table.v[at] = v;
    if (table.storage) table.storage[at] = bf16(p);
  }
}

}  // namespace

void adamw(const Context& context, const AdamW& op) {
  const char* name = "AdamW";
  require_same(DType::f32, op.master, name, "the master weights");
  require_same(DType::f32, op.m, name, "the first moment");
  require_same(DType::f32, op.v, name, "the second moment");
  require_same(DType::f32, op.gradient, name, "the gradient");
  require_same(DType::bf16, op.storage, name, "the storage copy");
  const auto begins_at = [](const void* data, std::uintptr_t bytes) {
    return reinterpret_cast<std::uintptr_t>(data) % bytes == 0;
  };
  AdamWTable table{};
  table.master = static_cast<float*>(op.master.data);
  table.m = static_cast<float*>(op.m.data);
  table.v = static_cast<float*>(op.v.data);
  table.gradient = static_cast<const float*>(op.gradient.data);
  table.storage = static_cast<bf16*>(op.storage.data);
  table.control = op.control;
  table.beta1 = op.beta1;
  table.beta2 = op.beta2;
  table.epsilon = op.epsilon;
  table.aligned = begins_at(op.master.data, 16) && begins_at(op.m.data, 16) && begins_at(op.v.data, 16) &&
                  begins_at(op.gradient.data, 16) && begins_at(op.storage.data, 8);
  auto* corrections = context.workspace.array<StepCorrections>(1);
  table.corrections = corrections;
  launch({.kernel = "adamw_corrections", .grid = 1, .block = 1, .stream = context.stream}, adamw_corrections_kernel,
         op.control, op.beta1, op.beta2, corrections);
  for (std::int64_t first = 0; first < op.segment_count; first += kSegments) {
    table.segments = static_cast<int>(std::min<std::int64_t>(kSegments, op.segment_count - first));
    unsigned blocks = 0;
    for (int s = 0; s < table.segments; ++s) {
      const AdamWSegment& segment = op.segments[first + s];
      table.segment[s] = {segment.begin, segment.count, blocks, segment.weight_decay};
      blocks += blocks_for(segment.count, kTile);
    }
    if (blocks > 0)
      launch({.kernel = "adamw", .grid = blocks, .block = kThreads, .stream = context.stream}, adamw_kernel, table);
  }
}

}  // namespace outeffhop::cuda

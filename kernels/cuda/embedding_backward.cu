// EmbeddingBackward: each row of d_out is added to the rows of up to three tables that its ids name.
//
// 1. Sort. For each table, the rows of d_out are brought into the order of their ids, and rows of one id stay in row order:
//    a radix sort from the lowest eight bits to the highest. Two kernels a digit: count_digits counts how often each digit
//    occurs in each tile of kTile rows; move_rows adds up what goes before, and moves the rows of its tile there. Ranks
//    inside a warp come from ballots. All of it is integers, and nothing depends on who comes first.
// 2. Sum. The sorted rows are cut into chunks of kChunk, wherever ids change, and a thread adds eight channels of a chunk in
//    order. A run of one id that begins in this chunk is added to its table row, by this thread and no other. One that began
//    in an earlier chunk (a chunk has one such run at most, its first) becomes a row of `carried`, with its id: a list an
//    entry a chunk long, and sorted again. The same kernel sums that list, then what it carries, until one chunk is left:
//    65536 rows take four launches.
//
// Why so: ids are as skewed as words are. Thousands of rows belong to BERT's [MASK] or to one of two token types, while most
// table rows have one or none; chunks have equal work all the same, and all of it grows with the rows, not the vocabulary.
// What else there is: a block for each table row that looks for its id reads V rows ids (8 GB at 30522 x 65536); a warp that
// has a whole run to itself walks through 65536 rows alone while the GPU waits for milliseconds; float atomics give other
// bits each time; buckets made on the host (llm.c) cost a copy and a wait each step, and cannot be recorded in a graph. Here
// launches depend on rows, C and table sizes alone, and all tables share them.
//
// Bytes, for rows of C elements of s bytes: d_out once for each table, rows C s; the table rows that occur, read and written
// once (8 C each) and once more for each further level that their run reaches; carried rows, one a chunk at most, written
// and read: rows C / 4. The sort takes some 24 bytes a row, table and digit, and each tile reads the counts of all tiles, 1
// KB each: 1 MB for 65536 rows, 0.25 GB of L2 traffic for a million. One addition for each element of d_out and table.
#include <algorithm>
#include <bit>
#include <limits>

#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/storage.h"
#include "kernels/cuda/vector.cuh"

namespace outeffhop::cuda {
namespace {

constexpr int kTables = 3;
constexpr std::int32_t kNone = -1;  // the id of an entry that adds to no table row

struct Table {
  const std::int32_t* ids;  // (rows) or null: 0 everywhere
  std::int32_t left_out;    // this id's rows are not added; kNone: all are
  float* gradient;          // (rows of the table, C)

  __device__ __forceinline__ std::int32_t id(std::int64_t row) const { return ids ? ids[row] : 0; }
};
/// Block (x, y) works on table y.
struct Tables {
  Table at[kTables];
};

// ---- The sort ----------------------------------------------------------------------------------------------------------

constexpr int kDigitBits = 8, kDigits = 1 << kDigitBits;
constexpr int kSortThreads = kDigits;  // one a digit
constexpr int kSortWarps = kSortThreads / kWarp;
constexpr int kSteps = 8;  // rows of a thread
constexpr int kTile = kSortThreads * kSteps;
constexpr int kSortSharedBytes = (kSortWarps * kDigits + kSortWarps) * static_cast<int>(sizeof(std::int32_t));

/// A thread's rows of a tile: lane l of warp w has rows (w kSteps + step) kWarp + l of it.
struct TileRows {
  std::int32_t row[kSteps], id[kSteps];
  int rank[kSteps];  // rows with the same digit that go before, among those of this warp
};

__device__ __forceinline__ std::int64_t tile_position(int step) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  return std::int64_t{blockIdx.x} * kTile + (warp * kSteps + step) * kWarp + lane;
}

__device__ __forceinline__ int digit_of(std::int32_t id, int shift) { return (id >> shift) & (kDigits - 1); }

/// Reads and ranks the block's tile; `counts` then holds how often each digit occurs among each warp's rows.
__device__ __forceinline__ TileRows rank_tile(const Table& table,
                                              const std::int32_t* order,         // (rows) or null: as they are
                                              SharedArray<std::int32_t> counts,  // (kSortWarps, kDigits)
                                              std::int64_t rows, int shift) {
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
  for (int w = 0; w < kSortWarps; ++w) counts[w * kDigits + thread] = 0;
  __syncthreads();
  TileRows tile;  // what does not exist counts as row 0: that is read, and not used
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const std::int64_t position = tile_position(step);
    tile.row[step] = position >= rows ? 0 : order ? order[position] : static_cast<std::int32_t>(position);
  }
#pragma unroll
  for (int step = 0; step < kSteps; ++step) tile.id[step] = table.id(tile.row[step]);
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const std::int64_t position = tile_position(step);
    if (position - lane >= rows) break;  // the whole warp
    const bool exists = position < rows;
    const int digit = digit_of(tile.id[step], shift);
    unsigned same = __ballot_sync(kFullMask, exists);
#pragma unroll
    for (int bit = 0; bit < kDigitBits; ++bit) {
      const bool set = (digit & (1 << bit)) != 0;
      const unsigned with_set = __ballot_sync(kFullMask, set);
      same &= set ? with_set : ~with_set;
    }
    const unsigned before = same & ((1u << lane) - 1);
    const int counted = counts[warp * kDigits + digit];
    tile.rank[step] = counted + __popc(before);
    __syncwarp();
    if (exists && before == 0) counts[warp * kDigits + digit] = counted + __popc(same);
    __syncwarp();
  }
  __syncthreads();
  return tile;
}

__global__ void __launch_bounds__(kSortThreads) count_digits_kernel(const __grid_constant__ Tables tables,
                                                                    const std::int32_t* order,  // (tables, rows) or null
                                                                    std::int32_t* tile_counts,  // (tables, tiles, kDigits)
                                                                    std::int64_t rows, int shift) {
  const auto counts = shared_array<std::int32_t>(0, kSortWarps * kDigits);
  rank_tile(tables.at[blockIdx.y], order ? order + blockIdx.y * rows : nullptr, counts, rows, shift);
  const int digit = static_cast<int>(threadIdx.x);
  std::int32_t count = 0;
  for (int w = 0; w < kSortWarps; ++w) count += counts[w * kDigits + digit];
  tile_counts[(std::int64_t{blockIdx.y} * gridDim.x + blockIdx.x) * kDigits + digit] = count;
}

/// The sum of `value` over the threads before this one; `scratch` has kSortWarps elements.
__device__ __forceinline__ std::int32_t sum_before(std::int32_t value, SharedArray<std::int32_t> scratch) {
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
  std::int32_t sum = value;
#pragma unroll
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const std::int32_t lower = __shfl_up_sync(kFullMask, sum, offset);
    if (lane >= offset) sum += lower;
  }
  if (lane == kWarp - 1) scratch[warp] = sum;
  __syncthreads();
  for (int w = 0; w < warp; ++w) sum += scratch[w];
  return sum - value;
}

__global__ void __launch_bounds__(kSortThreads)
    move_rows_kernel(const __grid_constant__ Tables tables,
                     const std::int32_t* order,        // (tables, rows) or null: as they are
                     const std::int32_t* tile_counts,  // (tables, tiles, kDigits)
                     std::int32_t* moved,              // (tables, rows): the order by one digit more
                     std::int32_t* moved_ids,          // (tables, rows): their ids, kNone where left out
                     std::int64_t rows, int shift) {
  const auto counts = shared_array<std::int32_t>(0, kSortWarps * kDigits);
  const auto scratch = shared_array<std::int32_t>(kSortWarps * kDigits * static_cast<int>(sizeof(std::int32_t)), kSortWarps);
  const Table& table = tables.at[blockIdx.y];
  const std::int64_t first = blockIdx.y * rows;
  const TileRows tile = rank_tile(table, order ? order + first : nullptr, counts, rows, shift);

  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, tiles = static_cast<int>(gridDim.x);
  tile_counts += std::int64_t{blockIdx.y} * tiles * kDigits + thread;
  std::int32_t before = 0, all = 0;  // rows with digit `thread` in earlier tiles, and in all
  for (int t = 0; t < tiles; ++t) {
    const std::int32_t count = tile_counts[std::int64_t{t} * kDigits];
    if (t < static_cast<int>(blockIdx.x)) before += count;
    all += count;
  }
  std::int32_t place = sum_before(all, scratch) + before;
  for (int w = 0; w < kSortWarps; ++w) {  // from counts to where each warp's rows of this digit go
    const std::int32_t count = counts[w * kDigits + thread];
    counts[w * kDigits + thread] = place;
    place += count;
  }
  __syncthreads();
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    if (tile_position(step) >= rows) break;
    const std::int64_t to = first + counts[warp * kDigits + digit_of(tile.id[step], shift)] + tile.rank[step];
    moved[to] = tile.row[step];
    moved_ids[to] = tile.id[step] == table.left_out ? kNone : tile.id[step];
  }
}

// ---- The sums ----------------------------------------------------------------------------------------------------------

constexpr int kChunk = 32;
constexpr int kSumThreads = 256;

/// What is summed: entries in the order of their ids.
template <class T>
struct Entries {
  const std::int32_t* ids;      // (tables, count)
  const std::int32_t* order;    // (tables, count): the row of `values` of each; null: entry i has row i
  const T* values;              // (rows, C) for all tables, or (tables, count, C)
  std::int64_t count;           // of each table
  std::int64_t values_a_table;  // elements from one table's values to the next's: 0 or count C
};

// kAligned: C is a multiple of kVector, and all of values, gradients and carried rows take 16-byte accesses. It is known
// when compiling, so that the loads of a batch stand in one row, without a branch or a use in between.
template <class T, bool kAligned>
__global__ void __launch_bounds__(kSumThreads)
    sum_chunks_kernel(const __grid_constant__ Tables tables, const __grid_constant__ Entries<T> entries,
                      std::int32_t* carried_ids,  // (tables, chunks): kNone where nothing is carried
                      float* carried,             // (tables, chunks, C)
                      std::int64_t chunks, std::int64_t C) {
  constexpr int kBatch = kAligned ? 16 / sizeof(T) : 4;  // entries whose loads are under way together: 128 bytes
  const std::int64_t vectors = (C + kVector - 1) / kVector;
  const std::int64_t number = std::int64_t{blockIdx.x} * kSumThreads + threadIdx.x;
  if (number >= chunks * vectors) return;
  const std::int64_t chunk = number / vectors, channel = number % vectors * kVector;
  const int valid = kAligned ? kVector : static_cast<int>(min(std::int64_t{kVector}, C - channel));
  const std::int64_t begin = chunk * kChunk, end = min(begin + kChunk, entries.count);
  const std::int32_t* ids = entries.ids + blockIdx.y * entries.count;
  const std::int32_t* order = entries.order ? entries.order + blockIdx.y * entries.count : nullptr;
  const T* values = entries.values + blockIdx.y * entries.values_a_table + channel;

  std::int32_t id = ids[begin];                      // of the run whose sum is in the making
  bool carries = begin > 0 && ids[begin - 1] == id;  // it began in an earlier chunk
  const std::int64_t carried_row = blockIdx.y * chunks + chunk;
  if (channel == 0) carried_ids[carried_row] = carries ? id : kNone;
  Vector sum{};
  const auto end_run = [&] {
    if (id == kNone) return;
    float* to = carries ? carried + carried_row * C + channel : tables.at[blockIdx.y].gradient + id * C + channel;
    if (!carries) {
      const Vector before = load_vector(to, valid, kAligned);
#pragma unroll
      for (int i = 0; i < kVector; ++i) sum.at[i] += before.at[i];
    }
    store_vector(to, sum, valid, kAligned);
  };
  for (std::int64_t batch = begin; batch < end; batch += kBatch) {
    std::int32_t next_id[kBatch];
    std::int64_t row[kBatch];
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      const std::int64_t entry = batch + k;
      next_id[k] = entry < end ? ids[entry] : kNone;
      row[k] = next_id[k] == kNone ? 0 : order ? order[entry] : entry;  // row 0 in vain, but without a branch
    }
    Vector value[kBatch];
#pragma unroll
    for (int k = 0; k < kBatch; ++k) value[k] = load_vector(values + row[k] * C, valid, kAligned);
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      if (next_id[k] != id) {
        end_run();
        id = next_id[k];
        carries = false;
        sum = Vector{};
      }
#pragma unroll
      for (int i = 0; i < kVector; ++i) sum.at[i] += value[k].at[i];
    }
  }
  end_run();
}

}  // namespace

void embedding_backward(const Context& context, const EmbeddingBackward& op) {
  const char* name = "embedding backward";
  require_same(DType::f32, op.d_token_table, name, "the token table's gradient");
  require_same(DType::f32, op.d_position_table, name, "the position table's gradient");
  require_same(DType::f32, op.d_type_table, name, "the type table's gradient");
  const std::int64_t rows = op.rows, C = op.C;
  if (rows > std::numeric_limits<std::int32_t>::max())
    throw Error(ErrorKind::unsupported, "embedding backward on CUDA takes fewer than 2^31 rows");

  Tables tables{};
  unsigned count = 0;
  int passes = 1;
  bool aligned = C % kVector == 0 && vectors_aligned(op.d_out, C);
  const auto add_table = [&](const Tensor& gradient, const std::int32_t* ids, std::int32_t left_out,
                             std::int64_t ids_below) {
    if (!gradient) return;
    tables.at[count++] = {ids, left_out, static_cast<float*>(gradient.data)};
    const int bits = ids ? std::bit_width(static_cast<std::uint64_t>(ids_below - 1)) : 0;
    passes = std::max(passes, (bits + kDigitBits - 1) / kDigitBits);
    aligned = aligned && vectors_aligned(gradient, C);
  };
  add_table(op.d_token_table, op.token_ids, op.padding_id, op.vocabulary);
  add_table(op.d_position_table, op.position_ids, kNone, op.positions);
  add_table(op.d_type_table, op.type_ids, kNone, op.types);
  if (count == 0 || rows * C == 0) return;

  // The workspace in pieces, each of them for all tables. Two of what is read while the next is written.
  const std::int64_t chunks = blocks_for(rows, kChunk), chunks_of_chunks = blocks_for(chunks, kChunk);
  const unsigned tiles = blocks_for(rows, kTile);
  std::size_t bytes = 0;
  const auto piece = [&](std::int64_t elements) {  // of 4 bytes
    const std::size_t at = bytes;
    bytes += (static_cast<std::size_t>(count * elements) * 4 + 255) / 256 * 256;
    return at;
  };
  const std::size_t order_at[2] = {piece(rows), piece(rows)}, ids_at = piece(rows), counts_at = piece(tiles * kDigits);
  const std::size_t carried_ids_at[2] = {piece(chunks), piece(chunks_of_chunks)};
  const std::size_t carried_at[2] = {piece(chunks * C), piece(chunks_of_chunks * C)};
  auto* workspace = static_cast<char*>(context.workspace.bytes(bytes));
  const auto ints = [&](std::size_t at) { return reinterpret_cast<std::int32_t*>(workspace + at); };

  const std::int32_t* order = nullptr;
  for (int pass = 0; pass < passes; ++pass) {
    const auto sorting = [&](const char* kernel) {
      return LaunchShape{.kernel = kernel,
                         .grid = {tiles, count},
                         .block = kSortThreads,
                         .shared_bytes = kSortSharedBytes,
                         .stream = context.stream};
    };
    const int shift = pass * kDigitBits;
    std::int32_t* moved = ints(order_at[pass % 2]);
    launch(sorting("count_digits"), count_digits_kernel, tables, order, ints(counts_at), rows, shift);
    launch(sorting("move_rows"), move_rows_kernel, tables, order, ints(counts_at), moved, ints(ids_at), rows, shift);
    order = moved;
  }

  // Sums a list of entries; what is left to sum then.
  const auto sum_chunks = [&]<class T>(const Entries<T>& entries, int level) {
    const std::int64_t entry_chunks = blocks_for(entries.count, kChunk);
    std::int32_t* carried_ids = ints(carried_ids_at[level % 2]);
    auto* carried = reinterpret_cast<float*>(workspace + carried_at[level % 2]);
    launch({.kernel = "sum_chunks",
            .grid = {blocks_for(entry_chunks * ((C + kVector - 1) / kVector), kSumThreads), count},
            .block = kSumThreads,
            .stream = context.stream},
           aligned ? sum_chunks_kernel<T, true> : sum_chunks_kernel<T, false>, tables, entries, carried_ids, carried,
           entry_chunks, C);
    return Entries<float>{carried_ids, nullptr, carried, entry_chunks, entry_chunks * C};
  };
  with_storage(op.d_out.dtype, name, [&](auto element) {
    using T = decltype(element);
    Entries<float> carried = sum_chunks(Entries<T>{ints(ids_at), order, static_cast<const T*>(op.d_out.data), rows, 0}, 0);
    for (int level = 1; carried.count > 1; ++level) carried = sum_chunks(carried, level);
  });
}

}  // namespace outeffhop::cuda

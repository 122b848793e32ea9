// The NCCL stand-in: what it computes, that all ranks have to agree, and what it does not let pass.
#include "tests/simt/nccl.h"

#include <nccl.h>

#include <atomic>
#include <memory>
#include <thread>

#include "kernels/tensor.h"
#include "tests/simt/machine.h"

namespace outeffhop::test {
namespace {

using Catch::Matchers::Contains;
using simt::Violation;

/// Ranks on GPUs of their own, with a stream each, all on this thread.
class Ranks {
 public:
  explicit Ranks(int count) : communicators_(static_cast<std::size_t>(count)) {
    REQUIRE(ncclCommInitAll(communicators_.data(), count, nullptr) == ncclSuccess);
    for (int rank = 0; rank < count; ++rank) {
      REQUIRE(cudaSetDevice(rank) == cudaSuccess);
      streams_.push_back(std::make_unique<StreamOfTest>());
    }
    REQUIRE(cudaSetDevice(0) == cudaSuccess);
  }
  Ranks(const Ranks&) = delete;
  ~Ranks() {
    for (const ncclComm_t communicator : communicators_)
      if (communicator) ncclCommDestroy(communicator);
  }
  int count() const { return static_cast<int>(communicators_.size()); }
  ncclComm_t& operator[](int rank) { return communicators_[static_cast<std::size_t>(rank)]; }
  cudaStream_t stream(int rank) const { return *streams_[static_cast<std::size_t>(rank)]; }
  void synchronize() const {
    for (const auto& stream : streams_) REQUIRE(cudaStreamSynchronize(*stream) == cudaSuccess);
  }
  /// call(rank) for all ranks, in one group.
  template <class Call>
  void together(Call call) {
    REQUIRE(ncclGroupStart() == ncclSuccess);
    for (int rank = 0; rank < count(); ++rank) REQUIRE(call(rank) == ncclSuccess);
    REQUIRE(ncclGroupEnd() == ncclSuccess);
  }

 private:
  std::vector<ncclComm_t> communicators_;
  std::vector<std::unique_ptr<StreamOfTest>> streams_;
};

/// Device memory for elements of any type.
template <class T>
class Elements {
 public:
  explicit Elements(const std::vector<T>& values) : count_(values.size()) {
    REQUIRE(cudaMalloc(&data_, count_ * sizeof(T)) == cudaSuccess);
    std::memcpy(data_, values.data(), count_ * sizeof(T));  // nothing runs yet: no stream is involved
  }
  Elements(const Elements&) = delete;
  Elements(Elements&& other) noexcept : data_(std::exchange(other.data_, nullptr)), count_(other.count_) {}
  ~Elements() { cudaFree(data_); }
  T* data() const { return data_; }
  std::vector<T> now() const { return {data_, data_ + count_}; }

 private:
  T* data_ = nullptr;
  std::size_t count_;
};

/// The result of an all-reduce over ranks that bring one element each.
template <class T>
T all_reduced(const std::vector<T>& brought, ncclDataType_t type, ncclRedOp_t operation) {
  Ranks ranks(static_cast<int>(brought.size()));
  std::vector<Elements<T>> x, y;
  for (const T& value : brought) {
    x.emplace_back(std::vector<T>{value});
    y.emplace_back(std::vector<T>{T{}});
  }
  ranks.together([&](int r) {
    const auto i = static_cast<std::size_t>(r);
    return ncclAllReduce(x[i].data(), y[i].data(), 1, type, operation, ranks[r], ranks.stream(r));
  });
  ranks.synchronize();
  for (std::size_t i = 1; i < y.size(); ++i) CHECK(std::memcmp(y[i].now().data(), y[0].now().data(), sizeof(T)) == 0);
  return y[0].now()[0];
}

TEST_CASE("all-reduce, in each type and operation, in rank order") {
  Machine machine(3);
  CHECK(all_reduced<float>({1, 2, 4}, ncclFloat, ncclSum) == 7);
  CHECK(all_reduced<float>({1e8f, 1, -1e8f}, ncclFloat32, ncclSum) == 0);  // (1e8 + 1) - 1e8
  CHECK(all_reduced<float>({1e8f, -1e8f, 1}, ncclFloat32, ncclSum) == 1);
  CHECK(all_reduced<float>({1, 2, 6}, ncclFloat32, ncclAvg) == Approx(3));
  CHECK(all_reduced<float>({1, -2, 6}, ncclFloat32, ncclMin) == -2);
  CHECK(all_reduced<double>({1, -2, 1e300}, ncclDouble, ncclMax) == 1e300);
  CHECK(all_reduced<double>({2, 3, 5}, ncclFloat64, ncclProd) == 30);
  CHECK(all_reduced<std::int32_t>({-1, -2, -6}, ncclInt, ncclAvg) == -3);
  CHECK(all_reduced<std::int32_t>({-1, 2, -6}, ncclInt32, ncclMax) == 2);
  CHECK(all_reduced<std::uint32_t>({1, 2, 4000000000u}, ncclUint32, ncclMax) == 4000000000u);
  CHECK(all_reduced<std::int64_t>({INT64_MIN, 2, 3}, ncclInt64, ncclSum) == INT64_MIN + 5);
  CHECK(all_reduced<std::uint64_t>({1, UINT64_MAX, 2}, ncclUint64, ncclMax) == UINT64_MAX);
  CHECK(all_reduced<std::uint8_t>({200, 100, 3}, ncclUint8, ncclSum) == (303 & 255));
  // Each step is rounded: 256 + 1 is 256 in bf16, and again.
  const auto half = [](float value) { return bf16(value); };
  CHECK(static_cast<float>(all_reduced<bf16>({half(256), half(1), half(1)}, ncclBfloat16, ncclSum)) == 256);
  CHECK(static_cast<float>(all_reduced<bf16>({half(1), half(1), half(256)}, ncclBfloat16, ncclSum)) == 258);
  CHECK(static_cast<float>(all_reduced<bf16>({half(-3), half(1), half(2)}, ncclBfloat16, ncclMax)) == 2);
}

TEST_CASE("reduce-scatter and all-gather, apart and in place") {
  Machine machine(2);
  Ranks ranks(2);
  const Floats x0({1, 2, 3, 4}), x1({10, 20, 30, 40}), part0(2), part1(2), all0(4), all1(4);
  const Floats *x[] = {&x0, &x1}, *part[] = {&part0, &part1}, *all[] = {&all0, &all1};
  ranks.together([&](int r) {
    return ncclReduceScatter(x[r]->data(), part[r]->data(), 2, ncclFloat, ncclSum, ranks[r], ranks.stream(r));
  });
  ranks.together(
      [&](int r) { return ncclAllGather(part[r]->data(), all[r]->data(), 2, ncclFloat, ranks[r], ranks.stream(r)); });
  CHECK(std::isnan(part0.now()[0]));  // deferred
  ranks.synchronize();
  CHECK(part0.now() == std::vector<float>{11, 22});
  CHECK(part1.now() == std::vector<float>{33, 44});
  CHECK(all0.now() == std::vector<float>{11, 22, 33, 44});
  CHECK(all1.now() == all0.now());

  ranks.together([&](int r) {
    return ncclReduceScatter(x[r]->data(), x[r]->data() + 2 * r, 2, ncclFloat, ncclSum, ranks[r], ranks.stream(r));
  });
  ranks.together(
      [&](int r) { return ncclAllGather(x[r]->data() + 2 * r, x[r]->data(), 2, ncclFloat, ranks[r], ranks.stream(r)); });
  ranks.together(
      [&](int r) { return ncclAllReduce(x[r]->data(), x[r]->data(), 4, ncclFloat, ncclSum, ranks[r], ranks.stream(r)); });
  ranks.synchronize();
  CHECK(x0.now() == std::vector<float>{22, 44, 66, 88});
  CHECK(x1.now() == x0.now());
  // Overlaps that are not in place.
  CHECK_THROWS_WITH(ncclReduceScatter(x0.data(), x0.data() + 2, 2, ncclFloat, ncclSum, ranks[0], ranks.stream(0)),
                    Contains("rank 0 calls ncclReduceScatter of 2 ncclFloat32, ncclSum") && Contains("overlap"));
  CHECK_THROWS_WITH(ncclAllGather(x0.data() + 1, x0.data(), 2, ncclFloat, ranks[0], ranks.stream(0)), Contains("overlap"));
  CHECK_THROWS_WITH(ncclAllReduce(x0.data(), x0.data() + 1, 2, ncclFloat, ncclSum, ranks[0], ranks.stream(0)),
                    Contains("overlap"));
}

TEST_CASE("broadcast, send and receive") {
  Machine machine(3);
  Ranks ranks(3);
  const Floats x0({1}), x1({2}), x2({3}), y0(1), y1(1), y2(1);
  const Floats *x[] = {&x0, &x1, &x2}, *y[] = {&y0, &y1, &y2};
  ranks.together([&](int r) {  // the send buffers of others than the root are not looked at
    return ncclBroadcast(r == 1 ? x1.data() : nullptr, x[r]->data(), 1, ncclFloat, 1, ranks[r], ranks.stream(r));
  });
  ranks.synchronize();
  CHECK(x0.now()[0] == 2);
  CHECK(x2.now()[0] == 2);
  set(ranks.stream(0), x0.data(), 5);
  ranks.together([&](int r) {  // around a ring
    if (ncclSend(x[r]->data(), 1, ncclFloat, (r + 1) % 3, ranks[r], ranks.stream(r)) != ncclSuccess) return ncclSystemError;
    return ncclRecv(y[r]->data(), 1, ncclFloat, (r + 2) % 3, ranks[r], ranks.stream(r));
  });
  ranks.synchronize();
  CHECK(y0.now()[0] == 2);
  CHECK(y1.now()[0] == 5);
  CHECK(y2.now()[0] == 2);
}

TEST_CASE("sends and receives outside of a group wait for each other") {
  Machine machine(2);
  Ranks ranks(2);
  const Floats x0({1}), x1({2}), y0(1), y1(1);
  const Floats *x[] = {&x0, &x1}, *y[] = {&y0, &y1};
  for (int r = 0; r < 2; ++r) {
    REQUIRE(ncclSend(x[r]->data(), 1, ncclFloat, 1 - r, ranks[r], ranks.stream(r)) == ncclSuccess);
    REQUIRE(ncclRecv(y[r]->data(), 1, ncclFloat, 1 - r, ranks[r], ranks.stream(r)) == ncclSuccess);
  }
  CHECK_THROWS_WITH(cudaStreamSynchronize(ranks.stream(0)), Contains("wait for each other"));
  // Afterwards all begin anew.
  ranks.together(
      [&](int r) { return ncclAllReduce(x[r]->data(), x[r]->data(), 1, ncclFloat, ncclSum, ranks[r], ranks.stream(r)); });
  ranks.synchronize();
  CHECK(x0.now()[0] == 3);
}

TEST_CASE("a collective has its turn in each rank's stream, not when it is called") {
  Machine machine(2);
  Ranks ranks(2);
  const Floats x0({1}), x1({2});
  set(ranks.stream(0), x0.data(), 10);
  REQUIRE(ncclAllReduce(x0.data(), x0.data(), 1, ncclFloat, ncclSum, ranks[0], ranks.stream(0)) == ncclSuccess);
  twice(ranks.stream(0), x0.data());
  REQUIRE(cudaSetDevice(1) == cudaSuccess);
  set(ranks.stream(1), x1.data(), 20);
  REQUIRE(ncclAllReduce(x1.data(), x1.data(), 1, ncclFloat, ncclSum, ranks[1], ranks.stream(1)) == ncclSuccess);
  REQUIRE(cudaStreamSynchronize(ranks.stream(1)) == cudaSuccess);
  CHECK(x1.now()[0] == 30);
  CHECK(x0.now()[0] == 30);  // rank 0's stream has come to the collective, and not yet beyond it
  REQUIRE(cudaStreamSynchronize(ranks.stream(0)) == cudaSuccess);
  CHECK(x0.now()[0] == 60);
  REQUIRE(cudaSetDevice(0) == cudaSuccess);
}

TEST_CASE("ranks that do not agree are named, both") {
  Machine machine(2);
  Ranks ranks(2);
  const Floats x0({1, 2, 3, 4}), x1({1, 2, 3, 4}), y1(4);
  REQUIRE(ncclAllReduce(x0.data(), x0.data(), 1, ncclFloat, ncclSum, ranks[0], ranks.stream(0)) == ncclSuccess);
  const auto first = Contains("rank 0 calls ncclAllReduce of 1 ncclFloat32, ncclSum");
  SECTION("in the count") {
    CHECK_THROWS_WITH(ncclAllReduce(x1.data(), x1.data(), 2, ncclFloat, ncclSum, ranks[1], ranks.stream(1)),
                      first && Contains("rank 1 calls ncclAllReduce of 2 ncclFloat32"));
  }
  SECTION("in the type") {
    CHECK_THROWS_WITH(ncclAllReduce(x1.data(), x1.data(), 1, ncclInt32, ncclSum, ranks[1], ranks.stream(1)),
                      first && Contains("of 1 ncclInt32"));
  }
  SECTION("in the reduction") {
    CHECK_THROWS_WITH(ncclAllReduce(x1.data(), x1.data(), 1, ncclFloat, ncclMax, ranks[1], ranks.stream(1)),
                      first && Contains("ncclMax"));
  }
  SECTION("in the operation") {
    CHECK_THROWS_WITH(ncclAllGather(x1.data(), y1.data(), 1, ncclFloat, ranks[1], ranks.stream(1)),
                      first && Contains("ncclAllGather"));
  }
  SECTION("in the root") {
    REQUIRE(ncclAllReduce(x1.data(), x1.data(), 1, ncclFloat, ncclSum, ranks[1], ranks.stream(1)) == ncclSuccess);
    REQUIRE(ncclBroadcast(x0.data(), x0.data(), 1, ncclFloat, 0, ranks[0], ranks.stream(0)) == ncclSuccess);
    CHECK_THROWS_WITH(ncclBroadcast(x1.data(), x1.data(), 1, ncclFloat, 1, ranks[1], ranks.stream(1)),
                      Contains("root 0") && Contains("root 1"));
  }
  CHECK_NOTHROW(ranks.synchronize());  // all was dropped
  CHECK(x0.now()[0] == 1);
}

TEST_CASE("buffers hold what is asked for") {
  Machine machine(2);
  Ranks ranks(2);
  const Floats loss({1}), x({1, 2, 3, 4});
  float host = 0;
  // llm.c reduced sizeof(float) elements of a buffer of one.
  CHECK_THROWS_WITH(
      ncclAllReduce(loss.data(), loss.data(), sizeof(float), ncclFloat, ncclSum, ranks[0], ranks.stream(0)),
      Contains("rank 0 calls ncclAllReduce of 4 ncclFloat32") && Contains("16 bytes from byte 0") && Contains("of 4 bytes"));
  CHECK_THROWS_WITH(ncclAllGather(loss.data(), x.data(), 4, ncclFloat, ranks[1], ranks.stream(1)), Contains("send buffer"));
  CHECK_THROWS_WITH(ncclAllGather(x.data(), loss.data(), 1, ncclFloat, ranks[1], ranks.stream(1)),
                    Contains("receive buffer") && Contains("8 bytes"));
  CHECK_THROWS_WITH(ncclReduceScatter(x.data(), loss.data(), 4, ncclFloat, ncclSum, ranks[1], ranks.stream(1)),
                    Contains("send buffer") && Contains("32 bytes"));
  CHECK_THROWS_WITH(ncclSend(&host, 1, ncclFloat, 1, ranks[0], ranks.stream(0)), Contains("no live allocation"));
  // Freed before the collective had its turn.
  float* data = nullptr;
  REQUIRE(cudaSetDevice(1) == cudaSuccess);
  REQUIRE(cudaMalloc(&data, 4) == cudaSuccess);
  REQUIRE(cudaSetDevice(0) == cudaSuccess);
  REQUIRE(ncclAllReduce(data, data, 1, ncclFloat, ncclSum, ranks[0], ranks.stream(0)) == ncclSuccess);
  REQUIRE(cudaFree(data) == cudaSuccess);  // waits for its own GPU alone
  REQUIRE(ncclAllReduce(x.data(), x.data(), 1, ncclFloat, ncclSum, ranks[1], ranks.stream(1)) == ncclSuccess);
  CHECK_THROWS_WITH(cudaStreamSynchronize(ranks.stream(1)), Contains("rank 0") && Contains("was freed"));
}

TEST_CASE("arguments, groups and communicators") {
  Machine machine(2);
  Ranks ranks(2);
  const Floats x({1});
  int number = -1;
  CHECK(ncclCommCount(ranks[1], &number) == ncclSuccess);
  CHECK(number == 2);
  CHECK(ncclCommUserRank(ranks[1], &number) == ncclSuccess);
  CHECK(number == 1);
  CHECK(ncclCommCuDevice(ranks[1], &number) == ncclSuccess);
  CHECK(number == 1);
  CHECK(ncclCommCount(nullptr, &number) == ncclInvalidArgument);
  CHECK(ncclGroupEnd() == ncclInvalidUsage);
  const auto reduce = [&](int type, int operation, ncclComm_t communicator, cudaStream_t stream) {
    return ncclAllReduce(x.data(), x.data(), 1, static_cast<ncclDataType_t>(type), static_cast<ncclRedOp_t>(operation),
                         communicator, stream);
  };
  CHECK(reduce(6, ncclSum, ranks[0], ranks.stream(0)) == ncclInvalidArgument);
  CHECK(reduce(ncclFloat, 7, ranks[0], ranks.stream(0)) == ncclInvalidArgument);
  CHECK(reduce(ncclFloat, ncclSum, nullptr, ranks.stream(0)) == ncclInvalidArgument);
  CHECK(reduce(ncclFloat, ncclSum, ranks[0], ranks.stream(1)) == ncclInvalidArgument);  // another GPU's stream
  CHECK(ncclSend(x.data(), 1, ncclFloat, 2, ranks[0], ranks.stream(0)) == ncclInvalidArgument);
  CHECK(ncclAllReduce(nullptr, nullptr, 0, ncclFloat, ncclSum, ranks[0], ranks.stream(0)) == ncclSuccess);

  ncclUniqueId id{}, other{};
  ncclComm_t made = nullptr;
  CHECK(ncclCommInitRank(&made, 1, id, 0) == ncclInvalidArgument);  // nobody gave it out
  REQUIRE(ncclGetUniqueId(&id) == ncclSuccess);
  REQUIRE(ncclGetUniqueId(&other) == ncclSuccess);
  CHECK(std::memcmp(&id, &other, sizeof id) != 0);
  CHECK(ncclCommInitRank(&made, 1, id, 1) == ncclInvalidArgument);
  REQUIRE(ncclCommInitRank(&made, 1, id, 0) == ncclSuccess);
  CHECK(simt::live_objects().back() == "a communicator");
  REQUIRE(ncclCommDestroy(made) == ncclSuccess);
  CHECK(ncclCommDestroy(made) == ncclInvalidArgument);
  const int same[] = {0, 0};
  ncclComm_t two[2];
  CHECK(ncclCommInitAll(two, 2, same) == ncclInvalidUsage);
  CHECK(std::string(ncclGetErrorString(ncclInvalidUsage)) == "invalid usage");
}

TEST_CASE("a rank that never comes is named") {
  Machine machine(2);
  Ranks ranks(2);
  const Floats x({1});
  SECTION("by the thread that makes all calls") {
    REQUIRE(ncclAllReduce(x.data(), x.data(), 1, ncclFloat, ncclSum, ranks[0], ranks.stream(0)) == ncclSuccess);
    CHECK(cudaStreamQuery(ranks.stream(0)) == cudaErrorNotReady);
    CHECK(cudaStreamQuery(ranks.stream(0)) == cudaErrorNotReady);  // and stays so
    CHECK(cudaStreamSynchronize(ranks.stream(1)) == cudaSuccess);
    CHECK_THROWS_WITH(cudaStreamSynchronize(ranks.stream(0)), Contains("ncclAllReduce") && Contains("waits for rank 1"));
  }
  SECTION("when a communicator is destroyed meanwhile") {
    REQUIRE(ncclAllReduce(x.data(), x.data(), 1, ncclFloat, ncclSum, ranks[0], ranks.stream(0)) == ncclSuccess);
    REQUIRE(ncclCommDestroy(std::exchange(ranks[0], nullptr)) == ncclSuccess);
    CHECK_THROWS_WITH(cudaStreamSynchronize(ranks.stream(1)), Contains("destroyed before all have come"));
    CHECK_THROWS_WITH(cudaStreamSynchronize(ranks.stream(0)), Contains("waits for rank 1"));
  }
  SECTION("or aborted: its stream goes on, the others learn of it") {
    REQUIRE(ncclAllReduce(x.data(), x.data(), 1, ncclFloat, ncclSum, ranks[0], ranks.stream(0)) == ncclSuccess);
    twice(ranks.stream(0), x.data());
    REQUIRE(ncclCommAbort(std::exchange(ranks[0], nullptr)) == ncclSuccess);
    REQUIRE(cudaStreamSynchronize(ranks.stream(0)) == cudaSuccess);
    CHECK(x.now()[0] == 2);
    ncclResult_t error = ncclSuccess;
    REQUIRE(ncclCommGetAsyncError(ranks[1], &error) == ncclSuccess);
    CHECK(error == ncclRemoteError);
    CHECK(ncclAllReduce(x.data(), x.data(), 1, ncclFloat, ncclSum, ranks[1], ranks.stream(1)) == ncclRemoteError);
  }
  (void)cudaGetLastError();
}

TEST_CASE("collectives in graphs come together at each replay") {
  Machine machine(2);
  Ranks ranks(2);
  const Floats x0({1}), x1({2});
  const Floats* x[] = {&x0, &x1};
  cudaGraphExec_t executables[2];
  for (int r = 0; r < 2; ++r) {
    REQUIRE(cudaSetDevice(r) == cudaSuccess);
    cudaGraph_t graph = nullptr;
    REQUIRE(cudaStreamBeginCapture(ranks.stream(r), cudaStreamCaptureModeThreadLocal) == cudaSuccess);
    add(ranks.stream(r), x[r]->data(), 1);
    REQUIRE(ncclAllReduce(x[r]->data(), x[r]->data(), 1, ncclFloat, ncclSum, ranks[r], ranks.stream(r)) == ncclSuccess);
    REQUIRE(cudaStreamEndCapture(ranks.stream(r), &graph) == cudaSuccess);
    REQUIRE(cudaGraphInstantiate(&executables[r], graph) == cudaSuccess);
    REQUIRE(cudaGraphDestroy(graph) == cudaSuccess);
  }
  for (int step = 0; step < 2; ++step)
    for (int r = 0; r < 2; ++r) REQUIRE(cudaGraphLaunch(executables[r], ranks.stream(r)) == cudaSuccess);
  ranks.synchronize();
  CHECK(x0.now()[0] == 12);  // (1 + 1) + (2 + 1), then twice that + 1
  CHECK(x1.now()[0] == 12);
  for (const cudaGraphExec_t executable : executables) REQUIRE(cudaGraphExecDestroy(executable) == cudaSuccess);
  REQUIRE(cudaSetDevice(0) == cudaSuccess);
}

/// body(rank, communicator, stream) on a thread and a GPU of its own for each rank.
template <class Body>
void on_threads(int ranks, Body body) {
  ncclUniqueId id;
  REQUIRE(ncclGetUniqueId(&id) == ncclSuccess);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) {
    threads.emplace_back([=] {  // no Catch macros in here: they are not for threads
      cudaSetDevice(rank);
      ncclComm_t communicator = nullptr;
      cudaStream_t stream = nullptr;
      cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
      if (ncclCommInitRank(&communicator, ranks, id, rank) == ncclSuccess) body(rank, communicator, stream);
      ncclCommDestroy(communicator);
      cudaStreamDestroy(stream);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_CASE("a thread a rank") {
  Machine machine(3);
  const Floats x0({1}), x1({2}), x2({3});
  const Floats* x[] = {&x0, &x1, &x2};
  std::atomic<int> right = 0;
  on_threads(3, [&](int rank, ncclComm_t communicator, cudaStream_t stream) {
    float host = 0;
    for (int step = 0; step < 20; ++step) {
      ncclAllReduce(x[rank]->data(), x[rank]->data(), 1, ncclFloat, ncclSum, communicator, stream);
      set(stream, x[rank]->data(), static_cast<float>(rank + 1));
      cudaMemcpyAsync(&host, x[rank]->data(), 4, cudaMemcpyDeviceToHost, stream);  // waits
      ncclAllReduce(x[rank]->data(), x[rank]->data(), 1, ncclFloat, ncclSum, communicator, stream);
      cudaMemcpyAsync(&host, x[rank]->data(), 4, cudaMemcpyDeviceToHost, stream);
      if (host == 6) ++right;
    }
  });
  CHECK(right == 60);
}

TEST_CASE("threads do not wait for ever, and learn of each other's mistakes") {
  Machine machine(2);
  const Floats x0({1, 2}), x1({1, 2});
  const Floats* x[] = {&x0, &x1};
  std::string said[2];
  const auto run = [&](auto call) {
    on_threads(2, [&](int rank, ncclComm_t communicator, cudaStream_t stream) {
      try {
        call(rank, communicator, stream);
        cudaStreamSynchronize(stream);
      } catch (const Violation& violation) {
        said[rank] = violation.what();
      }
    });
  };
  SECTION("one rank does not call") {
    simt::set_rank_patience(std::chrono::milliseconds(200));
    run([&](int rank, ncclComm_t communicator, cudaStream_t stream) {
      if (rank == 0) {
        ncclAllReduce(x[0]->data(), x[0]->data(), 1, ncclFloat, ncclSum, communicator, stream);
        cudaStreamSynchronize(stream);
      } else {
        std::this_thread::sleep_for(std::chrono::milliseconds(600));
      }
    });
    simt::set_rank_patience(std::chrono::seconds(20));
    CHECK_THAT(said[0], Contains("waits for rank 1, for more than 200 ms"));
    CHECK(said[1].empty());
  }
  SECTION("ranks disagree") {
    run([&](int rank, ncclComm_t communicator, cudaStream_t stream) {
      ncclAllReduce(x[rank]->data(), x[rank]->data(), static_cast<std::size_t>(rank + 1), ncclFloat, ncclSum, communicator,
                    stream);
    });
    const std::string all = said[0] + said[1];
    CHECK_THAT(all, Contains("of 1 ncclFloat32") && Contains("of 2 ncclFloat32"));
  }
}

}  // namespace
}  // namespace outeffhop::test

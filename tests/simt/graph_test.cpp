// The runtime stand-in: stream capture, what may not be called during one, and replays.
#include <thread>

#include "tests/simt/machine.h"

namespace outeffhop::test {
namespace {

using Catch::Matchers::Contains;
using simt::Violation;

/// The graph that `record` submits to a stream.
class GraphOfTest {
 public:
  template <class Record>
  GraphOfTest(cudaStream_t stream, Record record) {
    REQUIRE(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
    record();
    REQUIRE(cudaStreamEndCapture(stream, &graph_) == cudaSuccess);
    REQUIRE(cudaGraphInstantiate(&executable_, graph_) == cudaSuccess);
  }
  GraphOfTest(const GraphOfTest&) = delete;
  ~GraphOfTest() {
    cudaGraphExecDestroy(executable_);
    cudaGraphDestroy(graph_);
  }
  void launch(cudaStream_t stream) const { REQUIRE(cudaGraphLaunch(executable_, stream) == cudaSuccess); }
  std::size_t nodes() const {
    std::size_t count = 0;
    REQUIRE(cudaGraphGetNodes(graph_, nullptr, &count) == cudaSuccess);
    return count;
  }
  cudaGraphExec_t executable() const { return executable_; }

 private:
  cudaGraph_t graph_ = nullptr;
  cudaGraphExec_t executable_ = nullptr;
};

TEST_CASE("a captured stream does nothing; each replay does it with the arguments as they were recorded") {
  Machine machine;
  const StreamOfTest stream;
  const Floats x({1}), y({0});
  float value = 2;
  const GraphOfTest graph(stream, [&] {
    add(stream, x.data(), value);
    REQUIRE(cudaMemcpyAsync(y.data(), x.data(), 4, cudaMemcpyDeviceToDevice, stream) == cudaSuccess);
  });
  value = 100;
  CHECK(graph.nodes() == 2);
  REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
  CHECK(x.now()[0] == 1);
  graph.launch(stream);
  graph.launch(stream);
  CHECK(x.now()[0] == 1);  // deferred like anything else
  REQUIRE(cudaStreamSynchronize(stream) == cudaSuccess);
  CHECK(x.now()[0] == 5);
  CHECK(y.now()[0] == 5);
  set(stream, x.data(), 10);  // memory is read when the replay runs
  graph.launch(stream);
  REQUIRE(cudaStreamSynchronize(stream) == cudaSuccess);
  CHECK(y.now()[0] == 12);
}

TEST_CASE("a graph outlives what it was captured from, and a replay outlives the graph") {
  Machine machine;
  const StreamOfTest stream;
  const Floats x({1});
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  {
    const StreamOfTest captured;
    REQUIRE(cudaStreamBeginCapture(captured, cudaStreamCaptureModeRelaxed) == cudaSuccess);
    twice(captured, x.data());
    REQUIRE(cudaStreamEndCapture(captured, &graph) == cudaSuccess);
  }
  REQUIRE(cudaGraphInstantiate(&executable, graph) == cudaSuccess);
  REQUIRE(cudaGraphDestroy(graph) == cudaSuccess);
  CHECK(cudaGraphDestroy(graph) == cudaErrorInvalidValue);
  REQUIRE(cudaGraphUpload(executable, stream) == cudaSuccess);
  REQUIRE(cudaGraphLaunch(executable, stream) == cudaSuccess);
  CHECK(simt::live_objects().back() == "an executable graph");
  REQUIRE(cudaGraphExecDestroy(executable) == cudaSuccess);
  CHECK(cudaGraphLaunch(executable, stream) == cudaErrorInvalidValue);
  REQUIRE(cudaStreamSynchronize(stream) == cudaSuccess);
  CHECK(x.now()[0] == 2);
}

TEST_CASE("replays of one graph wait for each other, in whatever streams they are") {
  Machine machine;
  const StreamOfTest a, b;
  const Floats x({1});
  const GraphOfTest graph(a, [&] {
    add(a, x.data(), 1);
    twice(a, x.data());
  });
  graph.launch(a);
  graph.launch(b);
  REQUIRE(cudaStreamSynchronize(b) == cudaSuccess);
  CHECK(x.now()[0] == 10);
}

TEST_CASE("pinned memory is read and written at each replay") {
  Machine machine;
  const StreamOfTest stream;
  const Floats x({0});
  const Pinned in(1), out(1);
  const GraphOfTest graph(stream, [&] {
    REQUIRE(cudaMemcpyAsync(x.data(), in.data(), 4, cudaMemcpyHostToDevice, stream) == cudaSuccess);
    twice(stream, x.data());
    REQUIRE(cudaMemcpyAsync(out.data(), x.data(), 4, cudaMemcpyDeviceToHost, stream) == cudaSuccess);
  });
  out[0] = 17;
  for (const float value : {3.0f, 4.0f}) {
    in[0] = value;
    CHECK(!std::isnan(out[0]));
    graph.launch(stream);
    CHECK(std::isnan(out[0]));  // too early
    REQUIRE(cudaStreamSynchronize(stream) == cudaSuccess);
    CHECK(out[0] == 2 * value);
  }
  in[0] = 5;
  graph.launch(stream);
  in[0] = 6;  // a batch that is overwritten before the replay has read it
  REQUIRE(cudaStreamSynchronize(stream) == cudaSuccess);
  CHECK(out[0] == 12);
}

TEST_CASE("a replay over memory that was freed is found") {
  Machine machine;
  const StreamOfTest stream;
  float* x = nullptr;
  REQUIRE(cudaMalloc(&x, 4) == cudaSuccess);
  SECTION("in a kernel") {
    const GraphOfTest graph(stream, [&] { set(stream, x, 1); });
    REQUIRE(cudaFree(x) == cudaSuccess);
    graph.launch(stream);
    CHECK_THROWS_WITH(cudaStreamSynchronize(stream), Contains("kernel set, argument 1") && Contains("was freed"));
  }
  SECTION("in a fill") {
    const GraphOfTest graph(stream, [&] { REQUIRE(cudaMemsetAsync(x, 0, 4, stream) == cudaSuccess); });
    REQUIRE(cudaFree(x) == cudaSuccess);
    CHECK_THROWS_WITH(cudaGraphLaunch(graph.executable(), stream), Contains("the range of a fill") && Contains("was freed"));
  }
}

TEST_CASE("events join another stream to the capture; what it does is ordered by them alone") {
  Machine machine;
  const StreamOfTest main, side;
  const EventOfTest fork(cudaEventDisableTiming), join(cudaEventDisableTiming);
  const Floats x({1}), y({1});
  const GraphOfTest graph(main, [&] {
    add(main, x.data(), 1);
    REQUIRE(cudaEventRecord(fork, main) == cudaSuccess);
    REQUIRE(cudaStreamWaitEvent(side, fork) == cudaSuccess);
    cudaStreamCaptureStatus status;
    REQUIRE(cudaStreamIsCapturing(side, &status) == cudaSuccess);
    CHECK(status == cudaStreamCaptureStatusActive);
    REQUIRE(cudaMemcpyAsync(y.data(), x.data(), 4, cudaMemcpyDeviceToDevice, side) == cudaSuccess);
    REQUIRE(cudaEventRecord(join, side) == cudaSuccess);
    REQUIRE(cudaStreamWaitEvent(main, join) == cudaSuccess);
    twice(main, y.data());
  });
  cudaStreamCaptureStatus status;
  REQUIRE(cudaStreamIsCapturing(side, &status) == cudaSuccess);
  CHECK(status == cudaStreamCaptureStatusNone);
  graph.launch(main);
  graph.launch(main);
  REQUIRE(cudaStreamSynchronize(main) == cudaSuccess);
  CHECK(x.now()[0] == 3);
  CHECK(y.now()[0] == 6);
  CHECK(cudaEventQuery(join) == cudaErrorCapturedEvent);
  CHECK(cudaStreamWaitEvent(side, join) == cudaErrorCapturedEvent);
  REQUIRE(cudaEventRecord(join, side) == cudaSuccess);  // an ordinary event again
  CHECK(cudaEventSynchronize(join) == cudaSuccess);
}

TEST_CASE("a replay can be captured") {
  Machine machine;
  const StreamOfTest stream;
  const Floats x({1});
  const GraphOfTest inner(stream, [&] { twice(stream, x.data()); });
  const GraphOfTest outer(stream, [&] {
    inner.launch(stream);
    add(stream, x.data(), 1);
    inner.launch(stream);
  });
  outer.launch(stream);
  REQUIRE(cudaStreamSynchronize(stream) == cudaSuccess);
  CHECK(x.now()[0] == 6);
}

/// What `call` answers during a capture of `stream`, and whether the capture is broken by it.
template <class Call>
std::pair<cudaError_t, bool> during_capture(cudaStream_t stream, cudaStreamCaptureMode mode, Call call) {
  REQUIRE(cudaStreamBeginCapture(stream, mode) == cudaSuccess);
  const cudaError_t answer = call();
  cudaStreamCaptureStatus status;
  cudaStreamIsCapturing(stream, &status);
  const bool broken = status == cudaStreamCaptureStatusInvalidated;
  if (broken) CHECK(cudaMemsetAsync(nullptr, 0, 0, stream) == cudaSuccess);
  cudaGraph_t graph = nullptr;
  CHECK(cudaStreamEndCapture(stream, &graph) == (broken ? cudaErrorStreamCaptureInvalidated : cudaSuccess));
  CHECK((graph == nullptr) == broken);
  if (graph) cudaGraphDestroy(graph);
  (void)cudaGetLastError();
  return {answer, broken};
}

TEST_CASE("calls that a capture does not allow") {
  using Answer = std::pair<cudaError_t, bool>;
  constexpr auto kGlobal = cudaStreamCaptureModeGlobal, kLocal = cudaStreamCaptureModeThreadLocal,
                 kRelaxed = cudaStreamCaptureModeRelaxed;
  Machine machine;
  const StreamOfTest stream, other, blocking(cudaStreamDefault);
  const EventOfTest event, outside;
  const Floats x({1});
  float host = 0;
  REQUIRE(cudaEventRecord(outside, other) == cudaSuccess);
  const Answer unsupported{cudaErrorStreamCaptureUnsupported, true};

  for (const auto mode : {kGlobal, kLocal, kRelaxed}) {
    CHECK(during_capture(stream, mode, [&] { return cudaStreamSynchronize(stream); }) == unsupported);
    CHECK(during_capture(stream, mode, [&] { return cudaStreamQuery(stream); }) == unsupported);
    CHECK(during_capture(stream, mode, [&] { return cudaDeviceSynchronize(); }) == unsupported);
    CHECK(during_capture(stream, mode, [&] {
            return cudaMemcpyAsync(x.data(), &host, 4, cudaMemcpyHostToDevice, stream);
          }) == unsupported);
    CHECK(during_capture(stream, mode, [&] {
            return cudaMemcpyAsync(&host, x.data(), 4, cudaMemcpyDeviceToHost, stream);
          }) == unsupported);
    CHECK(during_capture(stream, mode, [&] { return cudaStreamSynchronize(other); }) == Answer{cudaSuccess, false});
    CHECK(during_capture(stream, mode, [&] { return cudaStreamBeginCapture(stream, mode); }) ==
          Answer{cudaErrorIllegalState, false});
    // An event of the capture has no state; one from outside would tie the graph to what is outside.
    const auto of_event = [&](auto ask) {
      return during_capture(stream, mode, [&] {
        REQUIRE(cudaEventRecord(event, stream) == cudaSuccess);
        return ask();
      });
    };
    CHECK(of_event([&] { return cudaEventQuery(event); }) == Answer{cudaErrorCapturedEvent, true});
    CHECK(of_event([&] { return cudaEventSynchronize(event); }) == Answer{cudaErrorCapturedEvent, true});
    CHECK(of_event([&] { return cudaStreamWaitEvent(nullptr, event); }) == Answer{cudaErrorStreamCaptureImplicit, true});
    CHECK(during_capture(stream, mode, [&] { return cudaStreamWaitEvent(stream, outside); }) ==
          Answer{cudaErrorStreamCaptureIsolation, true});
  }

  // The legacy stream waits for blocking streams.
  const auto legacy = [&] { return cudaMemsetAsync(x.data(), 0, 4, nullptr); };
  CHECK(during_capture(blocking, kRelaxed, legacy) == Answer{cudaErrorStreamCaptureImplicit, true});
  CHECK(during_capture(stream, kRelaxed, legacy) == Answer{cudaSuccess, false});
  const auto blocking_copy = [&] { return cudaMemcpy(&host, x.data(), 4, cudaMemcpyDeviceToHost); };
  CHECK(during_capture(blocking, kRelaxed, blocking_copy) == Answer{cudaErrorStreamCaptureImplicit, true});

  // Unsafe calls: forbidden but in relaxed captures.
  float* made = nullptr;
  REQUIRE(cudaMalloc(&made, 4) == cudaSuccess);
  for (const auto mode : {kGlobal, kLocal}) {
    void* more = nullptr;
    CHECK(during_capture(stream, mode, [&] { return cudaMalloc(&more, 4); }) == unsupported);
    CHECK(during_capture(stream, mode, [&] { return cudaMallocHost(&more, 4); }) == unsupported);
    CHECK(during_capture(stream, mode, [&] { return cudaFree(made); }) == unsupported);
    CHECK(during_capture(stream, mode, [&] { return cudaEventQuery(outside); }) == unsupported);
    CHECK(during_capture(stream, mode, blocking_copy) == unsupported);
    CHECK(more == nullptr);
    const auto relaxed_thread = [&] {
      auto thread_mode = kRelaxed;
      REQUIRE(cudaThreadExchangeStreamCaptureMode(&thread_mode) == cudaSuccess);
      const cudaError_t status = cudaMalloc(&more, 4);
      REQUIRE(cudaThreadExchangeStreamCaptureMode(&thread_mode) == cudaSuccess);
      return status;
    };
    CHECK(during_capture(stream, mode, relaxed_thread) == Answer{cudaSuccess, false});
    CHECK(cudaFree(more) == cudaSuccess);
  }
  CHECK(during_capture(stream, kRelaxed, [&] { return cudaFree(made); }) == Answer{cudaSuccess, false});
  CHECK(cudaStreamBeginCapture(nullptr, kGlobal) == cudaErrorStreamCaptureUnsupported);

  // Another thread: only in global mode.
  const auto elsewhere = [&] {
    cudaError_t status = cudaErrorUnknown;
    std::thread([&] {
      void* data = nullptr;
      status = cudaMalloc(&data, 4);
      if (data) cudaFree(data);
    }).join();
    return status;
  };
  CHECK(during_capture(stream, kGlobal, elsewhere) == unsupported);
  CHECK(during_capture(stream, kLocal, elsewhere) == Answer{cudaSuccess, false});
}

TEST_CASE("a broken capture takes nothing more") {
  Machine machine;
  const StreamOfTest stream;
  const Floats x({1});
  REQUIRE(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed) == cudaSuccess);
  CHECK(cudaStreamSynchronize(stream) == cudaErrorStreamCaptureUnsupported);
  CHECK(cudaMemsetAsync(x.data(), 0, 4, stream) == cudaErrorStreamCaptureInvalidated);
  CHECK_THROWS_WITH(set(stream, x.data(), 2), Contains("previous error during capture"));
  cudaGraph_t graph = nullptr;
  CHECK(cudaStreamEndCapture(stream, &graph) == cudaErrorStreamCaptureInvalidated);
  CHECK(graph == nullptr);
  set(stream, x.data(), 2);  // an ordinary stream again
  REQUIRE(cudaStreamSynchronize(stream) == cudaSuccess);
  CHECK(x.now()[0] == 2);
}

TEST_CASE("captures end where they began, joined and whole") {
  Machine machine;
  const StreamOfTest stream, side, third;
  const EventOfTest event;
  const Floats x({1});
  cudaGraph_t graph = nullptr;
  CHECK(cudaStreamEndCapture(stream, &graph) == cudaErrorIllegalState);
  const auto fork = [&] {
    REQUIRE(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal) == cudaSuccess);
    REQUIRE(cudaEventRecord(event, stream) == cudaSuccess);
    REQUIRE(cudaStreamWaitEvent(side, event) == cudaSuccess);
  };
  SECTION("work of a stream that was never joined again") {
    fork();
    twice(side, x.data());
    CHECK(cudaStreamEndCapture(stream, &graph) == cudaErrorStreamCaptureUnjoined);
  }
  SECTION("in another stream of the same capture") {
    fork();
    CHECK(cudaStreamEndCapture(side, &graph) == cudaErrorStreamCaptureUnmatched);
    CHECK(cudaStreamEndCapture(stream, &graph) == cudaErrorStreamCaptureInvalidated);
  }
  SECTION("two captures do not become one") {
    fork();
    REQUIRE(cudaStreamBeginCapture(third, cudaStreamCaptureModeGlobal) == cudaSuccess);
    CHECK(cudaStreamWaitEvent(third, event) == cudaErrorStreamCaptureMerge);
    CHECK(cudaStreamEndCapture(third, &graph) == cudaErrorStreamCaptureInvalidated);
    CHECK(cudaStreamEndCapture(stream, &graph) == cudaErrorStreamCaptureInvalidated);
  }
  SECTION("on the thread where they began") {
    fork();
    cudaError_t status = cudaSuccess;
    std::thread([&] { status = cudaStreamEndCapture(stream, &graph); }).join();
    CHECK(status == cudaErrorStreamCaptureWrongThread);
    CHECK(cudaStreamEndCapture(stream, &graph) == cudaSuccess);
    CHECK(cudaGraphDestroy(graph) == cudaSuccess);
  }
  CHECK(cudaDeviceSynchronize() == cudaSuccess);
  (void)cudaGetLastError();
}

}  // namespace
}  // namespace outeffhop::test

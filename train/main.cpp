#include <fmt/format.h>

#include <csignal>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <new>

#include "kernels/error.h"
#include "train/command_line.h"
#include "train/thread_waiting.h"

int main(int argc, char** argv) {
  using outeffhop::ErrorKind;
  outeffhop::wait_briefly_for_threads(argv);
  std::signal(SIGXFSZ, SIG_IGN);  // a file larger than `ulimit -f` allows is an error of the write, as on a full disk
  try {
    return outeffhop::run_command_line(argc, argv);
  } catch (const outeffhop::Error& e) {
    fmt::print(stderr, "outeffhop: {}\n", e.what());
    return static_cast<int>(e.kind());
  } catch (const std::filesystem::filesystem_error& e) {
    fmt::print(stderr, "outeffhop: {}: {}\n", e.path1().string(), e.code().message());
    return static_cast<int>(ErrorKind::io);
  } catch (const std::bad_alloc&) {
    fmt::print(stderr, "outeffhop: out of memory: a smaller training.micro_batch_size or model needs less\n");
    return static_cast<int>(ErrorKind::unsupported);
  } catch (const std::exception& e) {
    fmt::print(stderr, "outeffhop: unexpected: {}\n", e.what());
    return static_cast<int>(ErrorKind::internal);
  }
}

// The programs of the build, run as processes.
#pragma once

#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "tests/catch.h"
#include "tests/test_support.h"
#include "train/files.h"

namespace outeffhop::test {

struct ProcessOptions {
  std::string output = "";            ///< where standard output goes; empty: a file that output() reads
  std::vector<std::string> set = {};  ///< NAME=VALUE of the environment
  bool as_nobody = false;             ///< where the tests run as root: without its right to read and write everything
};

/// A started program with its output in files.
class Process {
 public:
  /// `largest_file`: bytes that a file of the program may have, as `ulimit -S -f`; 0: any number.
  Process(const std::string& program, const std::vector<std::string>& arguments, rlim_t largest_file = 0,
          const ProcessOptions& options = {}) {
    const std::string path = std::string(OUTEFFHOP_BINARY_DIR) + "/" + program;
    std::vector<const char*> argv = {path.c_str()};
    for (const std::string& a : arguments) {
      argv.push_back(a.c_str());
      // These tests are of the CPU, whatever the machine has, unless they say otherwise.
      const bool on_device = argv.size() == 2 && (a == "train" || a == "eval" || a == "probe");
      const auto says = [](const std::string& other) { return other == "--device" || other == "--help"; };
      if (on_device && std::none_of(arguments.begin(), arguments.end(), says)) argv.insert(argv.end(), {"--device", "cpu"});
    }
    argv.push_back(nullptr);
    const std::string out = options.output.empty() ? (directory_.path() / "out").string() : options.output;
    const std::string error = (directory_.path() / "err").string();
    // Opened before the rights go: a build directory need not be reachable for everyone.
    const int executable = open(path.c_str(), O_RDONLY);
    REQUIRE(executable >= 0);
    pid_ = fork();
    REQUIRE(pid_ >= 0);
    if (pid_ == 0) {
      rlimit limit{};
      getrlimit(RLIMIT_FSIZE, &limit);
      if (largest_file) limit.rlim_cur = largest_file;
      if (setrlimit(RLIMIT_FSIZE, &limit) != 0) _exit(124);
      if (!freopen(out.c_str(), "w", stdout) || !freopen(error.c_str(), "w", stderr)) _exit(125);
      for (const std::string& variable : options.set) putenv(const_cast<char*>(variable.c_str()));
      constexpr uid_t kNobody = 65534;
      if (options.as_nobody && geteuid() == 0 && (setgid(kNobody) != 0 || setuid(kNobody) != 0)) _exit(123);
      fexecve(executable, const_cast<char* const*>(argv.data()), environ);
      _exit(126);
    }
    close(executable);
  }
  ~Process() {
    if (pid_ > 0 && !waited_) {
      kill(pid_, SIGKILL);
      wait();
    }
  }

  int wait() {
    int status = 0;
    wait4(pid_, &status, 0, &usage_);
    waited_ = true;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
  }
  pid_t pid() const { return pid_; }
  /// After wait(): the most bytes that were resident at a time.
  double peak_memory() const { return 1024.0 * static_cast<double>(usage_.ru_maxrss); }
  void signal(int number) const { kill(pid_, number); }
  std::string output() const { return read_file(directory_.path() / "out"); }
  std::string error() const { return read_file(directory_.path() / "err"); }

 private:
  TemporaryDirectory directory_;
  pid_t pid_ = -1;
  bool waited_ = false;
  rusage usage_{};
};

struct Result {
  int code;
  std::string output, error;
};

inline Result run(const std::vector<std::string>& arguments, const std::string& program = "outeffhop") {
  Process process(program, arguments);
  const int code = process.wait();
  return {code, process.output(), process.error()};
}

}  // namespace outeffhop::test

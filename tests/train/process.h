// The programs of the build, run as processes.
#pragma once

#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <string>
#include <vector>

#include "tests/catch.h"
#include "tests/test_support.h"
#include "train/files.h"

namespace outeffhop::test {

/// A started program with its output in files.
class Process {
 public:
  /// `largest_file`: bytes that a file of the program may have, as `ulimit -S -f`; 0: any number.
  Process(const std::string& program, const std::vector<std::string>& arguments, rlim_t largest_file = 0) {
    const std::string path = std::string(OUTEFFHOP_BINARY_DIR) + "/" + program;
    std::vector<const char*> argv = {path.c_str()};
    for (const std::string& a : arguments) argv.push_back(a.c_str());
    argv.push_back(nullptr);
    const std::string out = (directory_.path() / "out").string(), error = (directory_.path() / "err").string();
    pid_ = fork();
    REQUIRE(pid_ >= 0);
    if (pid_ == 0) {
      rlimit limit{};
      getrlimit(RLIMIT_FSIZE, &limit);
      if (largest_file) limit.rlim_cur = largest_file;
      if (setrlimit(RLIMIT_FSIZE, &limit) != 0) _exit(124);
      if (!freopen(out.c_str(), "w", stdout) || !freopen(error.c_str(), "w", stderr)) _exit(125);
      execv(path.c_str(), const_cast<char* const*>(argv.data()));
      _exit(126);
    }
  }
  ~Process() {
    if (pid_ > 0 && !waited_) {
      kill(pid_, SIGKILL);
      wait();
    }
  }

  int wait() {
    int status = 0;
    waitpid(pid_, &status, 0);
    waited_ = true;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
  }
  pid_t pid() const { return pid_; }
  void signal(int number) const { kill(pid_, number); }
  std::string output() const { return read_file(directory_.path() / "out"); }
  std::string error() const { return read_file(directory_.path() / "err"); }

 private:
  TemporaryDirectory directory_;
  pid_t pid_ = -1;
  bool waited_ = false;
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

#include "data/mapping_guard.h"

#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <mutex>

#include "kernels/error.h"

namespace outeffhop {
namespace {

/// One guarded range. Nodes are never freed, only used again, so that the handler may walk them at any time.
struct Guarded {
  std::atomic<std::uintptr_t> begin{0};  ///< 0: free
  std::atomic<std::size_t> bytes{0};
  std::string sentence;  ///< made beforehand: a handler may not allocate
  Guarded* next = nullptr;
};

// A signal handler can reach nothing but static data.
std::atomic<Guarded*> guarded_list{nullptr};
std::mutex guarded_mutex;
struct sigaction previous_action;

extern "C" void handle_fault(int signal, siginfo_t* information, void*) {
  const auto address = reinterpret_cast<std::uintptr_t>(information->si_addr);
  for (const Guarded* g = guarded_list.load(); g; g = g->next) {
    const std::uintptr_t begin = g->begin.load();
    if (begin == 0 || address < begin || address - begin >= g->bytes.load()) continue;
    [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, g->sentence.data(), g->sentence.size());
    _exit(static_cast<int>(ErrorKind::data));
  }
  sigaction(signal, &previous_action, nullptr);  // none of ours: the instruction faults again, for whoever was there before
}

void install_handler() {
  struct sigaction action {};
  action.sa_sigaction = handle_fault;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGBUS, &action, &previous_action);
}

}  // namespace

void guard_mapping(const void* begin, std::size_t bytes, const std::string& path) {
  static std::once_flag installed;
  std::call_once(installed, install_handler);
  const std::lock_guard lock(guarded_mutex);
  Guarded* node = guarded_list.load();
  while (node && node->begin.load() != 0) node = node->next;
  const bool is_new = node == nullptr;
  if (is_new) node = new Guarded;
  node->sentence = fmt::format(
      "outeffhop: shard {} was cut, or could not be read, while it was in use: its file must stay as it is until the end; "
      "put it back and start again, checkpoints are as they were\n",
      path);
  node->bytes = bytes;
  node->begin = reinterpret_cast<std::uintptr_t>(begin);
  if (!is_new) return;
  node->next = guarded_list.load();
  guarded_list = node;
}

void unguard_mapping(const void* begin) {
  const std::lock_guard lock(guarded_mutex);
  for (Guarded* g = guarded_list.load(); g; g = g->next) {
    if (g->begin.load() == reinterpret_cast<std::uintptr_t>(begin)) g->begin = 0;
  }
}

}  // namespace outeffhop

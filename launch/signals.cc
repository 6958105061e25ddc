#include "launch/signals.h"

#include <signal.h>

#include <atomic>
#include <initializer_list>

namespace zi {
namespace {

std::atomic<int> g_signal{0};
std::atomic<int> g_count{0};
static_assert(std::atomic<int>::is_always_lock_free, "used in a signal handler");

extern "C" void remember(int signal) { g_signal.store(signal, std::memory_order_relaxed); }

constexpr int kMostCounted = 2;

/// SIGHUP stays ignored where it was: nohup says that a closed terminal means nothing.
bool is_ignored_hangup(int signal) {
  struct sigaction now {};
  return signal == SIGHUP && sigaction(signal, nullptr, &now) == 0 && now.sa_handler == SIG_IGN;
}

void handle(std::initializer_list<int> signals, void (*handler)(int), unsigned flags) {
  struct sigaction action {};
  action.sa_handler = handler;
  action.sa_flags = static_cast<int>(flags);
  for (const int signal : signals) {
    if (!is_ignored_hangup(signal)) sigaction(signal, &action, nullptr);
  }
}

extern "C" void count(int signal) {
  remember(signal);
  if (g_count.fetch_add(1, std::memory_order_relaxed) + 1 < kMostCounted) return;
  handle({SIGINT, SIGTERM, SIGHUP, SIGUSR1}, SIG_DFL, 0);
}

}  // namespace

void catch_stop_signals() {
  handle({SIGINT, SIGTERM, SIGHUP, SIGUSR1}, remember, SA_RESETHAND | SA_RESTART);
}

void count_stop_signals() { handle({SIGINT, SIGTERM, SIGHUP, SIGUSR1}, count, SA_RESTART); }

void ignore_closed_pipes() { handle({SIGPIPE}, SIG_IGN, 0); }

void remember_stop_signals() { handle({SIGINT, SIGTERM}, remember, SA_RESTART); }

int take_stop_signal() { return g_signal.exchange(0, std::memory_order_relaxed); }

int stop_signal_count() { return g_count.load(std::memory_order_relaxed); }

int stop_signal() { return g_signal.load(std::memory_order_relaxed); }

}  // namespace zi

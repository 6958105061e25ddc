#include "serve/http/task_pool.h"

#include <fmt/format.h>
#include <pthread.h>

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <exception>
#include <system_error>
#include <utility>

#include "base/blocked_signals.h"
#include "zero_infer/error.h"
#include "zero_infer/log.h"

namespace zi {
namespace {

namespace net = boost::asio;

}  // namespace

struct TaskPool::Loop {
  net::io_context context;
  net::executor_work_guard<net::io_context::executor_type> guard{context.get_executor()};
};

TaskPool::TaskPool(int threads, std::string name) : loop_(std::make_unique<Loop>()) {
  const BlockedSignals blocked;
  try {
    for (int i = 0; i < threads; ++i) {
      threads_.emplace_back([this] { run(); });
      ::pthread_setname_np(threads_.back().native_handle(), name.c_str());
    }
  } catch (const std::system_error& error) {
    stop();
    throw Error(fmt::format("cannot start {} threads for {}: {}", threads, name, error.what()));
  }
}

TaskPool::~TaskPool() { stop(); }

net::io_context& TaskPool::context() { return loop_->context; }

void TaskPool::post(std::function<void()> task) {
  if (!ended()) net::post(loop_->context, std::move(task));
}

bool TaskPool::ended() const { return loop_->context.stopped(); }

void TaskPool::finish() {
  loop_->guard.reset();
  join();
}

void TaskPool::stop() {
  loop_->context.stop();
  join();
}

void TaskPool::join() {
  for (std::thread& thread : threads_) {
    if (thread.joinable()) thread.join();
  }
}

void TaskPool::run() {
  for (;;) {
    try {
      loop_->context.run();
      return;
    } catch (const std::exception& error) {  // of one task: the others go on
      log_error(fmt::format("HTTP server: {}", error.what()));
    }
  }
}

}  // namespace zi

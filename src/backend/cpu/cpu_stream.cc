#include "zero_infer/cpu_stream.h"

#include <pthread.h>

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>

#include "backend/cpu/cpu_event.h"
#include "zero_infer/error.h"

namespace zi {

std::uint64_t EventState::open() {
  const std::lock_guard lock(mutex_);
  pending_.push_back(++latest_);
  return latest_;
}

void EventState::reach(std::uint64_t generation, const std::exception_ptr& failure) {
  {
    const std::lock_guard lock(mutex_);
    std::erase(pending_, generation);
    if (failure && !failure_) failure_ = failure;
    if (generation == latest_) reached_at_ = Clock::now();
  }
  changed_.notify_all();
}

std::uint64_t EventState::latest() const {
  const std::lock_guard lock(mutex_);
  return latest_;
}

bool EventState::pending(std::uint64_t generation) const {
  return std::find(pending_.begin(), pending_.end(), generation) != pending_.end();
}

bool EventState::reached(std::uint64_t generation) const {
  const std::lock_guard lock(mutex_);
  return !pending(generation);
}

std::exception_ptr EventState::wait(std::uint64_t generation) const {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return !pending(generation); });
  return failure_;
}

EventState::Clock::time_point EventState::reached_at() const {
  const std::lock_guard lock(mutex_);
  if (latest_ == 0) throw Error("an event was timed that was never recorded");
  if (pending(latest_)) throw Error("an event was timed before it was reached; synchronize first");
  return reached_at_;
}

struct CpuStream::State {
  /// A host function, or (no function) the end of an event's generation, which no failure may skip.
  struct Task {
    std::function<void()> run;
    std::shared_ptr<EventState> event;
    std::uint64_t generation = 0;
    bool waits = false;
  };

  void push(Task task);
  void loop();
  void run(Task& task);
  void fail(std::exception_ptr failure);

  std::mutex mutex;
  std::condition_variable work;  // for the worker: a task or the end
  std::condition_variable idle;  // for the host: the queue ran empty
  std::deque<Task> queue;
  bool busy = false;
  bool ending = false;
  std::exception_ptr failure;  // the first; stays
  std::jthread worker;         // last: it uses all of the above
};

void CpuStream::State::push(Task task) {
  {
    const std::lock_guard lock(mutex);
    queue.push_back(std::move(task));
  }
  work.notify_one();
}

void CpuStream::State::fail(std::exception_ptr reason) {
  const std::lock_guard lock(mutex);
  if (!failure) failure = std::move(reason);
}

void CpuStream::State::run(Task& task) {
  std::exception_ptr failed;
  {
    const std::lock_guard lock(mutex);
    failed = failure;
  }
  if (task.event == nullptr) {
    if (failed) return;  // its inputs are not there
    try {
      task.run();
    } catch (...) {
      fail(std::current_exception());
    }
  } else if (task.waits) {
    // What the other stream should have produced is missing: this stream fails with it.
    if (auto other = task.event->wait(task.generation)) fail(std::move(other));
  } else {
    task.event->reach(task.generation, failed);
  }
}

void CpuStream::State::loop() {
  std::unique_lock lock(mutex);
  while (true) {
    work.wait(lock, [&] { return ending || !queue.empty(); });
    if (queue.empty()) return;
    {
      Task task = std::move(queue.front());
      queue.pop_front();
      busy = true;
      lock.unlock();
      run(task);
    }  // captured objects are gone before the stream counts as idle
    lock.lock();
    busy = false;
    if (queue.empty()) idle.notify_all();
  }
}

CpuStream::CpuStream(const std::string& name) : state_(std::make_unique<State>()) {
  state_->worker = std::jthread([state = state_.get()] { state->loop(); });
  pthread_setname_np(state_->worker.native_handle(), name.substr(0, 15).c_str());
}

CpuStream::~CpuStream() {
  {
    const std::lock_guard lock(state_->mutex);
    state_->ending = true;
  }
  state_->work.notify_one();
  state_->worker.join();
}

void CpuStream::enqueue(std::function<void()> task) { state_->push({std::move(task), nullptr}); }

void CpuStream::record(Event& event) {
  const auto& state = dynamic_cast<CpuEvent&>(event).state();
  state_->push({{}, state, state->open(), false});
}

void CpuStream::wait(const Event& event) {
  // Also when it is reached already: the failure of its stream must arrive in order.
  const auto& state = dynamic_cast<const CpuEvent&>(event).state();
  state_->push({{}, state, state->latest(), true});
}

void CpuStream::synchronize() {
  std::unique_lock lock(state_->mutex);
  state_->idle.wait(lock, [&] { return state_->queue.empty() && !state_->busy; });
  if (state_->failure) std::rethrow_exception(state_->failure);
}

}  // namespace zi

#pragma once

#include <functional>
#include <memory>
#include <string>

#include "zero_infer/device.h"

namespace zi {

/// A stream of the CPU backend: one worker thread that runs host functions in the order in which
/// they were enqueued. Every Stream that the CPU device makes is a CpuStream: what is enqueued
/// there may use its memory, and host libraries (MPI) can take part in its order.
///
/// A task that throws fails the stream: later tasks are skipped, events are still reached so that
/// nobody waits forever, and every later synchronize() rethrows the first exception.
class CpuStream final : public Stream {
 public:
  /// `name` is what debuggers and `ps -L` show (15 characters of it).
  explicit CpuStream(const std::string& name);
  /// Waits for the enqueued work.
  ~CpuStream() override;
  CpuStream(const CpuStream&) = delete;
  CpuStream& operator=(const CpuStream&) = delete;

  /// On the worker.
  void enqueue(std::function<void()> task) override;
  void record(Event& event) override;
  void wait(const Event& event) override;
  void synchronize() override;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace zi

#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "zero_infer/buffer.h"

namespace zi {

/// A point in a stream's work. Before its first record it counts as reached.
class Event {
 public:
  virtual ~Event() = default;
  /// Whether the work before the last record is done.
  virtual bool reached() const = 0;
  /// Blocks the host until then. Does not tell whether the work failed: the stream's synchronize
  /// does.
  virtual void synchronize() const = 0;
};

/// An execution queue: enqueued work runs in order, asynchronously to the host. One host thread at
/// a time may enqueue. The destructor waits for the work.
class Stream {
 public:
  virtual ~Stream() = default;
  /// The event is reached when all work enqueued so far is done.
  virtual void record(Event& event) = 0;
  /// Work enqueued later waits for the event's last record (made by the host before this call).
  /// When the stream of that record failed, so does this one: its later work is skipped.
  virtual void wait(const Event& event) = 0;
  /// Runs `task` on some host thread after everything enqueued so far; later work waits for it.
  /// What it uses must stay valid until then. It must not use the device, nor wait for work that
  /// does. When it throws, later tasks of the stream are skipped, and synchronize() throws that.
  virtual void enqueue(std::function<void()> task) = 0;
  /// Blocks the host until the queue is empty; throws what failed in the enqueued work, every time.
  virtual void synchronize() = 0;
};

/// Work that was recorded once and is enqueued as a whole, at the cost of one launch.
class Graph {
 public:
  virtual ~Graph() = default;
  /// Enqueues the work again, with the same arguments: what they point to may have changed.
  virtual void launch(Stream& stream) = 0;
};

/// Which work a GPU prefers where several streams have some that could start.
enum class StreamPriority {
  kNormal,
  kFirst,  // at once, whatever else runs: a gather, in which other ranks wait and hold their SMs
};

struct MemoryInfo {
  std::size_t free_bytes = 0;
  std::size_t total_bytes = 0;
};

/// One rank's device. Streams, events and buffers must not outlive it.
class Device {
 public:
  virtual ~Device() = default;

  virtual std::string name() const = 0;
  /// Whether device memory is the host's: the host may read and write it, once the streams that use
  /// it have passed, and both kinds of allocation come from the same memory.
  virtual bool is_host() const = 0;
  /// The host's NUMA node that the device hangs on, on which pinned memory is taken; -1: not known.
  virtual int numa_node() const { return -1; }
  /// Device memory; on the CPU backend, what the node can still give (shared by its ranks).
  virtual MemoryInfo memory() const = 0;

  /// The host's free memory, for all of its ranks together (cgroup limits included).
  virtual MemoryInfo host_memory() const = 0;

  /// Device memory, aligned to 256 bytes or more. Throws ConfigError with the numbers when there is
  /// not enough.
  virtual Buffer allocate(std::size_t bytes) = 0;
  /// The same for weights that are about to be loaded: where device memory is the host's, its pages
  /// are taken later, by take_pages or when they are written, so that reading need not wait.
  virtual Buffer allocate_for_loading(std::size_t bytes) { return allocate(bytes); }
  /// Takes the pages of a part of such memory; does nothing where device memory is not the host's.
  /// Any thread may call it. Throws MemoryError when there is not enough.
  virtual void take_pages(std::span<std::byte>) {}
  /// Host memory that the device copies from at full speed and that its kernels can read and write,
  /// 4096-aligned (fit for O_DIRECT). A copy must lie within one such buffer. Any thread may call
  /// it. Throws MemoryError where the system does not give that much, or does not pin it.
  virtual Buffer allocate_pinned(std::size_t bytes) = 0;
  /// The same for large memory that is only copied from: where the system does not pin it, a
  /// warning says so and the memory is plain; copies are then slower.
  virtual Buffer allocate_pinned_or_plain(std::size_t bytes) { return allocate_pinned(bytes); }

  /// `name` is for debuggers, where they show it. Streams of the CPU backend are all alike.
  virtual std::unique_ptr<Stream> make_stream(const std::string& name, StreamPriority priority) = 0;
  std::unique_ptr<Stream> make_stream(const std::string& name) {
    return make_stream(name, StreamPriority::kNormal);
  }
  /// A stream whose copies from pinned memory wait for nothing but the stream's own work. Those of
  /// other streams may queue behind each other where one engine makes them all.
  virtual std::unique_ptr<Stream> make_stream_of_own_copies(const std::string& name) {
    return make_stream(name);
  }
  virtual std::unique_ptr<Event> make_event() = 0;
  /// Seconds between two reached events of this device's streams.
  virtual double elapsed_seconds(const Event& start, const Event& end) const = 0;

  /// Enqueues a copy in any direction between device and host memory. Both ranges must stay valid
  /// and untouched until the stream has passed it.
  virtual void copy(void* dst, const void* src, std::size_t bytes, Stream& stream) = 0;
  /// Records what `work` enqueues on the stream, and runs nothing of it. Null, without calling
  /// `work`, where the device has no graphs (the CPU backend). The work must not allocate, wait,
  /// enqueue tasks or use other streams, and all of it must have run before in the ordinary way.
  virtual std::unique_ptr<Graph> record(Stream&, const std::function<void()>&) { return nullptr; }

  /// Names what the calling thread does from here to the matching mark_end, for profilers that show
  /// it (NVTX on a GPU). Marks may be nested.
  virtual void mark_begin(const std::string&) {}
  virtual void mark_end() {}

  /// Enqueues zeroing of device memory.
  virtual void zero(void* dst, std::size_t bytes, Stream& stream) = 0;
};

}  // namespace zi

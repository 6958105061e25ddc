#pragma once

#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <memory>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "base/file_descriptor.h"
#include "offload/nvme_store.h"
#include "offload/shard_writer.h"
#include "temporary_directory.h"
#include "zero_infer/error.h"
#include "zero_infer/random.h"

namespace zi::test {

/// The names of the files below a folder without those of locks: what a failed writer must not
/// leave.
inline std::vector<std::string> files_in(const std::filesystem::path& folder) {
  std::vector<std::string> names;
  std::error_code missing;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder, missing)) {
    if (entry.is_regular_file() && entry.path().extension() != ".lock") {
      names.push_back(entry.path().filename().string());
    }
  }
  std::ranges::sort(names);
  return names;
}

inline std::vector<std::byte> contents(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(in), {}};
  const auto* begin = reinterpret_cast<const std::byte*>(text.data());
  return {begin, begin + text.size()};
}

inline ShardHeader read_header(const std::filesystem::path& path) {
  const FileDescriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  return read_shard_header(file.get(), path.string());
}

/// Weights that are a function of the tensor's name and the element's index. `on_read` runs before
/// each read.
class PatternSource final : public WeightSource {
 public:
  void read(const TensorSpec& tensor, std::int64_t first, std::int64_t count, DType to,
            void* dst) const override {
    ++reads;
    if (on_read) on_read();
    if (to != DType::kBFloat16) throw Error("the pattern is bfloat16");
    const std::uint64_t stream = std::hash<std::string>{}(tensor.name);
    auto* out = static_cast<std::uint16_t*>(dst);
    for (std::int64_t i = 0; i < count; ++i) {
      out[i] =
          static_cast<std::uint16_t>(random_bits(1, stream, static_cast<std::uint64_t>(first + i)));
    }
  }
  bool contains(const std::string&) const override { return true; }
  DType stored_dtype(const std::string&) const override { return DType::kBFloat16; }
  std::uint64_t identity() const override { return 0x1234; }
  std::string describe() const override { return "pattern"; }

  std::function<void()> on_read;
  mutable std::atomic<int> reads = 0;
};

/// Units whose shards differ in size: rank 1 of a world of two; all but unit 0 end in a shorter
/// extent of 16 KiB.
class TestUnits {
 public:
  static constexpr std::size_t kExtentBytes = 16384;

  explicit TestUnits(int count, std::int64_t rows = 100) {
    for (int u = 0; u < count; ++u) {
      UnitSpec spec;
      spec.name = fmt::format("block {}", u);
      spec.matrices = {{fmt::format("h.{}.a", u), {rows, 300}},
                       {fmt::format("h.{}.b", u), {30 * u + 1, 500}}};
      layouts_.push_back(std::make_unique<PartitionLayout>(spec, DType::kBFloat16, 2));
      readers_.push_back(std::make_unique<ShardReader>(source, *layouts_.back(), 1));
    }
    key.model_identity = source.identity();
    key.model_name = "test/model 1";
    key.world = 2;
    key.rank = 1;
  }

  /// Units [first, last).
  std::filesystem::path prepare(const std::filesystem::path& directory, int first, int last,
                                const std::function<void(std::size_t)>& progress = {}) const {
    std::vector<int> units;
    std::vector<const ShardReader*> readers;
    for (int u = first; u < last; ++u) {
      units.push_back(u);
      readers.push_back(readers_[static_cast<std::size_t>(u)].get());
    }
    return prepare_shard_file(directory, key, units, readers, progress, kExtentBytes);
  }
  std::filesystem::path prepare(const std::filesystem::path& directory) const {
    return prepare(directory, 0, count());
  }

  /// Of units [first, last).
  std::vector<ShardSize> sizes(int first, int last) const {
    std::vector<ShardSize> sizes;
    for (int u = first; u < last; ++u) sizes.push_back({u, shard_bytes(u)});
    return sizes;
  }
  std::vector<ShardSize> sizes() const { return sizes(0, count()); }

  int count() const { return static_cast<int>(readers_.size()); }
  std::size_t shard_bytes(int unit) const {
    return readers_[static_cast<std::size_t>(unit)]->shard_bytes();
  }
  std::vector<std::byte> shard(int unit) const {
    std::vector<std::byte> bytes(shard_bytes(unit));
    readers_[static_cast<std::size_t>(unit)]->read(0, bytes);
    return bytes;
  }
  NvmeOptions options(int depth = 4, bool io_uring = true, bool direct = true) const {
    return {kExtentBytes, depth, io_uring, direct};
  }

  PatternSource source;
  ShardFileKey key;

 private:
  std::vector<std::unique_ptr<PartitionLayout>> layouts_;
  std::vector<std::unique_ptr<ShardReader>> readers_;
};

/// A device whose streams run their work only when somebody waits for it, or when told: the worst
/// case for everybody who reuses memory that a copy still reads. Single-threaded.
class LazyDevice final : public Device {
 public:
  /// What a stream has to do; its events may outlive it.
  struct Queue {
    std::deque<std::function<void()>> tasks;
    std::size_t done = 0;
    void run_to(std::size_t position) {
      for (; done < position; ++done) {
        tasks.front()();
        tasks.pop_front();
      }
    }
  };
  class LazyEvent final : public Event {
   public:
    bool reached() const override { return queue == nullptr || queue->done >= position; }
    void synchronize() const override {
      if (queue != nullptr) queue->run_to(position);
    }
    std::shared_ptr<Queue> queue;
    std::size_t position = 0;
  };
  class LazyStream final : public Stream {
   public:
    ~LazyStream() override { synchronize(); }
    void record(Event& event) override {
      auto& lazy = dynamic_cast<LazyEvent&>(event);
      lazy.queue = queue;
      lazy.position = queue->done + queue->tasks.size();
    }
    void wait(const Event& event) override { event.synchronize(); }
    void enqueue(std::function<void()> task) override { queue->tasks.push_back(std::move(task)); }
    void synchronize() override { queue->run_to(queue->done + queue->tasks.size()); }
    std::shared_ptr<Queue> queue = std::make_shared<Queue>();
  };

  using Device::make_stream;
  std::string name() const override { return "lazy"; }
  bool is_host() const override { return true; }
  MemoryInfo memory() const override { return {}; }
  MemoryInfo host_memory() const override { return {}; }
  Buffer allocate(std::size_t bytes) override {
    return {std::aligned_alloc(4096, bytes), bytes, [](void* p) { std::free(p); }};
  }
  Buffer allocate_pinned(std::size_t bytes) override {
    pinned_bytes += bytes;
    return allocate(bytes);
  }
  std::unique_ptr<Stream> make_stream(const std::string&, StreamPriority) override {
    return std::make_unique<LazyStream>();
  }
  std::unique_ptr<Event> make_event() override { return std::make_unique<LazyEvent>(); }
  double elapsed_seconds(const Event&, const Event&) const override { return 0; }
  void copy(void* dst, const void* src, std::size_t bytes, Stream& stream) override {
    dynamic_cast<LazyStream&>(stream).queue->tasks.emplace_back(
        [=] { std::memcpy(dst, src, bytes); });
  }
  void zero(void* dst, std::size_t bytes, Stream& stream) override {
    dynamic_cast<LazyStream&>(stream).queue->tasks.emplace_back(
        [=] { std::memset(dst, 0, bytes); });
  }

  std::size_t pinned_bytes = 0;  // of all buffers so far
};

/// The message of the Exception that the call throws.
template <typename Exception, typename Call>
std::string message_of(const Call& call) {
  try {
    call();
  } catch (const Exception& exception) {
    return exception.what();
  } catch (const std::exception& exception) {
    return std::string("another exception: ") + exception.what();
  }
  return "nothing was thrown";
}

/// Changes one byte of a file.
inline void flip_byte(const std::filesystem::path& path, std::uint64_t offset) {
  const int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
  char byte = 0;
  const auto at = static_cast<off_t>(offset);
  const bool read = ::pread(fd, &byte, 1, at) == 1;
  byte = static_cast<char>(byte ^ 0x10);
  const bool written = ::pwrite(fd, &byte, 1, at) == 1;
  ::close(fd);
  ASSERT_TRUE(read && written);
}

}  // namespace zi::test

#include "offload/pread_reader.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "zero_infer/error.h"

namespace zi {
namespace {

class PreadReader final : public BlockReader {
 public:
  PreadReader(const BlockSource& source, std::span<std::byte> staging, std::size_t slot_bytes,
              int threads, PreadFunction pread)
      : source_(source),
        staging_(staging),
        slot_bytes_(slot_bytes),
        pread_(std::move(pread)),
        reads_(staging.size() / slot_bytes) {
    try {
      for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { work(); });
    } catch (const std::system_error& failure) {
      // Fewer threads are slower, but none at all would wait forever.
      if (threads_.empty()) {
        throw IoError(fmt::format("{}: no thread can be started to read it: {}", source_.path,
                                  failure.what()));
      }
    }
  }

  ~PreadReader() override {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    queued_.notify_all();
    threads_.clear();  // joins: nobody writes into the staging any more
  }

  void start(std::size_t slot, std::uint64_t offset, std::size_t bytes) override {
    {
      const std::lock_guard lock(mutex_);
      reads_.at(slot) = BlockRead(offset, bytes);
      queue_.push_back(slot);
    }
    queued_.notify_one();
  }

  void wait(std::size_t slot) override {
    std::unique_lock lock(mutex_);
    const BlockRead& read = reads_.at(slot);
    settled_.wait(lock, [&] { return read.state() != BlockRead::State::kActive; });
    read.throw_if_failed(source_.path, source_.write);
  }

  std::string method() const override { return source_.write ? "pwrite" : "pread"; }

 private:
  void work() {
    std::unique_lock lock(mutex_);
    while (true) {
      queued_.wait(lock, [&] { return stopping_ || !queue_.empty(); });
      if (stopping_) return;
      const std::size_t slot = queue_.front();
      queue_.pop_front();
      BlockRead read = reads_[slot];
      lock.unlock();
      while (read.state() == BlockRead::State::kActive) {
        const ssize_t result =
            pread_(source_.fd, staging_.data() + slot * slot_bytes_ + read.done(), read.remaining(),
                   static_cast<off_t>(read.next_offset()));
        read.account(result < 0 ? -errno : result, source_.direct);
      }
      lock.lock();
      reads_[slot] = read;
      settled_.notify_all();
    }
  }

  BlockSource source_;
  std::span<std::byte> staging_;
  std::size_t slot_bytes_;
  PreadFunction pread_;
  std::mutex mutex_;  // guards the next three
  std::vector<BlockRead> reads_;
  std::deque<std::size_t> queue_;
  bool stopping_ = false;
  std::condition_variable queued_;
  std::condition_variable settled_;
  std::vector<std::jthread> threads_;
};

}  // namespace

std::unique_ptr<BlockReader> make_pread_reader(const BlockSource& source,
                                               std::span<std::byte> staging, std::size_t slot_bytes,
                                               int threads, PreadFunction pread) {
  if (!pread && source.write) pread = ::pwrite;
  if (!pread) pread = ::pread;
  return std::make_unique<PreadReader>(source, staging, slot_bytes, std::max(1, threads),
                                       std::move(pread));
}

}  // namespace zi

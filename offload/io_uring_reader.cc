#include "offload/io_uring_reader.h"

#include <fmt/format.h>
#include <liburing.h>
#include <sys/uio.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <exception>
#include <thread>
#include <vector>

#include "base/system_error.h"
#include "zero_infer/error.h"
#include "zero_infer/log.h"

namespace zi {
namespace {

/// How often, a millisecond apart, a submission is tried while the kernel has no memory for it.
constexpr int kMostSubmitAttempts = 1000;

/// `EPERM: ...` with the likely cause.
std::string explain(int error) {
  switch (error) {
    case EPERM:
    case EACCES:
      return "EPERM: forbidden by the container's seccomp profile or by kernel.io_uring_disabled";
    case ENOSYS:
      return "ENOSYS: this kernel has no io_uring";
    case ENOMEM:
      return "ENOMEM: above the limit of locked memory, see ulimit -l";
    default:
      return system_message(error);
  }
}

std::string refusal(int error) {
  return fmt::format("io_uring is refused by the kernel ({})", explain(error));
}

/// Owner of a ring.
class Ring {
 public:
  explicit Ring(unsigned entries) {
    // SINGLE_ISSUER came with Linux 6.0, COOP_TASKRUN with 5.19: dropped one by one where unknown.
    int error = -EINVAL;
    for (const unsigned flags :
         {IORING_SETUP_COOP_TASKRUN | IORING_SETUP_SINGLE_ISSUER, IORING_SETUP_COOP_TASKRUN, 0u}) {
      io_uring_params params{};
      params.flags = flags;
      error = io_uring_queue_init_params(entries, &ring_, &params);
      if (error != -EINVAL) break;
    }
    if (error < 0) throw IoError(refusal(-error));
  }
  ~Ring() { io_uring_queue_exit(&ring_); }
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;

  io_uring* get() { return &ring_; }

 private:
  io_uring ring_{};
};

class IoUringReader final : public BlockReader {
 public:
  IoUringReader(const BlockSource& source, std::span<std::byte> staging, std::size_t slot_bytes)
      : source_(source),
        staging_(staging),
        slot_bytes_(slot_bytes),
        reads_(staging.size() / slot_bytes),
        ring_(static_cast<unsigned>(reads_.size())) {
    check_operations();
    register_staging();
    const int error = io_uring_register_files(ring_.get(), &source_.fd, 1);
    registered_file_ = error == 0;
    if (error < 0) {
      log_warning(fmt::format("io_uring cannot register {} ({}); it is looked up at each read",
                              source_.path, system_message(-error)));
    }
  }

  ~IoUringReader() override {
    // The kernel writes into the staging until the last read is complete.
    for (std::size_t n = in_kernel(); n > 0; --n) {
      io_uring_cqe* cqe = nullptr;
      int error = 0;
      do {
        error = io_uring_wait_cqe(ring_.get(), &cqe);
      } while (error == -EINTR || error == -EAGAIN);
      if (error < 0) {
        log_error(fmt::format("{}: io_uring does not return {} reads in flight: {}", source_.path,
                              n, system_message(-error)));
        std::terminate();  // otherwise the kernel could write into memory that has a new owner
      }
      io_uring_cqe_seen(ring_.get(), cqe);
    }
  }

  void start(std::size_t slot, std::uint64_t offset, std::size_t bytes) override {
    reads_.at(slot) = BlockRead(offset, bytes);
    enqueue(slot);
    submit();
  }

  void wait(std::size_t slot) override {
    const BlockRead& read = reads_.at(slot);
    reap();
    while (read.state() == BlockRead::State::kActive) {
      submit_and_wait();
      reap();
    }
    read.throw_if_failed(source_.path, source_.write);
  }

  std::string method() const override { return "io_uring"; }

 private:
  /// Reads that the kernel has taken and not completed.
  std::size_t in_kernel() { return started_ - io_uring_sq_ready(ring_.get()); }

  void check_operations() {
    io_uring_probe* probe = io_uring_get_probe_ring(ring_.get());
    const auto can = [probe](int operation) {
      return probe != nullptr && io_uring_opcode_supported(probe, operation);
    };
    const bool moves = source_.write ? can(IORING_OP_WRITE) && can(IORING_OP_WRITE_FIXED)
                                     : can(IORING_OP_READ) && can(IORING_OP_READ_FIXED);
    if (probe != nullptr) io_uring_free_probe(probe);
    if (!moves) {
      throw IoError(fmt::format("io_uring of this kernel cannot {} (Linux 5.6 can)",
                                source_.write ? "write" : "read"));
    }
  }

  void register_staging() {
    std::vector<iovec> slots(reads_.size());
    for (std::size_t i = 0; i < slots.size(); ++i) {
      slots[i] = {staging_.data() + i * slot_bytes_, slot_bytes_};
    }
    const int error =
        io_uring_register_buffers(ring_.get(), slots.data(), static_cast<unsigned>(slots.size()));
    registered_staging_ = error == 0;
    if (error < 0) {
      log_warning(fmt::format(
          "io_uring cannot register {} bytes of staging ({}); unregistered buffers are used",
          staging_.size(), explain(-error)));
    }
  }

  /// Queues what is left of the slot's read. There is always room: one entry a slot.
  void enqueue(std::size_t slot) {
    const BlockRead& read = reads_[slot];
    io_uring_sqe* sqe = io_uring_get_sqe(ring_.get());
    if (sqe == nullptr) throw IoError(source_.path + ": the submission queue of io_uring is full");
    std::byte* const memory = staging_.data() + slot * slot_bytes_ + read.done();
    const int file = registered_file_ ? 0 : source_.fd;
    const auto bytes = static_cast<unsigned>(read.remaining());
    const auto buffer = static_cast<int>(slot);
    if (registered_staging_ && source_.write) {
      io_uring_prep_write_fixed(sqe, file, memory, bytes, read.next_offset(), buffer);
    } else if (registered_staging_) {
      io_uring_prep_read_fixed(sqe, file, memory, bytes, read.next_offset(), buffer);
    } else if (source_.write) {
      io_uring_prep_write(sqe, file, memory, bytes, read.next_offset());
    } else {
      io_uring_prep_read(sqe, file, memory, bytes, read.next_offset());
    }
    if (registered_file_) io_uring_sqe_set_flags(sqe, IOSQE_FIXED_FILE);
    io_uring_sqe_set_data64(sqe, slot);
    ++started_;
  }

  /// Submits the queued reads to the kernel. Those that it has no memory for now stay queued until
  /// `wait`.
  void submit() {
    int result = 0;
    do {
      result = io_uring_submit(ring_.get());
    } while (result == -EINTR);
    if (result < 0 && result != -EAGAIN && result != -EBUSY) throw_submit_error(-result);
  }

  /// The same, and blocks until a completion is there.
  void submit_and_wait() {
    for (int attempt = 1;; ++attempt) {
      int result = io_uring_submit_and_wait(ring_.get(), 1);
      if (result >= 0 || result == -EINTR) return;
      if (result != -EAGAIN && result != -EBUSY) throw_submit_error(-result);
      if (in_kernel() > 0) {
        io_uring_cqe* cqe = nullptr;
        result = io_uring_wait_cqe(ring_.get(), &cqe);  // completions give memory back
        if (result < 0 && result != -EINTR && result != -EAGAIN) throw_submit_error(-result);
        return;
      }
      if (attempt == kMostSubmitAttempts) throw_submit_error(-result);
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }

  [[noreturn]] void throw_submit_error(int error) const {
    throw IoError(system_error_text(source_.path, "io_uring_enter failed", error));
  }

  /// Takes all completions that are there; queues the rest of short reads again.
  void reap() {
    io_uring_cqe* cqe = nullptr;
    while (io_uring_peek_cqe(ring_.get(), &cqe) == 0) {
      const std::size_t slot = io_uring_cqe_get_data64(cqe);
      const std::int64_t result = cqe->res;
      io_uring_cqe_seen(ring_.get(), cqe);
      --started_;
      if (reads_[slot].account(result, source_.direct) == BlockRead::State::kActive) enqueue(slot);
    }
    if (io_uring_sq_ready(ring_.get()) > 0) submit();
  }

  BlockSource source_;
  std::span<std::byte> staging_;
  std::size_t slot_bytes_;
  std::vector<BlockRead> reads_;
  Ring ring_;
  bool registered_staging_ = false;
  bool registered_file_ = false;
  std::size_t started_ = 0;  // enqueued and not reaped
};

}  // namespace

std::unique_ptr<BlockReader> make_io_uring_reader(const BlockSource& source,
                                                  std::span<std::byte> staging,
                                                  std::size_t slot_bytes) {
  return std::make_unique<IoUringReader>(source, staging, slot_bytes);
}

}  // namespace zi

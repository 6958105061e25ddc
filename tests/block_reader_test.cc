#include "offload/block_reader.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <barrier>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <optional>
#include <set>
#include <thread>

#include "base/file_descriptor.h"
#include "offload/block_reader_choice.h"
#include "offload/io_uring_reader.h"
#include "offload/pread_reader.h"
#include "tests/shard_test_util.h"
#include "zero_infer/bytes.h"

namespace zi {
namespace {

using test::message_of;
using testing::AllOf;
using testing::HasSubstr;
using State = BlockRead::State;

constexpr std::size_t kSlotBytes = 32768;

struct FreeStaging {
  void operator()(std::byte* p) const { std::free(p); }
};
class Staging {
 public:
  explicit Staging(std::size_t slots)
      : memory_(static_cast<std::byte*>(std::aligned_alloc(kPageBytes, slots * kSlotBytes))),
        bytes_(slots * kSlotBytes) {}
  std::span<std::byte> span() const { return {memory_.get(), bytes_}; }
  std::span<const std::byte> slot(std::size_t i, std::size_t bytes) const {
    return span().subspan(i * kSlotBytes, bytes);
  }

 private:
  std::unique_ptr<std::byte[], FreeStaging> memory_;
  std::size_t bytes_;
};

std::vector<std::byte> pattern(std::size_t bytes) {
  std::vector<std::byte> out(bytes);
  for (std::size_t i = 0; i < bytes; ++i) out[i] = static_cast<std::byte>(mix64(i) & 0xff);
  return out;
}

/// A file with a pattern in it.
class BlockReaderTest : public testing::Test {
 protected:
  BlockReaderTest()
      : bytes_(pattern(40 * kSlotBytes)), path_((directory_.path() / "data").string()) {
    std::FILE* out = std::fopen(path_.c_str(), "wb");
    EXPECT_EQ(std::fwrite(bytes_.data(), 1, bytes_.size(), out), bytes_.size());
    std::fclose(out);
    file_ = FileDescriptor(::open(path_.c_str(), O_RDONLY | O_CLOEXEC));
  }
  BlockSource source(bool direct = false) { return {file_.get(), path_, direct}; }
  void expect_bytes(std::span<const std::byte> read, std::size_t offset) const {
    EXPECT_EQ(std::memcmp(read.data(), bytes_.data() + offset, read.size()), 0);
  }

  test::TemporaryDirectory directory_;
  std::vector<std::byte> bytes_;
  std::string path_;
  FileDescriptor file_;
};

TEST(BlockRead, AShortReadIsResumedWhereItStopped) {
  BlockRead read(8192, 10000);
  EXPECT_EQ(read.account(5000, false), State::kActive);
  EXPECT_EQ(read.next_offset(), 8192u + 5000u);
  EXPECT_EQ(read.remaining(), 5000u);
  EXPECT_EQ(read.account(5000, false), State::kDone);
}

TEST(BlockRead, AShortDirectReadIsResumedAtAWholeBlock) {
  BlockRead read(8192, 16384);
  EXPECT_EQ(read.account(5000, true), State::kActive);
  EXPECT_EQ(read.next_offset(), 8192u + 4096u);
  EXPECT_EQ(read.remaining(), 16384u - 4096u);
  EXPECT_EQ(read.account(16384 - 4096, true), State::kDone);
}

TEST(BlockRead, AnInterruptedReadIsTriedAgainButNotForEver) {
  BlockRead read(0, 4096);
  for (int i = 0; i < 50; ++i)
    EXPECT_EQ(read.account(i % 2 ? -EINTR : -EAGAIN, true), State::kActive);
  EXPECT_EQ(read.account(1000, false), State::kActive);  // progress: the count starts again
  int attempts = 0;
  while (read.account(-EAGAIN, true) == State::kActive) ASSERT_LT(++attempts, 10000);
  EXPECT_GE(attempts, 50);
  EXPECT_THAT(message_of<IoError>([&] { read.throw_if_failed("FILE"); }),
              AllOf(HasSubstr("FILE"), HasSubstr("Resource temporarily unavailable")));
}

TEST(BlockRead, TheEndOfTheFileIsAFailureThatSaysSo) {
  BlockRead read(8192, 8192);
  read.account(4096, true);
  EXPECT_EQ(read.account(0, true), State::kFailed);
  EXPECT_THAT(message_of<IoError>([&] { read.throw_if_failed("FILE"); }),
              AllOf(HasSubstr("ends near byte 12288"), HasSubstr("8192 bytes at offset 8192"),
                    HasSubstr("cut short")));
}

TEST(BlockRead, AFileThatEndsInsideABlockDoesNotLoopForEver) {
  BlockRead read(0, 8192);
  int attempts = 0;
  while (read.account(100, true) == State::kActive) ASSERT_LT(++attempts, 10000);
  EXPECT_THAT(message_of<IoError>([&] { read.throw_if_failed("FILE"); }), HasSubstr("cut short"));
}

TEST(BlockRead, AnErrorNamesPathOffsetLengthAndReason) {
  BlockRead read(12288, 4096);
  EXPECT_EQ(read.account(-EIO, true), State::kFailed);
  EXPECT_THAT(message_of<IoError>([&] { read.throw_if_failed("FILE"); }),
              AllOf(HasSubstr("FILE"), HasSubstr("4096 bytes at offset 12288"),
                    HasSubstr("Input/output error")));
}

TEST_F(BlockReaderTest, BothMethodsReadTheSameBytesWithAndWithoutODirect) {
  for (const bool direct : {false, true}) {
    if (direct && !enable_direct_reads(file_.get(), path_)) break;
    for (const bool io_uring : {false, true}) {
      const Staging staging(4);
      const auto reader = make_block_reader(source(direct), staging.span(), kSlotBytes, io_uring);
      for (std::size_t i = 0; i < 40 + 4; ++i) {
        if (i >= 4) {
          reader->wait(i % 4);
          expect_bytes(staging.slot(i % 4, kSlotBytes), (i - 4) * kSlotBytes);
        }
        if (i < 40) reader->start(i % 4, i * kSlotBytes, kSlotBytes);
      }
    }
  }
}

TEST_F(BlockReaderTest, ReadsMayBeWaitedForInAnyOrder) {
  for (const bool io_uring : {false, true}) {
    const Staging staging(4);
    const auto reader = make_block_reader(source(), staging.span(), kSlotBytes, io_uring);
    for (std::size_t i = 0; i < 4; ++i) reader->start(i, i * 5000, 4096 + i);
    for (const std::size_t i : {3, 0, 2, 1}) {
      reader->wait(i);
      expect_bytes(staging.slot(i, 4096 + i), i * 5000);
    }
  }
}

TEST_F(BlockReaderTest, InjectedShortAndInterruptedPreadsAreMadeWhole) {
  const Staging staging(3);
  std::mutex mutex;
  std::uint64_t calls = 0;
  const auto moody = [&](int fd, void* dst, std::size_t bytes, off_t offset) -> ssize_t {
    const std::lock_guard lock(mutex);
    EXPECT_EQ(offset % 4096, 0) << "O_DIRECT would refuse this offset";
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(dst) % 4096, 0u);
    const std::uint64_t dice = random_bits(7, 0, ++calls);
    if (dice % 4 == 0) {
      errno = dice % 8 == 0 ? EINTR : EAGAIN;
      return -1;
    }
    return ::pread(fd, dst, std::min<std::size_t>(bytes, dice / 8 % 20000 + 1), offset);
  };
  const auto reader = make_pread_reader(source(true), staging.span(), kSlotBytes, 2, moody);
  for (std::size_t i = 0; i < 30; ++i) {
    reader->start(i % 3, i * kSlotBytes, kSlotBytes);
    reader->wait(i % 3);
    expect_bytes(staging.slot(i % 3, kSlotBytes), i * kSlotBytes);
  }
  EXPECT_GT(calls, 60u);
}

TEST_F(BlockReaderTest, PreadKeepsSeveralReadsInFlight) {
  const Staging staging(3);
  std::barrier together(3);  // with fewer reads at once this would never end
  const auto meet = [&](int fd, void* dst, std::size_t bytes, off_t offset) {
    together.arrive_and_wait();
    return ::pread(fd, dst, bytes, offset);
  };
  const auto reader = make_pread_reader(source(), staging.span(), kSlotBytes, 3, meet);
  for (std::size_t i = 0; i < 3; ++i) reader->start(i, i * kSlotBytes, kSlotBytes);
  for (std::size_t i = 0; i < 3; ++i) reader->wait(i);
  expect_bytes(staging.slot(2, kSlotBytes), 2 * kSlotBytes);
}

TEST_F(BlockReaderTest, IoUringResumesShortReads) {
  // A pipe gives what is in it: the kernel itself makes the short reads.
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  const FileDescriptor out(ends[0]);
  FileDescriptor in(ends[1]);
  const Staging staging(1);
  const auto reader = make_io_uring_reader({out.get(), "PIPE", false}, staging.span(), kSlotBytes);
  ASSERT_EQ(::write(in.get(), bytes_.data(), 3000), 3000);
  reader->start(0, 0, 10000);
  std::jthread feeder([&] {
    for (std::size_t done = 3000; done < 10000; done += 1000) {
      ASSERT_EQ(::write(in.get(), bytes_.data() + done, 1000), 1000);
      std::this_thread::yield();
    }
  });
  reader->wait(0);
  expect_bytes(staging.slot(0, 10000), 0);
  feeder.join();

  ASSERT_EQ(::write(in.get(), bytes_.data(), 50), 50);
  in = FileDescriptor();  // the end of the file
  reader->start(0, 0, 100);
  EXPECT_THAT(message_of<IoError>([&] { reader->wait(0); }), HasSubstr("cut short"));
}

TEST_F(BlockReaderTest, AReadBeyondTheEndFailsAndTheOthersDoNot) {
  for (const bool io_uring : {false, true}) {
    const Staging staging(2);
    const auto reader = make_block_reader(source(), staging.span(), kSlotBytes, io_uring);
    reader->start(0, bytes_.size() - 100, 200);
    reader->start(1, 0, kSlotBytes);
    EXPECT_THAT(
        message_of<IoError>([&] { reader->wait(0); }),
        AllOf(HasSubstr(path_), HasSubstr("cut short"), HasSubstr(std::to_string(bytes_.size()))));
    reader->wait(1);
    expect_bytes(staging.slot(1, kSlotBytes), 0);
  }
}

TEST_F(BlockReaderTest, AFailedReadNamesPathOffsetAndReason) {
  const FileDescriptor unreadable(::open(path_.c_str(), O_WRONLY | O_CLOEXEC));
  for (const bool io_uring : {false, true}) {
    const Staging staging(1);
    const auto reader =
        make_block_reader({unreadable.get(), path_, false}, staging.span(), kSlotBytes, io_uring);
    reader->start(0, 8192, 4096);
    EXPECT_THAT(message_of<IoError>([&] { reader->wait(0); }),
                AllOf(HasSubstr(path_), HasSubstr("4096 bytes at offset 8192"),
                      HasSubstr("Bad file descriptor")));
  }
}

TEST_F(BlockReaderTest, AWriterBringsItsSlotsIntoTheFileByBothMethods) {
  for (const bool direct : {false, true}) {
    for (const bool io_uring : {false, true}) {
      const std::string copy = (directory_.path() / "copy").string();
      const FileDescriptor out(::open(copy.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
      ASSERT_TRUE(out.is_open());
      if (direct && !enable_direct_reads(out.get(), copy)) return;
      const Staging staging(4);
      const auto writer = make_block_reader({out.get(), copy, direct, /*write=*/true},
                                            staging.span(), kSlotBytes, io_uring);
      EXPECT_EQ(writer->method(), io_uring ? "io_uring" : "pwrite");
      for (std::size_t i = 0; i < 40 + 4; ++i) {
        if (i >= 4) writer->wait(i % 4);
        if (i >= 40) continue;
        std::memcpy(staging.span().data() + i % 4 * kSlotBytes, bytes_.data() + i * kSlotBytes,
                    kSlotBytes);
        writer->start(i % 4, i * kSlotBytes, kSlotBytes);
      }
      const FileDescriptor in(::open(copy.c_str(), O_RDONLY | O_CLOEXEC));
      std::vector<std::byte> there(bytes_.size() + 1);
      ASSERT_EQ(::pread(in.get(), there.data(), there.size(), 0),
                static_cast<ssize_t>(bytes_.size()));
      expect_bytes({there.data(), bytes_.size()}, 0);
    }
  }
}

TEST_F(BlockReaderTest, AFailedWriteNamesPathOffsetAndReason) {
  for (const bool io_uring : {false, true}) {
    const Staging staging(1);
    const auto writer = make_block_reader({file_.get(), path_, false, /*write=*/true},
                                          staging.span(), kSlotBytes, io_uring);
    writer->start(0, 8192, 4096);
    EXPECT_THAT(message_of<IoError>([&] { writer->wait(0); }),
                AllOf(HasSubstr(path_), HasSubstr("cannot write 4096 bytes at offset 8192"),
                      HasSubstr("Bad file descriptor")));
  }
}

/// Notes what is started and waited for.
class NotingReader final : public BlockReader {
 public:
  void start(std::size_t slot, std::uint64_t offset, std::size_t) override {
    EXPECT_TRUE(busy.insert(slot).second) << "slot " << slot << " is in use";
    most_busy = std::max(most_busy, busy.size());
    offsets.push_back(offset);
  }
  void wait(std::size_t slot) override { EXPECT_EQ(busy.erase(slot), 1u); }
  std::string method() const override { return "none"; }

  std::set<std::size_t> busy;
  std::size_t most_busy = 0;
  std::vector<std::uint64_t> offsets;
};

TEST(MoveBlocks, KeepsTheDepthInFlightAndWaitsForAll) {
  for (const std::size_t count : {0, 1, 2, 3, 4, 10}) {
    NotingReader reader;
    const auto next = [count](std::size_t i) {
      return i < count ? BlockRange{100 * i, 10 + i} : BlockRange{};
    };
    std::size_t bytes = 0;
    for (std::size_t i = 0; i < count; ++i) bytes += 10 + i;
    EXPECT_EQ(move_blocks(reader, 3, next), bytes);
    EXPECT_TRUE(reader.busy.empty());
    EXPECT_EQ(reader.most_busy, std::min<std::size_t>(count, 3));
    ASSERT_EQ(reader.offsets.size(), count);
    for (std::size_t i = 0; i < count; ++i) EXPECT_EQ(reader.offsets[i], 100 * i);
  }
}

TEST_F(BlockReaderTest, AReaderThatIsDestroyedWithReadsInFlightLeavesTheStagingAlone) {
  for (const bool io_uring : {false, true}) {
    const bool direct = enable_direct_reads(file_.get(), path_);
    for (int round = 0; round < 20; ++round) {
      const Staging staging(8);
      auto reader = make_block_reader(source(direct), staging.span(), kSlotBytes, io_uring);
      for (std::size_t i = 0; i < 8; ++i) reader->start(i, i * kSlotBytes, kSlotBytes);
      reader.reset();
      std::memset(staging.span().data(), 0x5a, staging.span().size());
      std::this_thread::yield();
      for (const std::byte b : staging.span()) ASSERT_EQ(b, std::byte{0x5a});
    }
  }
}

/// What must hold for the low half of a system call's argument.
struct Condition {
  unsigned argument;
  unsigned short test;  // BPF_JEQ, BPF_JSET
  unsigned value;
};

/// From here on the system call fails with `error` in this process, where the condition holds.
void refuse(int call, int error, std::optional<Condition> condition = {}) {
  std::vector<sock_filter> filter;
  // Jumps count the lines that are passed over.
  const unsigned char to_allow = condition ? 3 : 1;
  filter.push_back(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)));
  filter.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<unsigned>(call), 0, to_allow));
  if (condition) {
    const auto at = static_cast<unsigned>(offsetof(seccomp_data, args) + 8 * condition->argument);
    const auto test = static_cast<unsigned short>(BPF_JMP | condition->test | BPF_K);
    filter.push_back(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, at));
    filter.push_back(BPF_JUMP(test, condition->value, 0, 1));
  }
  filter.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | static_cast<unsigned>(error)));
  filter.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
  const sock_fprog program{static_cast<unsigned short>(filter.size()), filter.data()};
  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
      ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) {
    std::fprintf(stderr, "seccomp is not there\n");
    std::_Exit(3);
  }
}

/// What children say is compared without regular expressions: the address sanitizer of clang 14
/// takes an outdated regexec of glibc's. In a child process: 0 when the reader for what is left to
/// it reads the right bytes.
class RefusalTest : public BlockReaderTest {
 protected:
  [[noreturn]] void read_all_and_exit(const std::string& expected_method) {
    const bool direct = enable_direct_reads(file_.get(), path_);
    const Staging staging(8);
    const auto reader = make_block_reader(source(direct), staging.span(), kSlotBytes, true);
    bool right = reader->method() == expected_method;
    for (std::size_t i = 0; i < 8; ++i) reader->start(i, i * kSlotBytes, kSlotBytes);
    for (std::size_t i = 0; i < 8; ++i) reader->wait(i);
    right = right && std::memcmp(staging.span().data(), bytes_.data(), 8 * kSlotBytes) == 0;
    std::_Exit(right ? 0 : 1);
  }
};

TEST_F(RefusalTest, ARefusedRingIsReplacedByPreadAndSaysSo) {
  EXPECT_EXIT(
      {
        refuse(SYS_io_uring_setup, EPERM);
        read_all_and_exit("pread");
      },
      testing::ExitedWithCode(0),
      AllOf(HasSubstr("io_uring is refused by the kernel (EPERM"),
            HasSubstr("pread with 4 threads is used")));
  EXPECT_EXIT(
      {
        refuse(SYS_io_uring_setup, ENOSYS);
        read_all_and_exit("pread");
      },
      testing::ExitedWithCode(0),
      AllOf(HasSubstr("ENOSYS: this kernel has no io_uring"), HasSubstr("pread")));
  EXPECT_EXIT(
      {
        refuse(SYS_io_uring_setup, EINVAL);  // whatever the flags
        read_all_and_exit("pread");
      },
      testing::ExitedWithCode(0), AllOf(HasSubstr("Invalid argument"), HasSubstr("pread")));
}

TEST_F(RefusalTest, StagingThatCannotBeRegisteredIsUsedUnregisteredAndSaysSo) {
  EXPECT_EXIT(
      {
        refuse(SYS_io_uring_register, ENOMEM,
               Condition{1, BPF_JEQ, 0});  // operation 0 registers buffers
        read_all_and_exit("io_uring");
      },
      testing::ExitedWithCode(0),
      AllOf(HasSubstr("ENOMEM"), HasSubstr("ulimit -l"),
            HasSubstr("unregistered buffers are used")));
}

TEST_F(RefusalTest, AFileSystemWithoutODirectIsReadBufferedAndSaysSo) {
  EXPECT_EXIT(
      {
        refuse(SYS_fcntl, EINVAL, Condition{2, BPF_JSET, O_DIRECT});
        read_all_and_exit("io_uring");
      },
      testing::ExitedWithCode(0),
      AllOf(HasSubstr("O_DIRECT is refused by "), HasSubstr("data; buffered reads are used")));
}

}  // namespace
}  // namespace zi

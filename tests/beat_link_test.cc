// The connections over which ranks say that they are there, and how long silence counts.

#include "comm/beat_link.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <future>
#include <string>
#include <thread>
#include <vector>

#include "comm/beat_proof.h"
#include "comm/silence.h"
#include "zero_infer/error.h"

namespace zi::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

auto after(milliseconds time) { return std::chrono::steady_clock::now() + time; }

/// A connection to the listener by someone who is no rank.
FileDescriptor stranger(const BeatInvitation& invitation) {
  FileDescriptor socket(::socket(AF_INET, SOCK_STREAM, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(invitation.port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  EXPECT_EQ(::connect(socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  return socket;
}

/// As a rank of the same host has it.
BeatInvitation seen_by_rank(const BeatListener& listener) {
  return BeatInvitation::from_bytes(listener.invitation().to_bytes()).with_loopback();
}

TEST(BeatLink, RanksOfAnyOrderFindTheirPlaces) {
  BeatListener listener;
  const BeatInvitation invitation = seen_by_rank(listener);
  std::vector<std::future<FileDescriptor>> ranks;
  for (const int rank : {3, 1, 2}) {
    ranks.push_back(std::async(std::launch::async, [&invitation, rank] {
      return connect_beats(invitation, rank, after(seconds(20)));
    }));
  }
  const auto links = listener.accept(4, after(seconds(20)));
  ASSERT_EQ(links.size(), 4u);
  EXPECT_FALSE(links[0].is_open());
  std::vector<FileDescriptor> ends;
  for (auto& rank : ranks) ends.push_back(rank.get());
  for (std::size_t r = 1; r < 4; ++r) {
    ASSERT_TRUE(links[r].is_open()) << r;
    const char number = static_cast<char>('0' + r);
    ASSERT_EQ(::send(links[r].get(), &number, 1, 0), 1);
  }
  std::string heard;
  for (const FileDescriptor& end : ends) {
    char c = 0;
    while (::recv(end.get(), &c, 1, 0) != 1) std::this_thread::yield();
    heard += c;
  }
  EXPECT_EQ(heard, "312");
}

TEST(BeatLink, StrangersAndOtherJobsAreDropped) {
  BeatListener listener;
  const BeatListener other;
  const FileDescriptor silent = stranger(listener.invitation());
  const FileDescriptor noisy = stranger(listener.invitation());
  const std::string noise(500, 'x');
  ASSERT_EQ(::send(noisy.get(), noise.data(), noise.size(), MSG_NOSIGNAL), 500);
  const FileDescriptor gone = stranger(listener.invitation());
  ::shutdown(gone.get(), SHUT_RDWR);
  auto accepting =
      std::async(std::launch::async, [&] { return listener.accept(3, after(seconds(60))); });
  const auto connect = [](const BeatInvitation& invitation, int rank) {
    return connect_beats(invitation, rank, after(seconds(60)));
  };
  const BeatInvitation invitation = seen_by_rank(listener);
  BeatInvitation foreign = invitation;
  foreign.secret = other.invitation().secret;
  EXPECT_FALSE(connect(foreign, 2).is_open());     // of another job
  EXPECT_FALSE(connect(invitation, 7).is_open());  // no rank of this one
  EXPECT_FALSE(connect(invitation, 0).is_open());
  const FileDescriptor first = connect(invitation, 1);
  EXPECT_TRUE(first.is_open());
  EXPECT_FALSE(connect(invitation, 1).is_open()) << "there is a rank 1";
  const FileDescriptor second = connect(invitation, 2);
  EXPECT_TRUE(second.is_open());
  const auto links = accepting.get();
  EXPECT_TRUE(links[1].is_open());
  EXPECT_TRUE(links[2].is_open());
  EXPECT_EQ(address_of_peer(second), "127.0.0.1");
}

TEST(BeatLink, ManyStrangersThatSayNothingKeepNoRankOut) {
  BeatListener listener;
  std::vector<FileDescriptor> strangers;
  for (int i = 0; i < 150; ++i) strangers.push_back(stranger(listener.invitation()));
  auto rank = std::async(std::launch::async, [invitation = seen_by_rank(listener)] {
    return connect_beats(invitation, 1, after(seconds(60)));
  });
  EXPECT_TRUE(listener.accept(2, after(seconds(60)))[1].is_open());
  EXPECT_TRUE(rank.get().is_open());
}

// The next two do not come back where the end is looked at only when nothing comes.

TEST(BeatLink, StrangersThatKeepComingDoNotKeepTheJobFromGoingOn) {
  BeatListener listener;
  std::atomic<bool> stop{false};
  std::vector<std::thread> others;
  for (int i = 0; i < 3; ++i) {
    others.emplace_back([&] {
      const linger reset = {.l_onoff = 1, .l_linger = 0};  // keeps no port from the next one
      while (!stop) {
        const FileDescriptor one = stranger(listener.invitation());
        ::setsockopt(one.get(), SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
      }
    });
  }
  EXPECT_FALSE(listener.accept(2, after(milliseconds(300)))[1].is_open());
  stop = true;
  for (std::thread& other : others) other.join();
}

TEST(BeatLink, WhereNoDescriptorIsFreeTheWaitEndsAsWell) {
  BeatListener listener;
  const FileDescriptor waits = stranger(listener.invitation());
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  const FileDescriptor lowest(::dup(STDERR_FILENO));
  rlimit none = before;
  none.rlim_cur = static_cast<rlim_t>(lowest.get());
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &none), 0);
  const auto links = listener.accept(2, after(milliseconds(100)));
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
  EXPECT_FALSE(links[1].is_open());
}

TEST(BeatLink, AnAddressThatIsAnotherMachineHereIsNotTaken) {
  BeatListener here;
  BeatListener other;
  BeatInvitation wrong = seen_by_rank(here);
  wrong.port = other.invitation().port;  // someone listens there, who does not know the secret
  auto accepting =
      std::async(std::launch::async, [&] { return other.accept(2, after(seconds(1))); });
  EXPECT_FALSE(connect_beats(wrong, 1, after(seconds(20))).is_open());
  EXPECT_FALSE(accepting.get()[1].is_open());
}

TEST(BeatLink, WhoOnlySendsBackWhatItHearsIsNotTaken) {
  FileDescriptor listening(::socket(AF_INET, SOCK_STREAM, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  ASSERT_EQ(::bind(listening.get(), reinterpret_cast<sockaddr*>(&address), size), 0);
  ASSERT_EQ(::listen(listening.get(), 1), 0);
  ASSERT_EQ(::getsockname(listening.get(), reinterpret_cast<sockaddr*>(&address), &size), 0);
  const BeatInvitation invitation = {.secret = random_bytes(BeatInvitation::kSecretBytes),
                                     .port = ntohs(address.sin_port),
                                     .addresses = {"127.0.0.1"}};
  auto rank = std::async(std::launch::async,
                         [&] { return connect_beats(invitation, 1, after(seconds(20))); });
  const FileDescriptor taken(::accept(listening.get(), nullptr, nullptr));
  const std::string asked(16, 'n');
  ASSERT_EQ(::send(taken.get(), asked.data(), asked.size(), MSG_NOSIGNAL), 16);
  std::string answer(4 + 16 + kProofBytes, '\0');
  ASSERT_EQ(::recv(taken.get(), answer.data(), answer.size(), MSG_WAITALL), std::ssize(answer));
  EXPECT_EQ(answer.find(invitation.secret), std::string::npos);
  ASSERT_EQ(::send(taken.get(), answer.data() + 20, kProofBytes, MSG_NOSIGNAL),
            static_cast<ssize_t>(kProofBytes));
  EXPECT_FALSE(rank.get().is_open());
}

TEST(BeatLink, AProofIsTheHmacOfTheStandard) {
  // RFC 4231, test case 2.
  const unsigned char wanted[kProofBytes] = {0x5b, 0xdc, 0xc1, 0x46, 0xbf, 0x60, 0x75, 0x4e,
                                             0x6a, 0x04, 0x24, 0x26, 0x08, 0x95, 0x75, 0xc7,
                                             0x5a, 0x00, 0x3f, 0x08, 0x9d, 0x27, 0x39, 0x83,
                                             0x9d, 0xec, 0x58, 0xb9, 0x64, 0xec, 0x38, 0x43};
  const std::string made = proof("Jefe", "what do ya want for nothing?");
  EXPECT_TRUE(same_proof(made, {reinterpret_cast<const char*>(wanted), kProofBytes}));
  EXPECT_FALSE(same_proof(made, proof("Jefe", "what do ya want for something?")));
  EXPECT_FALSE(same_proof(made, made.substr(1)));
}

TEST(BeatLink, WhereNobodyListensTheWaitIsShort) {
  BeatInvitation invitation;
  {
    BeatListener listener;
    invitation = seen_by_rank(listener);
    EXPECT_FALSE(listener.accept(2, after(milliseconds(50)))[1].is_open());
  }
  const auto start = std::chrono::steady_clock::now();
  EXPECT_FALSE(connect_beats(invitation, 1, after(milliseconds(300))).is_open());
  invitation.addresses = {"no address", "999.1.1.1", ""};
  EXPECT_FALSE(connect_beats(invitation, 1, after(seconds(20))).is_open());
  EXPECT_LT(std::chrono::steady_clock::now() - start, seconds(5));
}

TEST(BeatLink, AnInvitationThatIsNoneIsRefused) {
  for (const std::string& bytes : {std::string(), std::string(32, 'x'), std::string(40, 'x')}) {
    EXPECT_THROW(BeatInvitation::from_bytes(bytes), CommError);
  }
}

TEST(SilenceTest, CountsWhileThisProcessListensAlone) {
  Silence silence{seconds(2)};
  for (int i = 0; i < 5; ++i) silence.passed(seconds(1));
  EXPECT_EQ(silence.so_far(), seconds(5));
  silence.passed(std::chrono::hours(8));  // this machine slept
  EXPECT_EQ(silence.so_far(), seconds(7));
  silence.heard();
  EXPECT_EQ(silence.so_far(), seconds(0));
}

}  // namespace
}  // namespace zi::test

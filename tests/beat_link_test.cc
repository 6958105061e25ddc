// The connections over which ranks say that they are there, and how long silence counts.

#include "comm/beat_link.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <future>
#include <thread>

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

TEST(BeatLink, RanksOfAnyOrderFindTheirPlaces) {
  BeatListener listener;
  const BeatInvitation invitation = BeatInvitation::from_bytes(listener.invitation().to_bytes());
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
  // Rank 2 has the token of another job, rank 7 is none of this one.
  BeatInvitation foreign = listener.invitation();
  foreign.rank_token = other.invitation().rank_token;
  std::vector<std::future<FileDescriptor>> ranks;
  const auto connect = [&ranks](const BeatInvitation& invitation, int rank) {
    ranks.push_back(std::async(std::launch::async, [invitation, rank] {
      return connect_beats(invitation, rank, after(seconds(20)));
    }));
  };
  connect(foreign, 2);
  connect(listener.invitation(), 7);
  connect(listener.invitation(), 1);
  const auto links = listener.accept(3, after(seconds(1)));
  EXPECT_TRUE(links[1].is_open());
  EXPECT_FALSE(links[2].is_open());
}

TEST(BeatLink, AnAddressThatIsAnotherMachineHereIsNotTaken) {
  BeatListener here;
  BeatListener other;
  BeatInvitation wrong = here.invitation();
  wrong.port = other.invitation().port;  // someone listens there, and says another token
  auto accepting =
      std::async(std::launch::async, [&] { return other.accept(2, after(milliseconds(300))); });
  EXPECT_FALSE(connect_beats(wrong, 1, after(seconds(20))).is_open());
  EXPECT_FALSE(accepting.get()[1].is_open());
}

TEST(BeatLink, WhereNobodyListensTheWaitIsShort) {
  BeatInvitation invitation;
  {
    BeatListener listener;
    invitation = listener.invitation();
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

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <span>
#include <string>
#include <string_view>

#include "serve/http/read_buffer.h"
#include "serve/http/request_error.h"
#include "serve/http/request_reader.h"
#include "serve/http/request_target.h"

namespace zi {
namespace {

struct RequestText {
  std::string_view text;
  std::string_view method, body;
};
constexpr RequestText kRequests[] = {
    {"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "GET", ""},
    {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n0123456789", "POST", "0123456789"},
    {"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
     "3\r\nabc\r\n7;x=y\r\ndefghij\r\n0\r\nTrailer: 1\r\n\r\n",
     "POST", "abcdefghij"},
    {"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "POST", ""},
};

/// Reads one request from bytes that come in pieces of that size; returns what was used.
std::size_t read_in_pieces(RequestReader& reader, std::string_view bytes, std::size_t piece) {
  std::size_t used = 0;
  std::size_t come = 0;
  while (reader.stage() != RequestReader::Stage::kWhole) {
    const std::size_t count = reader.take(bytes.substr(used, come - used));
    used += count;
    if (count > 0) continue;
    if (come == bytes.size()) break;
    come = std::min(come + piece, bytes.size());
  }
  return used;
}

TEST(RequestReader, ReadsTheSameRequestFromAnyPieces) {
  for (const auto& [text, method, body] : kRequests) {
    const std::string behind = std::string(text) + "GET /next";
    for (std::size_t piece = 1; piece <= behind.size(); ++piece) {
      RequestReader reader(100);
      EXPECT_EQ(read_in_pieces(reader, behind, piece), text.size());
      ASSERT_EQ(reader.stage(), RequestReader::Stage::kWhole);
      EXPECT_TRUE(reader.head().keep_alive);
      const HttpRequest request = reader.finish();
      EXPECT_EQ(request.method, method);
      EXPECT_EQ(request.body, body);
    }
  }
}

TEST(RequestReader, StopsBehindTheHeadThatDecidesAboutTheBody) {
  RequestReader reader(100);
  const std::string_view text = kRequests[1].text;
  EXPECT_EQ(reader.take(text), text.size() - 10);
  EXPECT_EQ(reader.stage(), RequestReader::Stage::kBody);
  EXPECT_EQ(reader.head().content_length, 10u);
  EXPECT_EQ(reader.body_bytes(), 0u);
  EXPECT_EQ(reader.take("01234"), 5u);
  EXPECT_EQ(reader.body_bytes(), 5u);
}

TEST(RequestReader, DoesNotBeginWithEmptyLines) {
  RequestReader reader(100);
  EXPECT_EQ(reader.take("\r\n\r\n\r"), 4u);
  EXPECT_EQ(reader.stage(), RequestReader::Stage::kNothing);
  EXPECT_EQ(reader.take("\r\nG"), 2u);
  EXPECT_EQ(reader.stage(), RequestReader::Stage::kHead);
}

TEST(RequestTarget, IsSplitAndDecoded) {
  EXPECT_EQ(parse_request_target("/a%2Bb+c?d%20?e").path, "/a+b+c");
  EXPECT_EQ(parse_request_target("/a%2Bb+c?d%20?e").query, "d%20?e");
  EXPECT_EQ(parse_request_target("/%e2%82%ac").path, "/\xE2\x82\xAC");
  EXPECT_EQ(parse_request_target("/a?").path, "/a");
  EXPECT_EQ(parse_request_target("*").path, "*");
  EXPECT_EQ(parse_request_target("https://h:1/x/y?z").path, "/x/y");
  EXPECT_EQ(parse_request_target("http://h?z").path, "/");
  EXPECT_EQ(parse_request_target("http://h?z").query, "z");
}

TEST(RequestTarget, ThatIsNoTextIsRefused) {
  for (const std::string_view target :
       {"", "a", "ftp://a/b", "host:80", "**", "/%", "/%a", "/%g0", "/%0", "/%00", "/%7f", "/\xff",
        "/%c3", "/%C0%80", "/?\x80", "/?\x01"}) {
    try {
      parse_request_target(target);
      ADD_FAILURE() << target << " was taken";
    } catch (const RequestError& error) {
      EXPECT_EQ(error.status(), 400) << target;
    }
  }
}

TEST(ReadBuffer, KeepsWhatIsNotUsedInOnePieceUpToItsLimit) {
  ReadBuffer buffer;
  std::string expected;
  char next = 'a';
  for (int turn = 0; turn < 2000; ++turn) {
    if (!buffer.full()) {
      const std::span<char> room = buffer.room();
      ASSERT_GT(room.size(), 0u);
      const std::size_t count = std::min<std::size_t>(room.size(), 701);
      for (char& byte : room.first(count))
        byte = next = next == 'z' ? 'a' : static_cast<char>(next + 1);
      expected.append(room.data(), count);
      buffer.added(count);
    }
    ASSERT_EQ(buffer.bytes(), expected);
    ASSERT_LE(expected.size(), ReadBuffer::kMost);
    const std::size_t used =
        std::min<std::size_t>(expected.size(), static_cast<std::size_t>(turn % 1200));
    buffer.consume(used);
    expected.erase(0, used);
  }
}

}  // namespace
}  // namespace zi

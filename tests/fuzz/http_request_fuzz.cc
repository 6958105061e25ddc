// Any bytes as what a client sends: requests until one is refused with a status, or the bytes end.
// In whatever pieces they come, they are the same requests.

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "base/utf8.h"
#include "serve/http/read_buffer.h"
#include "serve/http/request_error.h"
#include "serve/http/request_reader.h"

namespace {

constexpr std::size_t kMaxBody = 4096;

void check(bool good) {
  if (!good) std::abort();
}

/// What a connection makes of the bytes, of which `piece` come at a time.
std::string read_all(std::string_view bytes, std::size_t piece) {
  std::string read;
  std::size_t used = 0;
  std::size_t come = 0;
  for (;;) {
    zi::RequestReader reader(kMaxBody);
    while (reader.stage() != zi::RequestReader::Stage::kWhole) {
      try {
        const std::size_t count = reader.take(bytes.substr(used, come - used));
        check(count <= come - used);
        check(reader.body_bytes() <= kMaxBody);
        used += count;
        if (count > 0) continue;
      } catch (const zi::RequestError& error) {
        check(error.status() >= 400 && error.status() <= 505 && error.what()[0] != '\0');
        return read;
      }
      if (come == bytes.size() || come - used >= zi::ReadBuffer::kMost) return read;
      come = std::min(come + piece, bytes.size());
    }
    const zi::HttpRequest request = reader.finish();
    check(!request.path.empty() && !zi::first_invalid_utf8(request.path));
    check(request.body.size() <= kMaxBody);
    for (const auto& [name, value] : request.headers) {
      check(value.find_first_of(std::string_view("\r\n\0", 3)) == std::string::npos);
      read += name + ": " + value + "\n";
    }
    read += request.method + " " + request.path + " " + request.query + "\n" + request.body + "\n";
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const std::string at_once = read_all(bytes, bytes.size());
  check(read_all(bytes, 7) == at_once);
  if (size <= 512) check(read_all(bytes, 1) == at_once);
  return 0;
}

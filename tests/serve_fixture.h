#pragma once

// What the tests of the server have in common: a reply that keeps what is sent, and a model of
// which each byte is a token.

#include <functional>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "serve/http/http_reply.h"
#include "serve/served_model.h"
#include "text/tokenizer.h"

namespace zi::test {

using nlohmann::json;

class FakeReply final : public HttpReply {
 public:
  void send(HttpResponse response) override {
    const std::scoped_lock lock(mutex_);
    ++answers;
    head = std::move(response);
    ended = true;
  }
  void begin_stream(HttpResponse response) override {
    const std::scoped_lock lock(mutex_);
    ++answers;
    head = std::move(response);
    streamed = true;
  }
  void write(std::string_view bytes) override {
    const std::scoped_lock lock(mutex_);
    body += bytes;
  }
  void end() override {
    const std::scoped_lock lock(mutex_);
    ended = true;
  }
  void on_left(std::function<void()> left) override { leave = std::move(left); }
  bool left() const override { return false; }

  json sent() const { return json::parse(head.body); }
  /// The objects of a stream of server-sent events, without `[DONE]`, which must be the last one
  /// unless the stream ended with an error.
  std::vector<json> events() const {
    std::vector<json> all;
    std::string_view rest = body;
    while (!rest.empty()) {
      constexpr std::string_view kData = "data: ";
      const auto end = rest.find("\n\n");
      if (!rest.starts_with(kData) || end == std::string_view::npos) {
        throw std::runtime_error("not an event: " + std::string(rest));
      }
      const std::string_view data = rest.substr(kData.size(), end - kData.size());
      rest.remove_prefix(end + 2);
      if (data == "[DONE]") {
        done = true;
        if (!rest.empty()) throw std::runtime_error("events behind [DONE]");
      } else {
        all.push_back(json::parse(data));
      }
    }
    return all;
  }
  std::string header(std::string_view name) const {
    for (const auto& [key, value] : head.headers) {
      if (key == name) return value;
    }
    return {};
  }

  HttpResponse head;
  std::string body;  // of a stream
  int answers = 0;
  bool streamed = false;
  bool ended = false;
  mutable bool done = false;
  std::function<void()> leave;

 private:
  std::mutex mutex_;
};

/// A model of the name `bytes` with room for 64 tokens of ids up to 255, 0 ending a text.
inline std::shared_ptr<const ServedModel> byte_model(RequestDefaults defaults = {},
                                                     const std::string& directory = "/nonexistent",
                                                     std::int64_t room = 64) {
  static const Tokenizer tokenizer = Tokenizer::bytes();
  GenerationOptions options;
  options.vocabulary = 256;
  options.eos_ids = {0};
  return std::make_shared<const ServedModel>("bytes", tokenizer, options, room, directory,
                                             defaults);
}

/// The ids of a text of that model.
inline std::vector<std::int32_t> ids_of_text(std::string_view text) {
  std::vector<std::int32_t> ids;
  for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
  return ids;
}

}  // namespace zi::test

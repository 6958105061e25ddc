#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "cli_harness.h"
#include "http_client.h"

namespace zi::test {

using nlohmann::json;

/// The port that a server's log names; 0: it has not come so far.
inline std::uint16_t port_in(const std::string& log) {
  constexpr std::string_view kSaid = " at port ";
  const auto at = log.find(kSaid);
  if (at == std::string::npos || log.find('\n', at) == std::string::npos) return 0;
  return static_cast<std::uint16_t>(std::stoi(log.substr(at + kSaid.size())));
}

/// A server that is ready, on a port of its own.
class ServerJob {
 public:
  explicit ServerJob(int ranks, std::vector<std::string> more = {})
      : job_(ranks, arguments(std::move(more))) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    while (port_ == 0) {
      const std::string err = job_.err();
      port_ = port_in(err);
      if (port_ != 0) break;
      if (std::chrono::steady_clock::now() > end) {
        throw std::runtime_error("the server does not come: " + err);
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
  }

  Job& job() { return job_; }
  HttpClient client() const { return HttpClient(port_); }

  ReceivedResponse get(const std::string& path) const {
    HttpClient client(port_);
    client.get(path);
    return client.read_response();
  }
  ReceivedResponse post(const std::string& path, const json& body) const {
    HttpClient client(port_);
    client.post(path, body.dump());
    return client.read_response();
  }
  json complete(const json& body) const {
    const ReceivedResponse response = post("/v1/completions", body);
    EXPECT_EQ(response.status, 200) << response.body;
    return json::parse(response.body);
  }
  /// A value of /metrics; the line begins with `name`.
  double metric(const std::string& name) const {
    const std::string text = get("/metrics").body;
    const auto at = text.find("\n" + name);
    if (at == std::string::npos) return -1;
    const auto end = text.find('\n', at + 1);
    return std::stod(text.substr(text.rfind(' ', end)));
  }
  /// Waits until the metric has the value.
  bool comes_to(const std::string& name, double value) const {
    for (int i = 0; i < 500; ++i) {
      if (metric(name) == value) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    return false;
  }

 private:
  static std::vector<std::string> arguments(std::vector<std::string> more) {
    // Room for answers that no machine finishes within a test.
    std::vector<std::string> all = {"serve", "--model",     model(), "--port",
                                    "0",     "--kv-budget", "512MiB"};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }

  Job job_;
  std::uint16_t port_ = 0;
};

/// A request that goes on until something ends it.
inline json endless(bool stream) {
  return {{"prompt", "In the beginning"},
          {"max_tokens", 50000},
          {"ignore_eos", true},
          {"stream", stream}};
}

}  // namespace zi::test

#include "serve/metrics.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <iterator>

namespace zi {
namespace {

/// Links whose bytes are counted while they move; of the network those that come to a rank.
constexpr std::array kMovingLinks = {Link::kRead, Link::kCopy, Link::kGather, Link::kNetwork};

// vLLM's buckets, so that dashboards fit.
constexpr double kFirstTokenBounds[] = {0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1,
                                        0.25,  0.5,   0.75, 1,    2.5,  5,    7.5,  10,
                                        20,    40,    80,   160,  640,  2560};
constexpr double kTokenBounds[] = {0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5,
                                   0.75, 1,     2.5,  5,     7.5, 10,   20,  40,  80};
constexpr double kRequestBounds[] = {0.3, 0.5, 0.8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
                                     30,  40,  50,  60, 120, 240, 480, 960, 1920, 7680};

/// As the API says them; `eos` is a stop as well.
constexpr std::string_view kFinishReasons[] = {"stop", "length"};

std::string escaped(std::string_view label) {
  std::string out;
  for (const char c : label) {
    if (c == '\\' || c == '"') out += '\\';
    out += c == '\n' ? ' ' : c;
  }
  return out;
}

/// Lines of one metric.
class Metric {
 public:
  Metric(std::string& out, std::string_view name, std::string_view type, std::string_view help)
      : out_(&out), name_(name) {
    fmt::format_to(std::back_inserter(out), "# HELP {0} {1}\n# TYPE {0} {2}\n", name, help, type);
  }
  template <typename T>
  void line(std::string_view labels, T value) {
    fmt::format_to(std::back_inserter(*out_), "{}{{{}}} {}\n", name_, labels, value);
  }

 private:
  std::string* out_;
  std::string_view name_;
};

}  // namespace

Metrics::Metrics()
    : counts_{.ranks = {},
              .first_token = Histogram(kFirstTokenBounds),
              .between_tokens = Histogram(kTokenBounds),
              .whole = Histogram(kRequestBounds),
              .in_queue = Histogram(kRequestBounds)} {}

void Metrics::ranks(std::span<const RankStatus> ranks) {
  const std::scoped_lock lock(mutex_);
  counts_.ranks.assign(ranks.begin(), ranks.end());
}

void Metrics::finished(const Result& result, double seconds, bool told) {
  const std::scoped_lock lock(mutex_);
  ++counts_.finished[result.finish_reason == "eos" || result.finish_reason == "stop" ? 0 : 1];
  counts_.whole.add(seconds);
  const double queued = std::max(0.0, seconds - result.seconds);
  counts_.in_queue.add(queued);
  const std::size_t tokens = result.token_ids.size();
  if (tokens > 0) counts_.first_token.add(queued + result.first_token_seconds);
  if (tokens > 1 && !told) {
    const auto gaps = static_cast<std::uint64_t>(tokens - 1);
    counts_.between_tokens.add(
        (result.seconds - result.first_token_seconds) / static_cast<double>(gaps), gaps);
  }
}

void Metrics::token(double seconds) {
  const std::scoped_lock lock(mutex_);
  counts_.between_tokens.add(seconds);
}

void Metrics::failed() {
  const std::scoped_lock lock(mutex_);
  ++counts_.failed;
}

std::vector<RankStatus> Metrics::statuses() const {
  const std::scoped_lock lock(mutex_);
  return counts_.ranks;
}

void Metrics::write_ranks(std::string& out, const Others& others,
                          const std::vector<RankStatus>& ranks) {
  const auto by_link = [&](std::string_view name, std::string_view type, std::string_view help,
                           auto value) {
    Metric metric(out, name, type, help);
    for (std::size_t r = 0; r < ranks.size(); ++r) {
      for (const Link link : kMovingLinks) {
        metric.line(fmt::format("rank=\"{}\",link=\"{}\"", r, key_of(link)), value(r, link));
      }
    }
  };
  by_link("zero_infer_link_bytes_total", "counter", "Bytes that a rank's link moved.",
          [&](std::size_t r, Link link) { return ranks[r].moved[link]; });
  by_link("zero_infer_link_limit_bytes_per_second", "gauge",
          "What the bare link gave when the server started; 0: not measured.",
          [&](std::size_t, Link link) { return others.limits[link]; });
  const auto by_rank = [&](std::string_view name, std::string_view type, std::string_view help,
                           std::int64_t RankStatus::*member) {
    Metric metric(out, name, type, help);
    for (std::size_t r = 0; r < ranks.size(); ++r) {
      metric.line(fmt::format("rank=\"{}\"", r), ranks[r].*member);
    }
  };
  by_rank("zero_infer_lanes", "gauge", "Sequences that a rank can work on at once.",
          &RankStatus::lanes);
  by_rank("zero_infer_lanes_busy", "gauge", "Sequences that a rank works on.", &RankStatus::active);
  by_rank("zero_infer_passes_total", "counter", "Passes that a rank took part in.",
          &RankStatus::passes);
}

std::string Metrics::text(const Others& others) const {
  const Counts now = [this] {
    const std::scoped_lock lock(mutex_);
    return counts_;
  }();
  RankStatus all;
  for (const RankStatus& rank : now.ranks) {
    all.active += rank.active;
    all.kv_pages += rank.kv_pages;
    all.kv_pages_used += rank.kv_pages_used;
    all.prompt_rows += rank.prompt_rows;
    all.new_tokens += rank.new_tokens;
    all.preemptions += rank.preemptions;
  }
  const std::string model = fmt::format("model_name=\"{}\"", escaped(others.model));
  std::string out;
  const auto one = [&](std::string_view name, std::string_view type, std::string_view help,
                       auto value) { Metric(out, name, type, help).line(model, value); };
  one("vllm:num_requests_running", "gauge", "Prompts that have a lane.", all.active);
  one("vllm:num_requests_waiting", "gauge", "Prompts that wait for a lane.", others.waiting);
  one("vllm:kv_cache_usage_perc", "gauge", "Share of the KV cache's pages in use, up to 1.",
      all.kv_pages > 0 ? static_cast<double>(all.kv_pages_used) / static_cast<double>(all.kv_pages)
                       : 0.0);
  one("vllm:num_preemptions_total", "counter", "Sequences that were set back for want of pages.",
      all.preemptions);
  one("vllm:prompt_tokens_total", "counter", "Prompt tokens that were computed.", all.prompt_rows);
  one("vllm:generation_tokens_total", "counter", "New tokens.", all.new_tokens);
  Metric success(out, "vllm:request_success_total", "counter", "Prompts that were answered.");
  for (std::size_t i = 0; i < now.finished.size(); ++i) {
    success.line(fmt::format("{},finished_reason=\"{}\"", model, kFinishReasons[i]),
                 now.finished[i]);
  }
  const auto histogram = [&](std::string_view name, std::string_view help, const Histogram& of) {
    const Metric header(out, name, "histogram", help);
    of.write(out, name, model);
  };
  histogram("vllm:time_to_first_token_seconds", "From the request to the first new token.",
            now.first_token);
  histogram("vllm:inter_token_latency_seconds",
            "From one new token to the next; of answers that are not streams, their mean.",
            now.between_tokens);
  histogram("vllm:e2e_request_latency_seconds", "From the request to the end of its prompt.",
            now.whole);
  histogram("vllm:request_queue_time_seconds", "From the request to its lane.", now.in_queue);
  one("zero_infer_requests_cancelled_total", "counter",
      "Requests whose clients left before the end.", others.cancelled_requests);
  one("zero_infer_prompts_failed_total", "counter", "Prompts that ended without a result.",
      now.failed);
  write_ranks(out, others, now.ranks);
  return out;
}

}  // namespace zi

#include "engine/work_exchange.h"

#include <algorithm>
#include <cstring>

#include "zero_infer/error.h"
#include "zero_infer/ops.h"

namespace zi {
namespace {

/// Precedes each rank's prompts: what only rank 0 knows after dealing.
struct DealHeader {
  std::int64_t most_active;
  std::int64_t dealt;
};

void append_sized(std::string& out, const std::string& item) {
  const std::uint64_t size = item.size();
  out.append(reinterpret_cast<const char*>(&size), sizeof(size));
  out += item;
}

std::vector<Prompt> read_prompts(std::string_view bytes) {
  std::vector<Prompt> prompts;
  while (!bytes.empty()) {
    std::uint64_t size = 0;
    if (bytes.size() < sizeof(size)) throw CommError("a dealt prompt is cut off");
    std::memcpy(&size, bytes.data(), sizeof(size));
    bytes.remove_prefix(sizeof(size));
    if (bytes.size() < size) throw CommError("a dealt prompt is cut off");
    prompts.push_back(Prompt::deserialize(bytes.substr(0, size)));
    bytes.remove_prefix(size);
  }
  return prompts;
}

}  // namespace

void WorkExchange::deliver(std::string_view outbox) {
  const std::vector<std::string> all = world_->gather(outbox, 0);
  if (world_->rank() != 0) return;
  for (const std::string& bytes : all) {
    for (const OutputEvent& event : read_events(bytes)) {
      switch (event.kind) {
        case OutputEvent::Kind::kStarted:
          sink_->started(event.index, event.rank, event.body);
          break;
        case OutputEvent::Kind::kDelta:
          sink_->told(event.index, Delta::deserialize(event.body));
          break;
        case OutputEvent::Kind::kFinished:
          sink_->finished(Result::deserialize(event.body));
          break;
        case OutputEvent::Kind::kFailed:
          sink_->failed(event.index, event.body);
          break;
      }
    }
  }
}

std::vector<std::string> WorkExchange::deal(const std::vector<Wire>& ranks) {
  std::vector<std::int64_t> free, active;
  std::int64_t wanted = 0;
  for (const Wire& w : ranks) {
    free.push_back(w.report.free_lanes());
    active.push_back(w.report.status.active);
    wanted += w.report.free_lanes();
  }
  const std::vector<Prompt> prompts = source_->take(static_cast<std::size_t>(wanted), false);
  std::vector<std::string> items(ranks.size());
  for (const Prompt& prompt : prompts) {
    const std::size_t to = router_.route(prompt, free);
    append_sized(items[to], prompt.serialize());
    --free[to];
    ++active[to];
  }
  const DealHeader header{*std::ranges::max_element(active),
                          static_cast<std::int64_t>(prompts.size())};
  for (std::string& item : items) {
    item.insert(0, reinterpret_cast<const char*>(&header), sizeof(header));
  }
  return items;
}

std::vector<std::uint64_t> WorkExchange::share(const std::vector<std::uint64_t>& cancelled) const {
  std::string bytes(reinterpret_cast<const char*>(cancelled.data()),
                    cancelled.size() * sizeof(std::uint64_t));
  bytes = world_->broadcast(std::move(bytes), 0);
  std::vector<std::uint64_t> all(bytes.size() / sizeof(std::uint64_t));
  std::memcpy(all.data(), bytes.data(), all.size() * sizeof(std::uint64_t));
  return all;
}

WorkExchange::Turn WorkExchange::take_turn(const Report& report, std::string_view outbox) {
  const bool open = world_->rank() == 0 && !source_->exhausted();
  const std::vector<std::uint64_t> cancelled =
      world_->rank() == 0 ? source_->cancelled() : std::vector<std::uint64_t>();
  const Wire mine{report, outbox.size(), open ? 1 : 0, static_cast<std::int32_t>(cancelled.size())};
  const std::vector<Wire> ranks = world_->all_gather(mine);

  Turn turn;
  std::int64_t wanted = 0;
  std::int64_t active = 0;
  bool anything_said = false;
  bool ending = true;
  for (const Wire& w : ranks) {
    wanted += w.report.free_lanes();
    active += w.report.status.active;
    turn.most_active = std::max(turn.most_active, w.report.status.active);
    turn.failed.refused += w.report.failed.refused;
    turn.failed.not_finite += w.report.failed.not_finite;
    ending = ending && (w.report.status.active == 0 || w.report.ending);
    turn.signal = std::max(turn.signal, w.report.signal);
    anything_said = anything_said || w.outbox_bytes > 0;
  }
  if (anything_said) deliver(outbox);
  if (world_->rank() == 0) {
    std::vector<RankStatus> statuses;
    for (const Wire& w : ranks) statuses.push_back(w.report.status);
    sink_->ranks(statuses);
  }
  if (turn.signal != 0) {
    turn.leave = true;
    return turn;
  }
  const bool source_open = ranks.front().open != 0;
  if (source_open && wanted > 0) {
    const std::string dealt =
        world_->scatter(world_->rank() == 0 ? deal(ranks) : std::vector<std::string>(), 0);
    DealHeader header{};
    if (dealt.size() < sizeof(header)) throw CommError("dealt prompts are cut off");
    std::memcpy(&header, dealt.data(), sizeof(header));
    turn.prompts = read_prompts(std::string_view(dealt).substr(sizeof(header)));
    turn.most_active = header.most_active;
    active += header.dealt;
  }
  if (ranks.front().cancelled > 0) turn.cancelled = share(cancelled);
  turn.last = ending && !source_open;
  turn.run = active > 0;
  turn.leave = !turn.run && !source_open;
  if (!turn.run && source_open) {
    // Nothing to do. The others wait for rank 0 in the next exchange.
    if (world_->rank() == 0) {
      source_->wait();
    } else {
      world_->expect_long_wait();
    }
  }
  return turn;
}

WorkExchange::Rows WorkExchange::share_rows(std::vector<std::int32_t> ids, std::int64_t samples,
                                            std::int64_t expected) {
  if (partition_->size() == 1) {
    const auto rows = static_cast<std::int64_t>(ids.size());
    return {std::move(ids), samples, rows};
  }
  // The counts go in front of the ids: ranks that decode need no exchange for them alone.
  std::vector<std::int32_t> sent = {static_cast<std::int32_t>(ids.size()),
                                    static_cast<std::int32_t>(samples)};
  const std::size_t counts = sent.size();
  for (auto most = static_cast<std::size_t>(expected);;) {
    ids.resize(std::max(ids.size(), most), kNoId);
    sent.resize(counts);
    sent.insert(sent.end(), ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(most));
    const std::vector<std::int32_t> all = partition_->all_gather(sent);
    Rows rows;
    for (auto part = all.begin(); part != all.end(); part += std::ssize(sent)) {
      rows.most = std::max<std::int64_t>(rows.most, part[0]);
      rows.most_samples = std::max<std::int64_t>(rows.most_samples, part[1]);
      rows.ids.insert(rows.ids.end(), part + std::ssize(sent) - static_cast<std::ptrdiff_t>(most),
                      part + std::ssize(sent));
    }
    if (static_cast<std::size_t>(rows.most) <= most) return rows;
    most = static_cast<std::size_t>(rows.most);
  }
}

}  // namespace zi

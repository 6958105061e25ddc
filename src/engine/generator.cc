#include "engine/generator.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>

#include "zero_infer/error.h"
#include "zero_infer/log.h"

namespace zi {
std::string advice_for_not_finite(DType compute_dtype) {
  if (compute_dtype == DType::kFloat32) {
    return "products are already float32, so the weights are probably NaN, infinite or damaged";
  }
  return fmt::format(
      "{} overflows in the model, or weights are damaged; try --compute-dtype float32",
      name_of(compute_dtype));
}

Generator::Generator(PassRunner& runner, WorkExchange& exchange, const Tokenizer& tokenizer,
                     const MemoryPlan& plan, std::int64_t lanes, int rank,
                     GenerationOptions options, std::function<int()> stop_signal)
    : runner_(&runner),
      exchange_(&exchange),
      scheduler_(lanes, plan.pass_tokens, plan.kv_pages, options.share_prefixes),
      rank_(rank),
      options_(std::move(options)),
      admission_(tokenizer, options_, scheduler_.max_sequence_tokens(), plan.kv_page_bytes()),
      stop_signal_(std::move(stop_signal)) {}

int Generator::run() {
  const auto start = std::chrono::steady_clock::now();
  int signal = 0;
  auto turn_start = start;
  for (;;) {
    WorkExchange::Turn turn = exchange_->take_turn(
        {.status = status(), .ending = ending(), .failed = stats_.failed, .signal = stop_signal_()},
        outbox_);
    outbox_.clear();
    for (const std::uint64_t index : turn.cancelled) cancel(index);
    for (Prompt& prompt : turn.prompts) admit(std::move(prompt));
    if (turn.leave) {
      signal = turn.signal;
      all_failed_ = turn.failed;
      break;
    }
    if (turn.run) run_pass(turn);
    const auto now = std::chrono::steady_clock::now();
    if (!turn.run) {
      stats_.idle_seconds += std::chrono::duration<double>(now - turn_start).count();
    }
    turn_start = now;
  }
  stats_.preemptions = scheduler_.preemptions();
  stats_.cached_tokens = scheduler_.cached_tokens();
  stats_.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() -
                   stats_.idle_seconds;
  return signal;
}

RankStatus Generator::status() const {
  return {.lanes = scheduler_.lanes(),
          .active = scheduler_.active(),
          .kv_pages = scheduler_.pages().count(),
          .kv_pages_used = scheduler_.pages().held(),
          .passes = stats_.passes,
          .prompt_rows = stats_.prompt_rows,
          .new_tokens = stats_.new_tokens,
          .preemptions = scheduler_.preemptions(),
          .moved = runner_->moved()};
}

void Generator::admit(Prompt prompt) {
  const std::string where = prompt.where;
  const std::uint64_t index = prompt.index;
  try {
    Sequence* const s = scheduler_.admit(admission_.admit(std::move(prompt)));
    if ((options_.stream_text || s->prompt.stream) && !s->only_prompt()) {
      append_event(outbox_, {OutputEvent::Kind::kStarted, s->prompt.index, rank_, s->prompt_text});
    }
  } catch (const PromptError& error) {
    log_error(fmt::format("{}: {}", where, error.what()));
    ++stats_.failed.refused;
    append_event(outbox_, {OutputEvent::Kind::kFailed, index, rank_, error.what()});
  }
}

void Generator::cancel(std::uint64_t index) {
  Sequence* const s = scheduler_.find([&](const Sequence& a) { return a.prompt.index == index; });
  if (s == nullptr) return;  // it lives on another rank, or has just ended
  scheduler_.retire(s);
  ++stats_.cancelled;
}

SampleRow Generator::sample_row(const Sequence& s, std::int64_t target_row) const {
  const GenerationSettings& settings = s.settings;
  SampleRow row{.temperature = settings.temperature,
                .top_k = settings.top_k,
                .top_p = settings.top_p,
                .min_p = settings.min_p,
                .repetition_penalty = settings.repetition_penalty,
                .presence_penalty = settings.presence_penalty,
                .frequency_penalty = settings.frequency_penalty,
                .seed = settings.seed,
                .sequence = settings.draw_number.value_or(s.prompt.index),
                .position = s.tokens.size(),
                .history = s.tokens,
                .new_tokens = static_cast<std::size_t>(s.new_tokens()),
                .bias = s.bias(),
                .top = settings.logprobs.value_or(0)};
  // Every row of a prompt that has a next token there reports that token's log-probability.
  if (target_row + 1 < s.prompt_tokens) {
    row.target = s.tokens[static_cast<std::size_t>(target_row) + 1];
    row.top = settings.prompt_logprobs.value_or(0);
  }
  return row;
}

bool Generator::ending() const {
  return scheduler_.all_of([](const Sequence& s) {
    return !s.only_prompt() && static_cast<std::int64_t>(s.tokens.size()) - s.computed == 1 &&
           s.new_tokens() + 1 >= s.max_new_tokens;
  });
}

void Generator::add_rows(const Chunk& c) {
  Sequence& s = *c.sequence;
  const auto row = static_cast<std::int32_t>(ids_.size());
  const auto add = [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      logits_rows_.push_back(row + static_cast<std::int32_t>(r));
      samples_.push_back(sample_row(s, c.first + r));
      owners_.push_back(&s);
    }
  };
  const bool draws = c.last() && !s.only_prompt();
  if (s.settings.prompt_logprobs) {
    // Of every row that has a next token in the prompt. After a preemption the first rows are
    // computed again, but their log-probabilities are already there.
    const auto known = static_cast<std::int64_t>(s.prompt_logprobs.size());
    add(std::max<std::int64_t>(0, known - c.first),
        std::min(c.count, s.prompt_tokens - 1 - c.first));
  }
  if (draws) add(c.count - 1, c.count);
  const auto first = s.tokens.begin() + c.first;
  ids_.insert(ids_.end(), first, first + c.count);
}

void Generator::run_pass(const WorkExchange::Turn& turn) {
  const std::vector<Chunk> chunks = scheduler_.compose();
  ids_.clear();
  logits_rows_.clear();
  samples_.clear();
  owners_.clear();
  for (const Chunk& c : chunks) add_rows(c);
  // Unless prompts are being computed, every busy lane has one row.
  const WorkExchange::Rows rows = exchange_->share_rows(
      std::move(ids_), static_cast<std::int64_t>(samples_.size()), turn.most_active);
  ++stats_.passes;
  if (rows.most == 0) return;  // the pass is another partition's
  runner_->run({chunks, rows.ids, logits_rows_, samples_, rows.most_samples, turn.last});

  for (const Chunk& c : chunks) {
    scheduler_.advance(c);
    stats_.prompt_rows +=
        std::max<std::int64_t>(0, std::min(c.first + c.count, c.sequence->prompt_tokens) - c.first);
  }
  for (std::size_t i = 0; i < owners_.size(); ++i) {
    Sequence& s = *owners_[i];
    if (runner_->results().ids[i] == kNoId) {
      (std::isnan(runner_->results().logprobs[i]) ? s.not_finite : s.nothing_to_draw) = true;
    }
    if (s.not_finite || s.nothing_to_draw) continue;
    if (samples_[i].target >= 0) {
      take_score(s, i);
    } else {
      take_token(s, i);
    }
  }
  for (const Chunk& c : chunks) {
    const bool computed = c.sequence->only_prompt() && c.last();
    if (c.sequence->not_finite || c.sequence->nothing_to_draw) {
      fail(*c.sequence);
    } else if (computed || !c.sequence->finish_reason.empty()) {
      finish(*c.sequence);
    }
  }
}

TokenLogprob Generator::logprob_of(std::int32_t id, std::size_t row, int top) const {
  const SampleResults& results = runner_->results();
  TokenLogprob entry{.id = id, .logprob = results.logprobs[row], .top = {}};
  const std::size_t first = row * static_cast<std::size_t>(results.top);
  for (std::size_t k = first; k < first + static_cast<std::size_t>(top); ++k) {
    entry.top.emplace_back(results.top_ids[k], results.top_logprobs[k]);
  }
  return entry;
}

void Generator::take_score(Sequence& s, std::size_t row) {
  s.prompt_logprobs.push_back(logprob_of(samples_[row].target, row, *s.settings.prompt_logprobs));
}

void Generator::take_token(Sequence& s, std::size_t row) {
  const std::int32_t id = runner_->results().ids[row];
  ++stats_.new_tokens;
  if (s.settings.logprobs) s.logprobs.push_back(logprob_of(id, row, *s.settings.logprobs));
  const bool ends =
      !s.settings.ignore_eos && std::ranges::find(options_.eos_ids, id) != options_.eos_ids.end();
  s.take_token(id, ends);
  if (options_.stream_text || s.prompt.stream) tell(s);
}

void Generator::tell(Sequence& s) {
  const Delta delta = s.take_delta();
  if (!s.prompt.stream && delta.text.empty()) return;
  append_event(outbox_, {OutputEvent::Kind::kDelta, s.prompt.index, rank_, delta.serialize()});
}

void Generator::finish(Sequence& s) {
  const std::unique_ptr<Sequence> done = scheduler_.retire(&s);
  std::string settings;
  if (!options_.model.empty()) settings = settings_record(options_.recorded(), done->prompt);
  Result r = done->take_result();
  r.settings = std::move(settings);
  r.rank = rank_;
  if (options_.score) r.become_score();
  ++stats_.sequences;
  append_event(outbox_, {OutputEvent::Kind::kFinished, r.index, rank_, r.serialize()});
}

void Generator::fail(Sequence& s) {
  const std::unique_ptr<Sequence> failed = scheduler_.retire(&s);
  const std::string new_tokens =
      failed->new_tokens() > 0 ? fmt::format(" and {} new ones", failed->new_tokens()) : "";
  const std::string where = failed->only_prompt() ? "of its tokens"
                                                  : fmt::format("after its {} prompt tokens{}",
                                                                failed->prompt_tokens, new_tokens);
  const std::string why =
      failed->not_finite
          ? fmt::format("the model's logits {} hold NaN or infinity; it has no result", where)
          : std::string("its biases and penalties leave no token to draw; it has no result");
  log_error(fmt::format("{}: {}", failed->prompt.where, why));
  ++(failed->not_finite ? stats_.failed.not_finite : stats_.failed.refused);
  append_event(outbox_, {OutputEvent::Kind::kFailed, failed->prompt.index, rank_, why});
}

}  // namespace zi

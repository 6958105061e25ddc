#include "engine/generator.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>

#include "base/printable_text.h"
#include "zero_infer/bytes.h"
#include "zero_infer/error.h"
#include "zero_infer/log.h"

namespace zi {
namespace {

/// Bytes at the end of `text` that could be the beginning of a stop text: they must not be shown
/// yet.
std::size_t held_back(std::string_view text, const std::vector<std::string>& stops) {
  std::size_t held = 0;
  for (const std::string& stop : stops) {
    for (std::size_t n = std::min(stop.size() - 1, text.size()); n > held; --n) {
      if (text.ends_with(std::string_view(stop).substr(0, n))) held = n;
    }
  }
  return held;
}

}  // namespace

GenerationOptions GenerationOptions::from(const RunConfig& c) {
  GenerationOptions o;
  o.max_new_tokens = c.max_new_tokens;
  o.sampling.temperature = static_cast<float>(c.temperature);
  o.sampling.top_k = static_cast<int>(c.top_k);
  o.sampling.top_p = static_cast<float>(c.top_p);
  o.sampling.repetition_penalty = static_cast<float>(c.repetition_penalty);
  o.sampling.seed = c.seed;
  o.stop = c.stop;
  o.logprobs = c.logprobs;
  o.score = c.score;
  o.share_prefixes = !c.no_prefix_sharing;
  o.special_tokens = !c.no_special_tokens;
  return o;
}

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
      tokenizer_(&tokenizer),
      scheduler_(lanes, plan.pass_tokens, plan.kv_pages, options.share_prefixes),
      rank_(rank),
      options_(std::move(options)),
      stop_signal_(std::move(stop_signal)) {}

int Generator::run() {
  const auto start = std::chrono::steady_clock::now();
  int signal = 0;
  auto turn_start = start;
  for (;;) {
    WorkExchange::Turn turn = exchange_->take_turn({.free_lanes = scheduler_.free_lanes(),
                                                    .active = scheduler_.active(),
                                                    .ending = ending(),
                                                    .failed = stats_.failed,
                                                    .signal = stop_signal_()},
                                                   outbox_);
    outbox_.clear();
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

void Generator::admit(Prompt prompt) {
  const std::string where = prompt.where;
  const std::uint64_t index = prompt.index;
  try {
    Sequence* const s = scheduler_.admit(make_sequence(std::move(prompt)));
    if (options_.stream_text && !options_.score) {
      append_event(outbox_, {OutputEvent::Kind::kStarted, s->prompt.index, rank_, s->prompt_text});
    }
  } catch (const PromptError& error) {
    log_error(fmt::format("{}: {}", where, error.what()));
    ++stats_.failed.refused;
    append_event(outbox_, {OutputEvent::Kind::kFailed, index, rank_, ""});
  }
}

Generator::Room Generator::room() const {
  const std::int64_t cached = scheduler_.max_sequence_tokens();
  if (options_.max_positions > 0 && options_.max_positions <= cached) {
    return {options_.max_positions, "the model's positions", ""};
  }
  return {cached, "the KV cache", "raise --kv-budget, or "};
}

std::vector<std::int32_t> Generator::tokens_of(const Prompt& prompt, const Room& room,
                                               std::int64_t new_tokens) const {
  if (!prompt.text) return *prompt.ids;
  // Before it is cut into tokens, which may take long: n tokens cannot hold more bytes than this.
  // (Where there is no such limit, the tokens are counted afterwards.)
  const std::int64_t most = room.tokens - new_tokens;
  const std::size_t longest = tokenizer_->longest_token_bytes().value_or(0);
  const std::size_t most_bytes = static_cast<std::size_t>(most) * longest;
  if (longest > 0 && prompt.text->size() > most_bytes) {
    throw PromptError(fmt::format(
        "the prompt has {} bytes, and the {} tokens that {} can hold next to the new ones cover {} "
        "at most, {} each; {}shorten the prompt or --max-new-tokens",
        prompt.text->size(), most, room.of, most_bytes, longest, room.what));
  }
  return tokenizer_->encode(*prompt.text, options_.special_tokens && !prompt.no_special_tokens);
}

std::unique_ptr<Sequence> Generator::make_sequence(Prompt prompt) const {
  auto s = std::make_unique<Sequence>(std::move(prompt), *tokenizer_);
  s->may_share = !options_.score;  // a score needs the logits of every row
  s->max_new_tokens =
      options_.score ? 0 : s->prompt.max_new_tokens.value_or(options_.max_new_tokens);
  const Room most = room();
  if (s->max_new_tokens >= most.tokens) {
    throw PromptError(
        fmt::format("{} new tokens leave no room for a prompt in {} ({} tokens); {}lower "
                    "--max-new-tokens",
                    s->max_new_tokens, most.of, most.tokens, most.what));
  }
  s->tokens = tokens_of(s->prompt, most, s->max_new_tokens);
  // The tokenizer's as well: it may know more tokens than the model has rows.
  for (std::int32_t id : s->tokens) {
    if (id >= 0 && id < options_.vocabulary) continue;
    const std::string_view text = tokenizer_->token_text(id);
    throw PromptError(
        fmt::format("token id {}{} is out of range: the model has ids 0 to {}", id,
                    text.empty() ? std::string() : fmt::format(" ({})", in_quotes(text)),
                    options_.vocabulary - 1));
  }
  s->prompt_text = s->prompt.text ? *s->prompt.text : tokenizer_->decode(s->tokens);
  if (s->tokens.empty()) throw PromptError("the prompt is empty; give at least one token");
  s->prompt_tokens = static_cast<std::int64_t>(s->tokens.size());
  if (s->prompt_tokens > most.tokens - s->max_new_tokens) {
    throw PromptError(fmt::format(
        "{} prompt tokens and {} new ones do not fit {} ({} tokens); {}shorten the prompt or "
        "--max-new-tokens",
        s->prompt_tokens, s->max_new_tokens, most.of, most.tokens, most.what));
  }
  return s;
}

SampleRow Generator::sample_row(const Sequence& s, std::int64_t target_row) const {
  SampleRow row = options_.sampling;
  row.sequence = s.prompt.index;
  row.position = s.tokens.size();
  row.history = s.tokens;
  if (options_.score) row.target = s.tokens[static_cast<std::size_t>(target_row) + 1];
  return row;
}

bool Generator::ending() const {
  return !options_.score && scheduler_.all_of([](const Sequence& s) {
    return static_cast<std::int64_t>(s.tokens.size()) - s.computed == 1 &&
           s.new_tokens() + 1 >= s.max_new_tokens;
  });
}

void Generator::run_pass(const WorkExchange::Turn& turn) {
  const std::vector<Chunk> chunks = scheduler_.compose();
  std::vector<std::int32_t> ids;
  logits_rows_.clear();
  samples_.clear();
  std::vector<Sequence*> owners;
  std::int32_t row = 0;
  for (const Chunk& c : chunks) {
    // A score wants the logits of every row that has a next token; a draw those of the last row.
    const auto tokens = static_cast<std::int64_t>(c.sequence->tokens.size());
    // After a preemption the first rows are computed again, but their scores are already there.
    const auto scored = static_cast<std::int64_t>(c.sequence->token_logprobs.size());
    const std::int64_t begin =
        options_.score ? std::max<std::int64_t>(0, scored - c.first) : c.count - 1;
    const std::int64_t end = options_.score ? std::min(c.count, tokens - 1 - c.first)
                             : c.last()     ? c.count
                                            : begin;
    for (std::int64_t r = begin; r < end; ++r) {
      logits_rows_.push_back(row + static_cast<std::int32_t>(r));
      samples_.push_back(sample_row(*c.sequence, c.first + r));
      owners.push_back(c.sequence);
    }
    row += static_cast<std::int32_t>(c.count);
    const auto first = c.sequence->tokens.begin() + c.first;
    ids.insert(ids.end(), first, first + c.count);
  }
  // Unless prompts are being computed, every busy lane has one row.
  const WorkExchange::Rows rows = exchange_->share_rows(
      std::move(ids), static_cast<std::int64_t>(samples_.size()), turn.most_active);
  runner_->run({chunks, rows.ids, logits_rows_, samples_, rows.most_samples, turn.last});
  ++stats_.passes;

  for (const Chunk& c : chunks) {
    scheduler_.advance(c);
    stats_.prompt_rows +=
        std::max<std::int64_t>(0, std::min(c.first + c.count, c.sequence->prompt_tokens) - c.first);
  }
  for (std::size_t i = 0; i < owners.size(); ++i) {
    Sequence& s = *owners[i];
    s.not_finite = s.not_finite || runner_->results().ids[i] == kNoId;
    if (s.not_finite) continue;
    if (options_.score) {
      take_score(s, i);
    } else {
      take_token(s, i);
    }
  }
  for (const Chunk& c : chunks) {
    const bool scored = options_.score && c.last();
    if (c.sequence->not_finite) {
      fail(*c.sequence);
    } else if (scored || !c.sequence->finish_reason.empty()) {
      finish(*c.sequence);
    }
  }
}

void Generator::take_score(Sequence& s, std::size_t row) {
  s.token_logprobs.push_back(runner_->results().logprobs[row]);
}

void Generator::take_token(Sequence& s, std::size_t row) {
  const SampleResults& results = runner_->results();
  const std::int32_t id = results.ids[row];
  s.tokens.push_back(id);
  ++stats_.new_tokens;
  if (options_.logprobs > 0) {
    TokenLogprob entry{.id = id, .logprob = results.logprobs[row], .top = {}};
    const auto top = static_cast<std::size_t>(results.top);
    for (std::size_t k = row * top; k < (row + 1) * top; ++k) {
      entry.top.emplace_back(results.top_ids[k], results.top_logprobs[k]);
    }
    s.logprobs.push_back(std::move(entry));
  }
  const bool eos = std::ranges::find(options_.eos_ids, id) != options_.eos_ids.end();
  if (eos) {
    s.finish_reason = "eos";
  } else if (s.new_tokens() >= s.max_new_tokens) {
    s.finish_reason = "length";
  }
  std::string more = s.stream.push(id);
  if (!s.finish_reason.empty()) more += s.stream.finish();
  append_text(s, more);
}

void Generator::append_text(Sequence& s, const std::string& more) {
  const std::size_t shown = s.text.size() - held_back(s.text, options_.stop);
  s.text += more;
  std::size_t cut = std::string::npos;
  for (const std::string& stop : options_.stop) cut = std::min(cut, s.text.find(stop));
  if (cut != std::string::npos) {
    s.text.resize(cut);
    s.finish_reason = "stop";
  }
  if (!options_.stream_text) return;
  const bool ended = !s.finish_reason.empty();
  const std::size_t show = s.text.size() - (ended ? 0 : held_back(s.text, options_.stop));
  if (show > shown) {
    append_event(outbox_, {OutputEvent::Kind::kText, s.prompt.index, rank_,
                           s.text.substr(shown, show - shown)});
  }
}

void Generator::finish(Sequence& s) {
  const std::unique_ptr<Sequence> done = scheduler_.retire(&s);
  Result r;
  r.index = done->prompt.index;
  r.id = done->prompt.id;
  r.rank = rank_;
  r.prompt = done->prompt_text;
  r.prompt_ids = std::move(done->prompt.ids);
  r.chat_hash = std::move(done->prompt.chat_hash);
  r.prompt_tokens = done->prompt_tokens;
  r.cached_tokens = done->cached_tokens;
  r.text = std::move(done->text);
  r.token_ids.assign(done->tokens.begin() + done->prompt_tokens, done->tokens.end());
  r.finish_reason = done->finish_reason;
  if (options_.logprobs > 0 && !options_.score) r.logprobs = std::move(done->logprobs);
  if (options_.score) {
    double sum = 0;
    for (float logprob : done->token_logprobs) sum -= logprob;
    r.perplexity = done->token_logprobs.empty()
                       ? std::numeric_limits<double>::quiet_NaN()
                       : std::exp(sum / static_cast<double>(done->token_logprobs.size()));
    r.token_logprobs = std::move(done->token_logprobs);
  }
  ++stats_.sequences;
  append_event(outbox_, {OutputEvent::Kind::kFinished, r.index, rank_, r.serialize()});
}

void Generator::fail(Sequence& s) {
  const std::unique_ptr<Sequence> failed = scheduler_.retire(&s);
  const std::string new_tokens =
      failed->new_tokens() > 0 ? fmt::format(" and {} new ones", failed->new_tokens()) : "";
  const std::string where = options_.score ? "of its tokens"
                                           : fmt::format("after its {} prompt tokens{}",
                                                         failed->prompt_tokens, new_tokens);
  log_error(fmt::format("{}: the model's logits {} hold NaN or infinity; it has no result",
                        failed->prompt.where, where));
  ++stats_.failed.not_finite;
  append_event(outbox_, {OutputEvent::Kind::kFailed, failed->prompt.index, rank_, ""});
}

}  // namespace zi

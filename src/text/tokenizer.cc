#include "text/tokenizer.h"

#include <fmt/format.h>

#include <numeric>
#include <utility>

#include "base/utf8.h"
#include "text/split_budget.h"
#include "text/token_files.h"
#include "text/tokenizer_data.h"
#include "zero_infer/error.h"

namespace zi {

struct Tokenizer::State : TokenizerData {};

Tokenizer::Tokenizer(std::unique_ptr<State> state) : state_(std::move(state)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Tokenizer Tokenizer::load(const std::filesystem::path& file) {
  return parse(read_tokenizer_files(file));
}

std::optional<Tokenizer> Tokenizer::in_directory(const std::filesystem::path& directory) {
  // Also a link to nowhere: another file in its place could give other ids.
  const auto there = [&](const char* name) {
    std::error_code code;
    return std::filesystem::symlink_status(directory / name, code).type() !=
           std::filesystem::file_type::not_found;
  };
  if (there("tokenizer.json")) return load(directory / "tokenizer.json");
  if (there("vocab.json") && there("merges.txt")) return load(directory / "vocab.json");
  return std::nullopt;
}

Tokenizer Tokenizer::parse(const TokenizerFiles& files) {
  return Tokenizer(std::make_unique<State>(State{parse_tokenizer(files)}));
}

Tokenizer Tokenizer::bytes() {
  auto state = std::make_unique<State>();
  std::iota(state->bpe.byte_ids.begin(), state->bpe.byte_ids.end(), 0);
  for (int byte = 0; byte < 256; ++byte) {
    state->token_bytes.emplace_back(1, static_cast<char>(byte));
  }
  state->in_text.assign(256, true);
  return Tokenizer(std::move(state));
}

std::vector<std::int32_t> Tokenizer::encode(std::string_view text, bool add_special_tokens) const {
  if (const auto offset = first_invalid_utf8(text)) {
    throw PromptError(fmt::format("the text is not valid UTF-8 at byte {} (0x{:02x})", *offset,
                                  static_cast<unsigned char>(text[*offset])));
  }
  const PostProcessor& around = state_->post_processor;
  std::vector<std::int32_t> ids;
  if (add_special_tokens) ids = around.before;
  SplitBudget budget = SplitBudget::for_text(text.size());
  Bpe::Scratch scratch;
  const auto token = [&](std::int32_t id) { ids.push_back(id); };
  const auto piece = [&](std::string_view part) { state_->bpe.encode(part, scratch, ids); };
  state_->verbatim.split(
      text, budget,
      [&](std::string_view raw) {
        std::string changed;
        const bool at_front = raw.data() == text.data();
        if (!state_->normalizer.empty()) {
          changed = normalize(state_->normalizer, raw, budget);
          raw = changed;
        }
        const auto plain = [&](std::string_view part) {
          const bool first = at_front && part.data() == raw.data();
          pre_tokenize(state_->pre_tokenizer, part, first, budget, piece);
        };
        state_->normalized.split(raw, budget, plain, token);
      },
      token);
  if (add_special_tokens) ids.insert(ids.end(), around.after.begin(), around.after.end());
  return ids;
}

std::string Tokenizer::decode(std::span<const std::int32_t> ids, bool special_tokens) const {
  TextStream stream(*this, special_tokens);
  std::string text;
  for (const std::int32_t id : ids) text += stream.push(id);
  return text + stream.finish();
}

bool Tokenizer::in_text(std::int32_t id) const {
  return id >= 0 && id < size() && state_->in_text[static_cast<std::size_t>(id)];
}

std::string_view Tokenizer::token_bytes(std::int32_t id) const {
  if (id < 0 || id >= size()) return {};
  return state_->token_bytes[static_cast<std::size_t>(id)];
}

std::string_view Tokenizer::token_text(std::int32_t id) const {
  const auto added = state_->added_text.find(id);
  return added == state_->added_text.end() ? token_bytes(id) : std::string_view(added->second);
}

std::string Tokenizer::text_in_middle(std::int32_t id) const {
  return in_text(id) ? zi::text_in_middle(decoder(), token_bytes(id)) : std::string(token_text(id));
}

std::int32_t Tokenizer::size() const {
  return static_cast<std::int32_t>(state_->token_bytes.size());
}

std::optional<std::size_t> Tokenizer::longest_token_bytes() const {
  return state_->longest_token_bytes;
}

const Decoder& Tokenizer::decoder() const { return state_->decoder; }

std::uint64_t Tokenizer::fingerprint() const { return state_->fingerprint; }

}  // namespace zi

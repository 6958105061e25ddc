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

Tokenizer Tokenizer::load(const std::filesystem::path& tokenizer_json) {
  return parse(read_tokenizer_files(tokenizer_json));
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
  return Tokenizer(std::move(state));
}

std::vector<std::int32_t> Tokenizer::encode(std::string_view text) const {
  if (const auto offset = first_invalid_utf8(text)) {
    throw PromptError(fmt::format("the text is not valid UTF-8 at byte {} (0x{:02x})", *offset,
                                  static_cast<unsigned char>(text[*offset])));
  }
  std::vector<std::int32_t> ids;
  SplitBudget budget = SplitBudget::for_text(text.size());
  Bpe::Scratch scratch;
  const auto token = [&](std::int32_t id) { ids.push_back(id); };
  const auto piece = [&](std::string_view part) { state_->bpe.encode(part, scratch, ids); };
  const auto plain = [&](std::string_view part) {
    pre_tokenize(state_->pre_tokenizer, part, budget, piece);
  };
  const auto rest = [&](std::string_view part) {
    state_->normalized.split(part, budget, plain, token);
  };
  state_->verbatim.split(text, budget, rest, token);
  return ids;
}

std::string Tokenizer::decode(std::span<const std::int32_t> ids) const {
  std::string text;
  for (const std::int32_t id : ids) text += token_bytes(id);
  return text;
}

std::string_view Tokenizer::token_bytes(std::int32_t id) const {
  if (id < 0 || id >= size()) return {};
  return state_->token_bytes[static_cast<std::size_t>(id)];
}

std::string_view Tokenizer::token_text(std::int32_t id) const {
  const auto added = state_->added_text.find(id);
  return added == state_->added_text.end() ? token_bytes(id) : std::string_view(added->second);
}

std::int32_t Tokenizer::size() const {
  return static_cast<std::int32_t>(state_->token_bytes.size());
}

std::size_t Tokenizer::longest_token_bytes() const { return state_->longest_token_bytes; }

std::uint64_t Tokenizer::fingerprint() const { return state_->fingerprint; }

}  // namespace zi

#include "zero_infer/tokenizer.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <fstream>
#include <numeric>
#include <sstream>
#include <utility>

#include "text/tokenizer_data.h"
#include "base/utf8.h"
#include "zero_infer/error.h"

namespace zi {

void AddedTokens::add(std::string content, std::int32_t id) {
  auto& tokens = by_first_byte_[static_cast<unsigned char>(content.front())];
  const auto shorter = [&](const Token& other) { return other.content.size() < content.size(); };
  const auto at = std::find_if(tokens.begin(), tokens.end(), shorter);
  tokens.insert(at, Token{std::move(content), id});
  any_ = true;
}

const AddedTokens::Token* AddedTokens::match(std::string_view text) const {
  for (const Token& token : by_first_byte_[static_cast<unsigned char>(text.front())]) {
    if (text.starts_with(token.content)) return &token;
  }
  return nullptr;
}

void AddedTokens::split(std::string_view text, const std::function<void(std::string_view)>& on_text,
                        const std::function<void(std::int32_t)>& on_token) const {
  std::size_t begin = 0;
  for (std::size_t i = 0; any_ && i < text.size();) {
    const Token* token = match(text.substr(i));
    if (token == nullptr) {
      ++i;
      continue;
    }
    if (i > begin) on_text(text.substr(begin, i - begin));
    on_token(token->id);
    i += token->content.size();
    begin = i;
  }
  if (begin < text.size()) on_text(text.substr(begin));
}

void TokenizerData::add_to_fingerprint(std::string_view file_bytes) {
  fingerprint = XXH3_64bits_withSeed(file_bytes.data(), file_bytes.size(), fingerprint);
}

struct Tokenizer::State : TokenizerData {};

Tokenizer::Tokenizer(std::unique_ptr<State> state) : state_(std::move(state)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Tokenizer Tokenizer::load(const std::filesystem::path& tokenizer_json) {
  std::error_code error;
  const auto status = std::filesystem::status(tokenizer_json, error);
  if (!std::filesystem::is_regular_file(status)) {
    throw CheckpointError(fmt::format(
        "{}: {}; the tokenizer belongs beside the model's config.json", tokenizer_json.string(),
        std::filesystem::exists(status) ? "this is not a file" : "there is no such file"));
  }
  std::ifstream file(tokenizer_json, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  if (!file || !text) {
    throw CheckpointError(tokenizer_json.string() + ": it cannot be read, or is empty");
  }
  return parse(text.view(), tokenizer_json.string());
}

Tokenizer Tokenizer::parse(std::string_view json, const std::string& name) {
  try {
    auto state = std::make_unique<State>(State{parse_tokenizer_json(json)});
    state->add_to_fingerprint(json);
    return Tokenizer(std::move(state));
  } catch (const CheckpointError& error) {
    throw CheckpointError(name + ": " + error.what());
  }
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
  Bpe::Scratch scratch;
  const auto token = [&](std::int32_t id) { ids.push_back(id); };
  const auto piece = [&](std::string_view part) { state_->bpe.encode(part, scratch, ids); };
  const auto plain = [&](std::string_view part) {
    pre_tokenize(state_->pre_tokenizer, part, piece);
  };
  state_->verbatim.split(
      text, [&](std::string_view part) { state_->normalized.split(part, plain, token); }, token);
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

std::int32_t Tokenizer::size() const {
  return static_cast<std::int32_t>(state_->token_bytes.size());
}

std::uint64_t Tokenizer::fingerprint() const { return state_->fingerprint; }

}  // namespace zi

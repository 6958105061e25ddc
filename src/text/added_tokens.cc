#include "text/added_tokens.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "text/json_members.h"
#include "text/unicode.h"

namespace zi {
namespace {

/// The last character before `end`, which is not 0.
std::string_view character_before(std::string_view text, std::size_t end) {
  std::size_t begin = end - 1;
  while (begin > 0 && (static_cast<unsigned char>(text[begin]) & 0xC0) == 0x80) --begin;
  return text.substr(begin, end - begin);
}

std::string_view character_at(std::string_view text, std::size_t begin) {
  return text.substr(begin, utf8_front(text.substr(begin)).bytes);
}

bool touches_a_word(std::string_view text, std::size_t begin, std::size_t end) {
  return (begin > 0 && is_word(code_point(character_before(text, begin)))) ||
         (end < text.size() && is_word(code_point(character_at(text, end))));
}

/// Where the white space that ends at `end` begins, but not before `least`.
std::size_t spaces_before(std::string_view text, std::size_t end, std::size_t least) {
  while (end > least) {
    const std::string_view character = character_before(text, end);
    if (!is_white_space(code_point(character))) break;
    end -= character.size();
  }
  return end;
}

/// Where the white space that begins at `begin` ends.
std::size_t spaces_after(std::string_view text, std::size_t begin) {
  while (begin < text.size()) {
    const std::string_view character = character_at(text, begin);
    if (!is_white_space(code_point(character))) break;
    begin += character.size();
  }
  return begin;
}

std::size_t byte_at(std::string_view text, std::size_t at) {
  return static_cast<unsigned char>(text[at]);
}

}  // namespace

AddedTokens::AddedTokens(std::vector<Token> tokens) : tokens_(std::move(tokens)) {
  std::ranges::stable_sort(tokens_, {}, &Token::content);
  for (const Token& token : tokens_) ++begins_[byte_at(token.content, 0) + 1];
  std::partial_sum(begins_.begin(), begins_.end(), begins_.begin());
}

/// Narrows the tokens byte by byte to those that begin as the text does. The shortest of them is
/// first, so each that is found is longer than the one before.
const AddedTokens::Token* AddedTokens::match(std::string_view text) const {
  const Token* longest = nullptr;
  auto begin = tokens_.begin() + static_cast<std::ptrdiff_t>(begins_[byte_at(text, 0)]);
  auto end = tokens_.begin() + static_cast<std::ptrdiff_t>(begins_[byte_at(text, 0) + 1]);
  for (std::size_t bytes = 1; begin != end; ++bytes) {
    if (begin->content.size() == bytes) {
      longest = &*begin;
      begin = std::find_if(begin, end, [&](const Token& t) { return t.content.size() > bytes; });
    }
    if (bytes == text.size() || begin == end) break;
    if (byte_at(begin->content, bytes) == byte_at((end - 1)->content, bytes)) {
      if (byte_at(begin->content, bytes) != byte_at(text, bytes)) break;
      continue;
    }
    const auto next_byte = [bytes](const Token& token) { return byte_at(token.content, bytes); };
    begin = std::ranges::lower_bound(begin, end, byte_at(text, bytes), {}, next_byte);
    end = std::ranges::upper_bound(begin, end, byte_at(text, bytes), {}, next_byte);
  }
  return longest;
}

void AddedTokens::split(std::string_view text, SplitBudget& budget,
                        const std::function<void(std::string_view)>& on_text,
                        const std::function<void(std::int32_t)>& on_token) const {
  constexpr std::size_t kBytesBetweenChecks = 1024;
  std::size_t given = 0;  // what is before has been given out
  std::size_t checked = 0;
  std::size_t spaces_begin = 0;  // of the white space that was looked through last
  std::size_t spaces_end = 0;
  for (std::size_t i = 0; !tokens_.empty() && i < text.size();) {
    if (i - checked >= kBytesBetweenChecks) {
      budget.check();
      checked = i;
    }
    const Token* token = match(text.substr(i));
    if (token == nullptr) {
      ++i;
      continue;
    }
    std::size_t begin = i;
    std::size_t end = i + token->content.size();
    i = end;  // also where the match does not count: the reference looks for no shorter one
    if (token->reach.single_word && touches_a_word(text, begin, end)) continue;
    if (token->reach.lstrip) begin = spaces_before(text, begin, given);
    if (token->reach.rstrip) {
      if (end < spaces_begin || end > spaces_end) {
        spaces_begin = end;
        spaces_end = spaces_after(text, end);
      }
      end = spaces_end;
    }
    if (begin > given) on_text(text.substr(given, begin - given));
    on_token(token->id);
    given = end;
  }
  if (given < text.size()) on_text(text.substr(given));
}

NamedToken named_token(const nlohmann::json& value, const std::string& file) {
  const nlohmann::json& content = member(value, "content");
  if (content.is_null()) refuse("an added token has no `content`");
  if (!content.is_string()) {
    refuse("the `content` of an added token is {}, which is no text", shown(content));
  }
  NamedToken token;
  token.content = content.get<std::string>();
  token.file = file;
  token.special = flag(value, "special", false);
  if (!member(value, "normalized").is_null()) token.normalized = flag(value, "normalized", true);
  token.reach = {.single_word = flag(value, "single_word", false),
                 .lstrip = flag(value, "lstrip", false),
                 .rstrip = flag(value, "rstrip", false)};
  return token;
}

const NamedToken* AddedVocabulary::find(const std::string& content) const {
  const auto found = by_content_.find(content);
  return found == by_content_.end() ? nullptr : &entries_[found->second].token;
}

std::optional<std::int32_t> AddedVocabulary::known_id(const std::string& content) const {
  if (const auto found = by_content_.find(content); found != by_content_.end()) {
    return entries_[found->second].id;
  }
  const auto known = vocabulary_->find(content);
  if (known != vocabulary_->end()) return known->second;
  return std::nullopt;
}

std::int32_t AddedVocabulary::id_of(const NamedToken& token) const {
  const auto next = std::max(largest_ + 1, static_cast<std::int32_t>(vocabulary_->size()));
  return known_id(token.content).value_or(next);
}

void AddedVocabulary::add(const NamedToken& token) {
  const std::int32_t id = id_of(token);
  if (token.id && *token.id != id) {
    const bool known = contains(token.content) || vocabulary_->contains(token.content);
    refuse(
        "{}: the added token {} has the id {}, but {} {}; put the ids of the published model there",
        token.file, in_quotes(token.content), *token.id, id,
        known ? "in tokenizer.json" : "is the next free one, which the reference gives it");
  }
  const auto [at, is_new] = by_content_.emplace(token.content, entries_.size());
  if (is_new) {
    entries_.push_back({id, token});
  } else {
    NamedToken& there = entries_[at->second].token;
    // Where it is searched is settled before: it depends on the flags as they were named.
    NamedToken named = token;
    named.normalized = token.is_normalized();
    named.special = token.special || there.special;
    there = std::move(named);
  }
  largest_ = std::max(largest_, id);
}

}  // namespace zi

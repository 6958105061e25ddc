#include "text/added_tokens.h"

#include <algorithm>
#include <utility>

#include "text/json_members.h"

namespace zi {

AddedTokens::AddedTokens(std::vector<Token> tokens) : any_(!tokens.empty()) {
  std::ranges::stable_sort(tokens, std::ranges::greater(),
                           [](const Token& token) { return token.content.size(); });
  for (Token& token : tokens) {
    const auto first = static_cast<unsigned char>(token.content.front());
    by_first_byte_[first].push_back(std::move(token));
  }
}

const AddedTokens::Token* AddedTokens::match(std::string_view text) const {
  for (const Token& token : by_first_byte_[static_cast<unsigned char>(text.front())]) {
    if (text.starts_with(token.content)) return &token;
  }
  return nullptr;
}

void AddedTokens::split(std::string_view text, SplitBudget& budget,
                        const std::function<void(std::string_view)>& on_text,
                        const std::function<void(std::int32_t)>& on_token) const {
  constexpr std::size_t kBytesBetweenChecks = 1024;
  std::size_t begin = 0;
  std::size_t checked = 0;
  for (std::size_t i = 0; any_ && i < text.size();) {
    if (i - checked >= kBytesBetweenChecks) {
      budget.check();
      checked = i;
    }
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

NamedToken named_token(const nlohmann::json& value, const std::string& file) {
  const nlohmann::json& content = member(value, "content");
  if (!content.is_string()) refuse("an added token has no `content`");
  NamedToken token;
  token.content = content.get<std::string>();
  token.file = file;
  token.special = flag(value, "special", false);
  if (!member(value, "normalized").is_null()) token.normalized = flag(value, "normalized", true);
  for (const char* key : {"single_word", "lstrip", "rstrip"}) {
    if (flag(value, key, false)) token.unsupported = key;
  }
  return token;
}

const NamedToken* AddedVocabulary::find(const std::string& content) const {
  const auto found = by_content_.find(content);
  return found == by_content_.end() ? nullptr : &entries_[found->second].token;
}

std::int32_t AddedVocabulary::id_of(const NamedToken& token) const {
  if (const auto found = by_content_.find(token.content); found != by_content_.end()) {
    return entries_[found->second].id;
  }
  const auto known = vocabulary_->find(token.content);
  if (known != vocabulary_->end()) return known->second;
  return std::max(largest_ + 1, static_cast<std::int32_t>(vocabulary_->size()));
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
  if (!token.unsupported.empty()) {
    refuse("{}: the added token {} has `{}`, which is not supported", token.file,
           in_quotes(token.content), token.unsupported);
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

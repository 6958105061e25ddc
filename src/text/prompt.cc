#include "text/prompt.h"

#include "text/wire.h"

namespace zi {
namespace {

constexpr char kPromptKind = 'P';

}  // namespace

std::string Prompt::serialize() const {
  WireWriter out(kPromptKind);
  out.put(index);
  out.put(id);
  out.put(text);
  out.put(ids);
  out.put(text_ids);
  own.write(out);
  out.put(stream);
  out.put(no_special_tokens);
  out.put(chat_hash);
  out.put(where);
  return out.take();
}

Prompt Prompt::deserialize(std::string_view bytes) {
  WireReader in(kPromptKind, bytes);
  const auto text = [&] { return in.text(); };
  const auto ids = [&] { return in.vector([&] { return in.get<std::int32_t>(); }); };
  Prompt prompt;
  prompt.index = in.get<std::uint64_t>();
  prompt.id = in.text();
  prompt.text = in.optional(text);
  prompt.ids = in.optional(ids);
  prompt.text_ids = in.optional(ids);
  prompt.own = OwnSettings::read(in);
  prompt.stream = in.get<bool>();
  prompt.no_special_tokens = in.get<bool>();
  prompt.chat_hash = in.text();
  prompt.where = in.text();
  in.finish();
  return prompt;
}

}  // namespace zi

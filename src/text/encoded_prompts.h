#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "text/prompt.h"
#include "text/prompt_source.h"

namespace zi {

/// The tokens of a prompt's text. May throw for a text that has none: whoever needs the tokens
/// meets the same error then, and tells.
using PromptEncoder = std::function<std::vector<std::int32_t>(const Prompt& prompt)>;

/// The prompts of `source`, in the same order, taken ahead of their need: meanwhile a thread cuts
/// their texts into tokens (`Prompt::text_ids`), those that have none yet, so that passes need not
/// wait for it. Nobody waits for that thread either: a prompt that is wanted before its turn comes
/// without its tokens, for the rank that gets it to cut.
///
/// Up to `most` prompts are kept, and none are added while they have kMostKeptBytes; only what the
/// source gives at once may go beyond that. `source` is used on the thread that calls, and must
/// outlive this one; what it throws comes after the prompts before it. It must not cancel prompts:
/// those that are kept here would not hear of it. `encode` is called by the thread alone; the end
/// waits for the text that is being cut.
std::unique_ptr<PromptSource> encode_ahead(PromptSource& source, PromptEncoder encode,
                                           std::size_t most);

}  // namespace zi

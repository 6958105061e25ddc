#pragma once

#include <cstddef>
#include <functional>
#include <memory>

#include "text/prompt_source.h"

namespace zi {

/// Takes up to `most` prompts of the source, none once they have kMostKeptBytes, waiting for them,
/// and tries each: one for which `check` throws PromptError is reported with its place and that
/// reason, and left out. The others, as `check` has changed them, come first in what is returned,
/// in the same order.
std::unique_ptr<PromptSource> check_first_prompts(std::unique_ptr<PromptSource> source,
                                                  std::size_t most,
                                                  const std::function<void(Prompt&)>& check,
                                                  const PromptErrorCallback& on_error);

}  // namespace zi

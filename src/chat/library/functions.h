#pragma once

#include <ctime>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "chat/values/budget.h"
#include "chat/values/value.h"

namespace zi::chat {

/// The functions that every template can call: those of Jinja2 (range, dict, namespace, joiner,
/// cycler), and raise_exception and strftime_now as transformers has them. `now` is what the last
/// one tells. Namespaces are put into `namespaces`, whose owner empties them in the end: they may
/// hold each other.
std::map<std::string, Value, std::less<>> global_functions(
    std::time_t now, std::vector<std::shared_ptr<Namespace>>& namespaces, Budget& budget);

}  // namespace zi::chat

#pragma once

#include <string_view>

namespace zi {

/// The page that the server shows at `/`: one HTML document with its style and its script inside,
/// UTF-8. It asks the server that it came from and nobody else. Static memory; any thread.
std::string_view page_html();

/// The Content-Security-Policy that the page needs, and no more: its own style and script, named by
/// their hashes, and requests to its own server. Static memory; any thread.
std::string_view page_policy();

}  // namespace zi

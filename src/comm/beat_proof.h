#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace zi {

/// Bytes that nobody can guess. Throws IoError where the system gives none.
std::string random_bytes(std::size_t count);

constexpr std::size_t kProofBytes = 32;

/// Shows that its maker knows `secret`, and tells nothing of it: HMAC-SHA256 of `said`. What is
/// said holds random bytes of the one who asks, so that no proof serves twice. Throws Error where
/// OpenSSL refuses the hash.
std::string proof(std::string_view secret, std::string_view said);

/// Compares in a time that does not depend on where the two differ.
bool same_proof(std::string_view a, std::string_view b);

}  // namespace zi

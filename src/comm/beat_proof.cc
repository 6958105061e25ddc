#include "comm/beat_proof.h"

#include <fmt/format.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <sys/random.h>
#include <sys/types.h>

#include <array>
#include <cerrno>

#include "base/system_error.h"
#include "zero_infer/error.h"

namespace zi {

std::string random_bytes(std::size_t count) {
  std::string bytes(count, '\0');
  if (::getrandom(bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size())) {
    throw IoError(fmt::format("no random bytes: {}", system_message(errno)));
  }
  return bytes;
}

std::string proof(std::string_view secret, std::string_view said) {
  std::array<unsigned char, EVP_MAX_MD_SIZE> hash{};
  unsigned int size = 0;
  if (::HMAC(::EVP_sha256(), secret.data(), static_cast<int>(secret.size()),
             reinterpret_cast<const unsigned char*>(said.data()), said.size(), hash.data(),
             &size) == nullptr ||
      size != kProofBytes) {
    throw Error("OpenSSL has no HMAC-SHA256, by which ranks know each other");
  }
  return {hash.begin(), hash.begin() + kProofBytes};
}

bool same_proof(std::string_view a, std::string_view b) {
  return a.size() == b.size() && ::CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

}  // namespace zi

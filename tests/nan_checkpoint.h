#pragma once

#include <cstdint>
#include <string>

namespace zi::test {

/// Copies the model directory `from` to `to`, where the embedding of one token is NaN: logits are
/// then NaN from that token on, and as always without it. The head, else tied to the embedding,
/// gets a tensor of its own.
void make_nan_checkpoint(const std::string& from, const std::string& to, std::int32_t token);

}  // namespace zi::test

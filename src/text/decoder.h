#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace zi {

/// One step from tokens to text that needs to know the tokens before or after. (What looks at each
/// token alone has been done when the tokenizer was read.)
struct DecoderStep {
  enum class Kind {
    kByteFallback,  // a run of tokens such as `<0xE2>` is the text of these bytes
    kMetaspace,     // `character` is a space, but nothing in the first token
    kStrip,         // without up to `count` times `character` at the front
  };
  Kind kind = Kind::kByteFallback;
  std::string character{};
  std::size_t count = 0;
  bool prefixed = true;  // kMetaspace: the first token has a mark that the text had not
  bool whole = false;    // kStrip: of the whole text, not of each token
};

using Decoder = std::vector<DecoderStep>;

/// What the token is in the middle of a text; its bytes may be a part of a UTF-8 character.
std::string text_in_middle(const Decoder& steps, std::string_view token);

/// Runs tokens through the steps as they come. What has come out after `finish` is what the
/// reference makes of all tokens at once.
class DecoderStream {
 public:
  explicit DecoderStream(const Decoder& steps) : steps_(&steps), states_(steps.size()) {}

  /// Appends to `out` what the token lets go. Bytes may be a part of a UTF-8 character.
  void push(std::string_view token, std::string& out) { feed(0, std::string(token), out); }
  /// Appends what is still held back, and begins afresh.
  void finish(std::string& out);

 private:
  struct State {
    std::string bytes;      // kByteFallback: of the run so far
    bool first = true;      // kMetaspace: no token has come yet
    bool stripping = true;  // kStrip of the whole text: nothing else has come yet
    std::size_t stripped = 0;
  };
  void feed(std::size_t step, std::string token, std::string& out);
  void end_run(std::size_t step, std::string& out);

  const Decoder* steps_;
  std::vector<State> states_;
};

}  // namespace zi

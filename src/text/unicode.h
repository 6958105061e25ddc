#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace zi {

/// Properties and normalization forms of Unicode, as the reference (Hugging Face tokenizers 0.23)
/// has them. Texts are valid UTF-8.

/// The normalization forms of Unicode Standard Annex 15.
enum class UnicodeForm { kNfc, kNfd, kNfkc, kNfkd };

/// Characters that came after Unicode 9 are left alone, as the reference leaves them. n log n.
std::string unicode_form(std::string_view text, UnicodeForm form);

/// The property White_Space.
bool is_white_space(std::uint32_t code);

/// What a word consists of (Unicode Technical Standard 18, `\w`): letters, marks, decimal and
/// letter-like numbers, connecting punctuation and the two joiners.
bool is_word(std::uint32_t code);

}  // namespace zi

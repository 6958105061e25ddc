#include "text/unicode.h"

#include <unicode/normalizer2.h>
#include <unicode/uchar.h>
#include <unicode/unistr.h>
#include <unicode/utf8.h>

#include <algorithm>
#include <array>
#include <vector>

#include "base/utf8.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

struct Range {
  std::uint32_t first;
  std::uint32_t last;
};

bool in(const auto& ranges, std::uint32_t code) {
  const auto after = std::ranges::upper_bound(ranges, code, {}, &Range::first);
  return after != std::ranges::begin(ranges) && code <= std::prev(after)->last;
}

/// Characters after Unicode 9 that have a combining class or a decomposition, and whole blocks of
/// scripts that came later. The reference's tables are those of Unicode 9: to it they are
/// characters that combine with nothing.
constexpr std::array kUnknownToReference = {
    Range{0x07FD, 0x07FD},   Range{0x0897, 0x089F},   Range{0x08CA, 0x08D3},
    Range{0x09FE, 0x09FE},   Range{0x0C3C, 0x0C3C},   Range{0x0D3B, 0x0D3C},
    Range{0x0EBA, 0x0EBA},   Range{0x1715, 0x1715},   Range{0x1ABF, 0x1AFF},
    Range{0x1DF6, 0x1DFA},   Range{0x32FF, 0x32FF},   Range{0xA7F1, 0xA7F4},
    Range{0xA82C, 0xA82C},   Range{0xAB69, 0xAB69},   Range{0x105C0, 0x105FF},
    Range{0x10780, 0x107BF}, Range{0x10D24, 0x10D27}, Range{0x10D40, 0x10D8F},
    Range{0x10E80, 0x10EFF}, Range{0x10F46, 0x10F50}, Range{0x10F70, 0x10F8F},
    Range{0x11070, 0x11070}, Range{0x1133B, 0x1133B}, Range{0x11380, 0x113FF},
    Range{0x1145E, 0x1145E}, Range{0x11839, 0x1183A}, Range{0x11900, 0x1195F},
    Range{0x119E0, 0x119E0}, Range{0x11A34, 0x11A34}, Range{0x11A47, 0x11A47},
    Range{0x11A99, 0x11A99}, Range{0x11D42, 0x11D42}, Range{0x11D44, 0x11D45},
    Range{0x11D97, 0x11D97}, Range{0x11F00, 0x11F5F}, Range{0x16100, 0x1613F},
    Range{0x16D40, 0x16D7F}, Range{0x16FF0, 0x16FF1}, Range{0x1CCD6, 0x1CCF9},
    Range{0x1E030, 0x1E08F}, Range{0x1E130, 0x1E136}, Range{0x1E2AE, 0x1E2AE},
    Range{0x1E2EC, 0x1E2EF}, Range{0x1E4D0, 0x1E4FF}, Range{0x1E5D0, 0x1E5FF},
    Range{0x1E6C0, 0x1E6FF}, Range{0x1F16C, 0x1F16C}, Range{0x1FBF0, 0x1FBF9}};

/// Symbols that the property Alphabetic counts among letters.
constexpr std::array kAlphabeticSymbols = {Range{0x24B6, 0x24E9}, Range{0x1F130, 0x1F149},
                                           Range{0x1F150, 0x1F169}, Range{0x1F170, 0x1F189}};

const icu::Normalizer2& form_of(const icu::Normalizer2* (*get)(UErrorCode&)) {
  UErrorCode status = U_ZERO_ERROR;
  const icu::Normalizer2* form = get(status);
  if (U_FAILURE(status) != 0) throw Error(std::string("ICU: ") + u_errorName(status));
  return *form;
}

/// Characters on their way into a form, decomposed. Runs of marks are ordered here and not by
/// ICU's whole normalization, which takes quadratic time for a long run.
class Decomposed {
 public:
  explicit Decomposed(UnicodeForm form)
      : composes_(form == UnicodeForm::kNfc || form == UnicodeForm::kNfkc),
        canonical_(form_of(&icu::Normalizer2::getNFCInstance)),
        decomposition_(form == UnicodeForm::kNfc || form == UnicodeForm::kNfd
                           ? canonical_
                           : form_of(&icu::Normalizer2::getNFKCInstance)) {}

  std::size_t size() const { return codes_.size(); }

  void add(UChar32 code) {
    if (!decomposition_.getDecomposition(code, parts_)) {
      codes_.push_back(code);
      return;
    }
    for (std::int32_t i = 0; i < parts_.length(); i = parts_.moveIndex32(i, 1)) {
      codes_.push_back(parts_.char32At(i));
    }
  }

  /// Appends the form of what was added and empties this.
  void take(std::string& out) {
    order_marks();
    if (composes_) compose();
    for (const UChar32 code : codes_) {
      std::array<char, U8_MAX_LENGTH> bytes{};
      std::size_t length = 0;
      U8_APPEND_UNSAFE(bytes, length, code);
      out.append(bytes.data(), length);
    }
    codes_.clear();
  }

 private:
  void order_marks() {
    const auto is_starter = [&](UChar32 code) { return class_of(code) == 0; };
    for (auto run = codes_.begin(); run != codes_.end();) {
      if (is_starter(*run)) {
        ++run;
        continue;
      }
      const auto end = std::find_if(run, codes_.end(), is_starter);
      std::stable_sort(run, end, [&](UChar32 a, UChar32 b) { return class_of(a) < class_of(b); });
      run = end;
    }
  }

  /// The canonical composition algorithm (the Unicode Standard, 3.11, D117).
  void compose() {
    constexpr std::size_t kNone = static_cast<std::size_t>(-1);
    std::size_t starter = kNone;  // the last one that was written
    std::size_t written = 0;
    int before = 0;  // the class of the last character between it and here; 0 for none
    for (const UChar32 code : codes_) {
      const int own = class_of(code);
      const bool blocked = written != starter + 1 && before >= own;
      const UChar32 both =
          starter == kNone || blocked ? U_SENTINEL : canonical_.composePair(codes_[starter], code);
      if (both >= 0) {
        codes_[starter] = both;
        continue;
      }
      if (own == 0) starter = written;
      before = own;
      codes_[written++] = code;
    }
    codes_.resize(written);
  }

  int class_of(UChar32 code) const { return canonical_.getCombiningClass(code); }

  bool composes_;
  const icu::Normalizer2& canonical_;
  const icu::Normalizer2& decomposition_;
  std::vector<UChar32> codes_;
  icu::UnicodeString parts_;  // of one character
};

}  // namespace

std::string unicode_form(std::string_view text, UnicodeForm form) {
  constexpr std::size_t kMostAtOnce = 1 << 16;
  Decomposed decomposed(form);
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const std::string_view character = text.substr(0, utf8_front(text).bytes);
    text.remove_prefix(character.size());
    const std::uint32_t code = code_point(character);
    if (in(kUnknownToReference, code)) {
      decomposed.take(out);
      out += character;
      continue;
    }
    // No ASCII character combines with what is before it.
    if (code < 0x80 && decomposed.size() >= kMostAtOnce) decomposed.take(out);
    decomposed.add(static_cast<UChar32>(code));
  }
  decomposed.take(out);
  return out;
}

bool is_white_space(std::uint32_t code) {
  return (code >= 0x09 && code <= 0x0D) || code == 0x20 || code == 0x85 || code == 0xA0 ||
         code == 0x1680 || (code >= 0x2000 && code <= 0x200A) || code == 0x2028 || code == 0x2029 ||
         code == 0x202F || code == 0x205F || code == 0x3000;
}

bool is_word(std::uint32_t code) {
  constexpr std::uint32_t kWord =
      U_GC_L_MASK | U_GC_M_MASK | U_GC_ND_MASK | U_GC_NL_MASK | U_GC_PC_MASK;
  return (U_GET_GC_MASK(static_cast<UChar32>(code)) & kWord) != 0 || code == 0x200C ||
         code == 0x200D || in(kAlphabeticSymbols, code);
}

}  // namespace zi

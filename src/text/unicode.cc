#include "text/unicode.h"

#include <utf8proc.h>

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

utf8proc_option_t options_of(UnicodeForm form) {
  const bool compatible = form == UnicodeForm::kNfkc || form == UnicodeForm::kNfkd;
  return static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE |
                                        (compatible ? UTF8PROC_COMPAT : 0));
}

/// Puts runs of marks into their canonical order. By a sort: the library's own takes quadratic time
/// for a long run.
void order_marks(std::vector<utf8proc_int32_t>& codes) {
  const auto combining_class = [](utf8proc_int32_t code) {
    return utf8proc_get_property(code)->combining_class;
  };
  for (auto run = codes.begin(); run != codes.end();) {
    if (combining_class(*run) == 0) {
      ++run;
      continue;
    }
    const auto end =
        std::find_if(run, codes.end(), [&](auto code) { return combining_class(code) == 0; });
    std::stable_sort(run, end,
                     [&](auto a, auto b) { return combining_class(a) < combining_class(b); });
    run = end;
  }
}

/// Appends the form of decomposed characters and empties them.
void take(std::vector<utf8proc_int32_t>& codes, UnicodeForm form, std::string& out) {
  order_marks(codes);
  auto count = static_cast<utf8proc_ssize_t>(codes.size());
  if (form == UnicodeForm::kNfc || form == UnicodeForm::kNfkc) {
    count = utf8proc_normalize_utf32(
        codes.data(), count, static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
    if (count < 0) throw Error(std::string("utf8proc: ") + utf8proc_errmsg(count));
  }
  std::array<utf8proc_uint8_t, 4> bytes{};
  for (utf8proc_ssize_t i = 0; i < count; ++i) {
    const utf8proc_ssize_t length =
        utf8proc_encode_char(codes[static_cast<std::size_t>(i)], bytes.data());
    out.append(reinterpret_cast<const char*>(bytes.data()), static_cast<std::size_t>(length));
  }
  codes.clear();
}

}  // namespace

std::string unicode_form(std::string_view text, UnicodeForm form) {
  const utf8proc_option_t options = options_of(form);
  constexpr std::size_t kMostAtOnce = 1 << 16;
  std::string out;
  out.reserve(text.size());
  std::vector<utf8proc_int32_t> codes;
  std::array<utf8proc_int32_t, 32> parts{};  // U+FDFA, the longest, has 18
  while (!text.empty()) {
    const std::string_view character = text.substr(0, utf8_front(text).bytes);
    text.remove_prefix(character.size());
    const std::uint32_t code = code_point(character);
    if (in(kUnknownToReference, code)) {
      take(codes, form, out);
      out += character;
      continue;
    }
    // No ASCII character combines with what is before it.
    if (code < 0x80 && codes.size() >= kMostAtOnce) take(codes, form, out);
    int boundary = 0;
    const utf8proc_ssize_t count =
        utf8proc_decompose_char(static_cast<utf8proc_int32_t>(code), parts.data(),
                                static_cast<utf8proc_ssize_t>(parts.size()), options, &boundary);
    if (count < 0 || count > std::ssize(parts)) {
      throw Error(std::string("utf8proc: ") + utf8proc_errmsg(count));
    }
    codes.insert(codes.end(), parts.begin(), parts.begin() + count);
  }
  take(codes, form, out);
  return out;
}

bool is_white_space(std::uint32_t code) {
  return (code >= 0x09 && code <= 0x0D) || code == 0x20 || code == 0x85 || code == 0xA0 ||
         code == 0x1680 || (code >= 0x2000 && code <= 0x200A) || code == 0x2028 || code == 0x2029 ||
         code == 0x202F || code == 0x205F || code == 0x3000;
}

bool is_word(std::uint32_t code) {
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(code))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:
      return code == 0x200C || code == 0x200D || in(kAlphabeticSymbols, code);
  }
}

}  // namespace zi

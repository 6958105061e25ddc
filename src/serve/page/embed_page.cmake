# Writes OUTPUT, the source of page.h: the bytes of PAGE, and the policy with the hashes of its style and script.
#   cmake -DPAGE=index.html -DOUTPUT=page.cc -P embed_page.cmake
cmake_minimum_required(VERSION 3.22)

# base64(OUT HEX): a multiple of three bytes is not needed, the rest is padded.
function(base64 out hex)
  set(digits ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/)
  set(text "")
  while(hex)
    string(LENGTH "${hex}" length)
    set(group ${hex})
    set(kept 4)
    if(length LESS 6)
      string(SUBSTRING "${hex}0000" 0 6 group)
      math(EXPR kept "${length} / 2 + 1")
      set(hex "")
    else()
      string(SUBSTRING "${hex}" 0 6 group)
      string(SUBSTRING "${hex}" 6 -1 hex)
    endif()
    foreach(shift 18 12 6 0)
      if(kept GREATER 0)
        math(EXPR digit "(0x${group} >> ${shift}) & 63")
        string(SUBSTRING ${digits} ${digit} 1 digit)
      else()
        set(digit =)
      endif()
      string(APPEND text ${digit})
      math(EXPR kept "${kept} - 1")
    endforeach()
  endwhile()
  set(${out} ${text} PARENT_SCOPE)
endfunction()

# hash_of(OUT BEGIN END): of what stands between these two tags, each of which is there once.
function(hash_of out begin end)
  string(FIND "${page}" "${begin}" from)
  string(FIND "${page}" "${begin}" last REVERSE)
  string(FIND "${page}" "${end}" to)
  if(from EQUAL -1 OR NOT from EQUAL last OR to LESS from)
    message(FATAL_ERROR "${PAGE}: wanted one ${begin} .. ${end}")
  endif()
  string(LENGTH "${begin}" length)
  math(EXPR from "${from} + ${length}")
  math(EXPR length "${to} - ${from}")
  string(SUBSTRING "${page}" ${from} ${length} text)
  string(SHA256 hash "${text}")
  base64(hash ${hash})
  set(${out} ${hash} PARENT_SCOPE)
endfunction()

file(READ "${PAGE}" page)
hash_of(style "<style>" "</style>")
hash_of(script "<script type=\"module\">" "</script>")
file(READ "${PAGE}" bytes HEX)
string(REGEX REPLACE "(................................)" "\\1\n" bytes "${bytes}")
string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${bytes}")

file(CONFIGURE OUTPUT "${OUTPUT}" @ONLY CONTENT [[
// Made of @PAGE@ by embed_page.cmake.
#include "serve/page/page.h"

namespace zi {
namespace {

constexpr unsigned char kPage[] = {
@bytes@};

}  // namespace

std::string_view page_html() { return {reinterpret_cast<const char*>(kPage), sizeof(kPage)}; }

std::string_view page_policy() {
  return "default-src 'none'; style-src 'sha256-@style@'; script-src 'sha256-@script@'; "
         "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
         "frame-ancestors 'none'";
}

}  // namespace zi
]])

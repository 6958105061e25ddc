// Any bytes as config.json and, after a NUL, as generation_config.json: refused with a reason, or a
// shape that multiplies without overflow and of which a model's tensors can be listed.

#include <stdlib.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>

#include "zero_infer/error.h"
#include "zero_infer/model_config.h"

namespace {

/// A folder in memory: ModelConfig reads files.
const std::filesystem::path& folder() {
  static const std::filesystem::path path = [] {
    std::string name =
        std::filesystem::exists("/dev/shm") ? "/dev/shm/zi-fuzz-XXXXXX" : "/tmp/zi-fuzz-XXXXXX";
    if (::mkdtemp(name.data()) == nullptr) std::abort();
    std::atexit([] { std::filesystem::remove_all(path); });
    return std::filesystem::path(name);
  }();
  return path;
}

void write(const char* name, std::string_view text) {
  std::ofstream(folder() / name, std::ios::binary) << text;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const std::size_t end = bytes.find('\0');
  write("config.json", bytes.substr(0, end));
  if (end == std::string_view::npos) {
    std::filesystem::remove(folder() / "generation_config.json");
  } else {
    write("generation_config.json", bytes.substr(end + 1));
  }
  try {
    const zi::ModelConfig c = zi::ModelConfig::load(folder());
    if (c.hidden < 1 || c.layers < 1 || c.heads < 1 || c.ffn < 1 || c.vocabulary < 1) std::abort();
    if (c.heads * c.head_dim != c.hidden || c.layers > 4096 || c.heads > 4096) std::abort();
    std::int64_t product = 0;
    if (__builtin_mul_overflow(c.hidden, c.ffn, &product)) std::abort();
    if (__builtin_mul_overflow(c.hidden, c.vocabulary, &product)) std::abort();
    for (const std::int32_t id : c.eos_ids) {
      if (id < 0) std::abort();
    }
  } catch (const zi::Error&) {
  }
  return 0;
}

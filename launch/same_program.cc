#include "launch/same_program.h"

#include <elf.h>
#include <fmt/format.h>
#include <link.h>
#include <xxhash.h>

#include <cstddef>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "zero_infer/error.h"

namespace zi {
namespace {

std::size_t padded(std::size_t bytes) { return (bytes + 3) / 4 * 4; }

/// The build id among the notes of a segment, in hexadecimal; empty: there is none.
std::string build_id_of(const std::byte* notes, std::size_t size) {
  while (size >= sizeof(ElfW(Nhdr))) {
    ElfW(Nhdr) note;
    std::memcpy(&note, notes, sizeof(note));
    const std::size_t name = sizeof(note), value = name + padded(note.n_namesz);
    const std::size_t end = value + padded(note.n_descsz);
    if (end > size) break;
    if (note.n_type == NT_GNU_BUILD_ID && note.n_namesz == sizeof("GNU") &&
        std::memcmp(notes + name, "GNU", sizeof("GNU")) == 0) {
      std::string text;
      for (std::size_t i = 0; i < note.n_descsz; ++i) {
        text += fmt::format("{:02x}", std::to_integer<int>(notes[value + i]));
      }
      return text;
    }
    notes += end;
    size -= end;
  }
  return {};
}

/// Of the program itself, which is the first of the loaded objects.
int find_build_id(dl_phdr_info* object, std::size_t, void* out) {
  for (int i = 0; i < object->dlpi_phnum; ++i) {
    const ElfW(Phdr)& segment = object->dlpi_phdr[i];
    if (segment.p_type != PT_NOTE) continue;
    const auto* notes = reinterpret_cast<const std::byte*>(object->dlpi_addr + segment.p_vaddr);
    *static_cast<std::string*>(out) = build_id_of(notes, segment.p_memsz);
    if (!static_cast<std::string*>(out)->empty()) break;
  }
  return 1;  // no other object
}

/// Of the program's file, for one without a build id (stripped of it, or linked in another way).
std::string file_hash() {
  std::ifstream file("/proc/self/exe", std::ios::binary);
  const std::unique_ptr<XXH3_state_t, decltype(&::XXH3_freeState)> hash(::XXH3_createState(),
                                                                        &::XXH3_freeState);
  if (hash == nullptr || ::XXH3_128bits_reset(hash.get()) == XXH_ERROR) return "unknown";
  std::vector<char> block(1 << 20);
  while (file) {
    file.read(block.data(), std::ssize(block));
    ::XXH3_128bits_update(hash.get(), block.data(), static_cast<std::size_t>(file.gcount()));
  }
  if (!file.eof()) return "unknown";
  const XXH128_hash_t value = ::XXH3_128bits_digest(hash.get());
  return fmt::format("{:016x}{:016x}", value.high64, value.low64);
}

std::string this_program() {
  std::string build_id;
  ::dl_iterate_phdr(find_build_id, &build_id);
  return fmt::format(
      "zero-infer {} ({})", ZI_VERSION,
      build_id.empty() ? "without a build id, hash " + file_hash() : "build " + build_id);
}

}  // namespace

void check_same_program(World& world) {
  const std::string mine = this_program();
  const std::string first = world.broadcast(mine + "\n" + world.host(), 0);
  world.all_or_none([&] {
    const std::size_t end = first.find('\n');
    if (first.substr(0, end) == mine) return;
    throw ConfigError(fmt::format(
        "all ranks must run the same program: rank 0 on {} runs {}, rank {} on {} runs {}; install "
        "the same one on all hosts",
        first.substr(end + 1), first.substr(0, end), world.rank(), world.host(), mine));
  });
}

}  // namespace zi

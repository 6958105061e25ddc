// Any bytes as config.json and, after a NUL, as generation_config.json: refused with a reason, or a
// shape that multiplies without overflow and of which a model's tensors can be listed.

#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>

#include "zero_infer/error.h"
#include "zero_infer/model.h"
#include "zero_infer/model_config.h"
#include "zero_infer/model_spec.h"

namespace {

/// The elements of all of a model's tensors; ends the program where they are no sizes.
std::int64_t elements_of(const zi::ModelSpec& spec) {
  std::int64_t sum = 0;
  const auto add = [&](const zi::TensorSpec& tensor) {
    std::int64_t elements = 1;
    for (const std::int64_t extent : tensor.shape) {
      if (extent < 1 || __builtin_mul_overflow(elements, extent, &elements)) std::abort();
    }
    if (__builtin_add_overflow(sum, elements, &sum)) std::abort();
  };
  const auto add_unit = [&](const zi::UnitSpec& unit) {
    for (const zi::TensorSpec& tensor : unit.matrices) add(tensor);
    for (const zi::TensorSpec& tensor : unit.vectors) add(tensor);
  };
  for (const zi::UnitSpec& block : spec.blocks) add_unit(block);
  add_unit(spec.head);
  add(spec.embedding);
  for (const zi::TensorSpec& tensor : spec.vectors) add(tensor);
  return sum;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const std::size_t end = bytes.find('\0');
  std::optional<std::string> generation;
  if (end != std::string_view::npos) generation = bytes.substr(end + 1);
  try {
    const auto c = zi::ModelConfig::parse(bytes.substr(0, end), generation, "fuzz");
    if (c.hidden < 1 || c.layers < 1 || c.heads < 1 || c.ffn < 1 || c.vocabulary < 1) std::abort();
    if (c.head_dim < 1 || c.kv_heads < 1 || c.heads % c.kv_heads != 0) std::abort();
    if (c.layers > 4096 || c.heads > 4096) std::abort();
    if (c.eos_ids.size() > 1024) std::abort();
    for (const std::int32_t id : c.eos_ids) {
      if (id < 0) std::abort();
    }
    // In bytes, of all ranks of a large job, far below 2^63.
    const auto model = zi::make_model(c, true);
    if (elements_of(model->spec()) > std::int64_t{1} << 51) std::abort();
  } catch (const zi::CheckpointError& error) {
    if (error.what()[0] == '\0') std::abort();
  }
  return 0;
}

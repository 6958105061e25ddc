#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "zero_infer/dtype.h"
#include "zero_infer/error.h"
#include "zero_infer/model_spec.h"
#include "zero_infer/uniform_values.h"
#include "zero_infer/weight_format.h"

namespace zi {

/// Where weights come from: a checkpoint on disk, or seeded random values. Nothing is kept in
/// memory beyond the headers: a read goes to the file each time.
class WeightSource {
 public:
  virtual ~WeightSource() = default;

  /// Writes elements [first, first + count) of the row-major `tensor`, converted to `to`, to `dst`.
  /// Any thread may call it at any time. Throws CheckpointError or IoError with path and offset.
  virtual void read(const TensorSpec& tensor, std::int64_t first, std::int64_t count, DType to,
                    void* dst) const = 0;

  /// The rule by which a device can make the tensor's values itself instead of receiving them; none
  /// for values without a rule.
  virtual std::optional<UniformValues> uniform(const TensorSpec&) const { return std::nullopt; }

  /// Whether the tensor is there.
  virtual bool contains(const std::string& name) const = 0;

  /// The type in which the tensor's elements are stored; where its rows are packed, the type that
  /// the elements had. Throws CheckpointError if it is missing.
  virtual DType stored_dtype(const std::string& name) const = 0;

  /// The format of a matrix whose rows are stored packed: such a one is read by `read_packed`, and
  /// `read` throws CheckpointError. None for a tensor of elements, and for one that is missing.
  virtual std::optional<WeightFormat> packed_format(const std::string&) const {
    return std::nullopt;
  }

  /// Writes packed rows [first, first + count) of the matrix to `dst`, as they are stored. Any
  /// thread may call it at any time. Throws as `read`, and CheckpointError for a matrix that is not
  /// packed.
  virtual void read_packed(const TensorSpec& tensor, std::int64_t /*first*/, std::int64_t /*count*/,
                           std::byte* /*dst*/) const {
    throw CheckpointError(describe() + ": the rows of `" + tensor.name + "` are not packed");
  }

  /// The tensors that are there, as they are stored (names may carry the family's prefix). Empty
  /// for a source that makes any tensor.
  virtual std::vector<std::string> names() const { return {}; }

  /// Differs when the weights may differ: written into shard files, compared when they are reused.
  /// It sees the content (its upper 32 bits are those of `content_identity`) and, for files, size,
  /// mtime and ctime as well. Any thread may call it. The first call may read (see
  /// `content_identity`).
  virtual std::uint64_t identity() const = 0;

  /// Differs when the weights differ, as far as samples of every tensor show: what ranks compare.
  /// The same on all hosts with the same weights, wherever and since whenever they are there. The
  /// first call reads the samples: of a checkpoint of 350 GB a second or so. Throws IoError.
  virtual std::uint64_t content_identity() const { return identity(); }

  /// What a user should know about how the source was chosen, a line each. One rank prints them.
  virtual std::vector<std::string> warnings() const { return {}; }

  /// Directory or description, for messages.
  virtual std::string describe() const = 0;
};

/// Whether two identities are of the same content, by their halves of it: they then differ in the
/// times of files alone.
constexpr bool same_content(std::uint64_t identity, std::uint64_t other) {
  return identity >> 32 == other >> 32;
}

}  // namespace zi

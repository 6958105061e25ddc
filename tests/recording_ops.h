#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "engine/forwarding_ops.h"

namespace zi::test {

/// Ops that also keep the logits of every drawn token, by (prompt index, position).
class RecordingOps final : public ForwardingOps {
 public:
  using Key = std::pair<std::uint64_t, std::uint64_t>;
  using Record = std::map<Key, std::vector<float>>;

  RecordingOps(Device& device, std::unique_ptr<Ops> inner, Record* record)
      : ForwardingOps(std::move(inner)), device_(&device), record_(record) {}

  void sample(const float* logits, std::int64_t ld, std::int64_t vocabulary,
              std::span<const SampleRow> rows, const SampleResults& results,
              Stream& stream) override {
    for (std::size_t r = 0; r < rows.size(); ++r) {
      std::vector<float>& row = (*record_)[{rows[r].sequence, rows[r].position}];
      row.resize(static_cast<std::size_t>(vocabulary));
      device_->copy(row.data(), logits + static_cast<std::int64_t>(r) * ld,
                    row.size() * sizeof(float), stream);
    }
    stream.synchronize();
    ForwardingOps::sample(logits, ld, vocabulary, rows, results, stream);
  }

 private:
  Device* device_;
  Record* record_;
};

}  // namespace zi::test

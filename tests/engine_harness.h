#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "mpi_world.h"
#include "recording_ops.h"

/// Runs of the whole engine by the ranks that mpirun started.
namespace zi::test {

/// A folder of tests/data; $ZI_TEST_DATA names another copy of the data, on a host without the
/// sources.
std::string data_path(const std::string& name);

/// CPU logits must be equal bit by bit; a GPU's products depend on how many rows they have.
inline bool exact_bits() { return !wants_cuda(); }

/// Weights are gathered in every pass, unless a test says otherwise.
RunConfig test_config(const std::string& model);

/// Collective. Why the backend cannot be had here; empty when it can.
std::string missing_backend(const std::string& model);

/// Where shards rest in a run.
struct Placement {
  std::string name;
  bool cpu_offload = false;
  bool nvme = false;
  std::optional<std::size_t> device_budget;
  std::optional<std::size_t> host_budget;
};

inline const Placement kDeviceOnly{"device", false, false, {}, {}};

/// Every tier and mix, for blocks whose shards have so many bytes.
std::vector<Placement> placements(std::size_t shard_bytes);

/// All ranks of a test share a folder; rank 0 makes it and takes it away.
class SharedFolder {
 public:
  SharedFolder();
  ~SharedFolder();
  SharedFolder(const SharedFolder&) = delete;
  SharedFolder& operator=(const SharedFolder&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

struct Played {
  std::vector<Result> results;  // of all ranks, on rank 0
  RecordingOps::Record logits;  // of all ranks, on rank 0
  Engine::Outcome outcome;
  MemoryPlan plan;
};

/// What a run would measure at its start.
struct Decided {
  std::optional<std::int64_t> stay_rows = {};  // for Engine::leave_weights_up_to
  std::optional<HostShares> host_shares = {};  // for Engine::share_with_host
};

/// Collective. A run of these prompts, which rank 0 has (null on the others), and all its logits.
Played play(const RunConfig& config, PromptSource* prompts, const Decided& decided = {});

/// Collective. The config with its shards at such places; those on disk go to `folder`.
RunConfig placed(RunConfig config, const Placement& placement, const std::string& folder);

/// Writes to the directory `to`, which it makes, a checkpoint of float32 values: those that a run
/// with this config multiplies, unpacked where its formats are packed.
void make_unpacked_checkpoint(const RunConfig& config, const std::string& to);

/// What must not differ in one bit: on rank 0.
void expect_same_bits(const RecordingOps::Record& a, const RecordingOps::Record& b,
                      const std::string& what);

}  // namespace zi::test

#include "engine_harness.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "engine/open_model.h"
#include "packing/pack_rows.h"
#include "packing/unpack_rows.h"
#include "zero_infer/error.h"

namespace zi::test {

std::string data_path(const std::string& name) {
  const char* const given = std::getenv("ZI_TEST_DATA");
  return std::string(given != nullptr ? given : ZI_TEST_DATA) + "/" + name;
}

RunConfig test_config(const std::string& model) {
  RunConfig config;
  config.model = model;
  config.quiet = true;
  config.backend = wants_cuda() ? BackendChoice::kCuda : BackendChoice::kCpu;
  config.travel = Travel::kWeights;
  return config;
}

std::string missing_backend(const std::string& model) {
  try {
    make_backend(world(), test_config(model));
    return "";
  } catch (const PeerError&) {
    return "another rank cannot have it";
  } catch (const ConfigError& error) {
    return error.what();
  }
}

std::vector<Placement> placements(std::size_t shard) {
  const std::size_t two = 2 * shard;
  return {{"device", false, false, {}, {}},      {"host", true, false, {}, {}},
          {"nvme", false, true, {}, {}},         {"device+host", true, false, 3 * shard, {}},
          {"device+nvme", false, true, two, {}}, {"device+host+nvme", true, true, two, two}};
}

SharedFolder::SharedFolder() {
  if (world().rank() == 0) {
    std::string name = std::filesystem::temp_directory_path() / "zero-infer-XXXXXX";
    path_ = mkdtemp(name.data());
  }
  path_ = world().broadcast(path_, 0);
}

SharedFolder::~SharedFolder() {
  world().barrier();
  if (world().rank() == 0) std::filesystem::remove_all(path_);
}

namespace {

RecordingOps::Record gather_records(const RecordingOps::Record& mine) {
  std::string bytes;
  const auto put = [&bytes](const void* p, std::size_t n) {
    bytes.append(static_cast<const char*>(p), n);
  };
  for (const auto& [key, row] : mine) {
    const std::uint64_t head[3] = {key.first, key.second, row.size()};
    put(head, sizeof(head));
    put(row.data(), row.size() * sizeof(float));
  }
  RecordingOps::Record all;
  for (const std::string& part : world().gather(bytes, 0)) {
    for (std::size_t at = 0; at < part.size();) {
      std::uint64_t head[3];
      std::memcpy(head, part.data() + at, sizeof(head));
      std::vector<float> row(head[2]);
      std::memcpy(row.data(), part.data() + at + sizeof(head), row.size() * sizeof(float));
      at += sizeof(head) + row.size() * sizeof(float);
      all[{head[0], head[1]}] = std::move(row);
    }
  }
  return all;
}

}  // namespace

RunConfig placed(RunConfig config, const Placement& placement, const std::string& folder) {
  config.cpu_offload = placement.cpu_offload;
  if (placement.nvme) config.nvme_offload_path = folder;
  config.gpu_weight_budget = placement.device_budget;
  config.cpu_weight_budget = placement.host_budget;
  return config;
}

Played play(const RunConfig& config, PromptSource* prompts, const Decided& decided) {
  RecordingOps::Record record;
  Backend backend = make_backend(world(), config);
  backend.ops = std::make_unique<RecordingOps>(*backend.device, std::move(backend.ops), &record);
  Engine engine(world(), std::move(backend), config);
  if (decided.stay_rows) engine.leave_weights_up_to(*decided.stay_rows);
  if (decided.host_shares) engine.share_with_host(*decided.host_shares);
  MemorySink sink;
  Played out;
  out.outcome = engine.generate({.source = prompts,
                                 .sink = &sink,
                                 .lanes = config.batch_size.front(),
                                 .options = engine.generation_options(),
                                 .encode_ahead = true});
  out.plan = engine.plan();
  out.results = std::move(sink.results);
  out.logits = gather_records(record);
  return out;
}

void make_unpacked_checkpoint(const RunConfig& config, const std::string& to) {
  const OpenModel open = open_model(config);
  const ModelSpec& spec = open.model->spec();
  nlohmann::json header;
  std::string data;
  const auto add = [&](const std::vector<TensorSpec>& tensors, const MatrixFormats& formats) {
    for (const TensorSpec& t : tensors) {
      const WeightFormat& format = formats.of(t.name);
      if (header.contains(t.name)) continue;  // a tied head
      std::vector<float> values(static_cast<std::size_t>(t.elements()));
      const bool stored = open.source->packed_format(t.name).has_value();
      if (!stored) open.source->read(t, 0, t.elements(), DType::kFloat32, values.data());
      if (format.packed()) {
        const std::int64_t rows = t.shape[0], cols = t.shape[1];
        std::vector<std::byte> packed(static_cast<std::size_t>(rows) * format.row_bytes(cols));
        if (stored) {
          open.source->read_packed(t, 0, rows, packed.data());
        } else {
          EXPECT_EQ(pack_rows(values.data(), rows, cols, format, packed.data()), rows);
        }
        unpack_rows(packed.data(), rows, cols, format, DType::kFloat32, values.data());
      }
      const std::size_t begin = data.size();
      data.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
      header[t.name] = {
          {"dtype", "F32"}, {"shape", t.shape}, {"data_offsets", {begin, data.size()}}};
    }
  };
  add({spec.embedding}, open.head_format);
  add(spec.head.matrices, open.head_format);
  add(spec.head.vectors, DType::kFloat32);
  add(spec.vectors, DType::kFloat32);
  for (const UnitSpec& block : spec.blocks) {
    add(block.matrices, open.block_formats());
    add(block.vectors, DType::kFloat32);
  }
  std::filesystem::create_directory(to);
  for (const auto& entry : std::filesystem::directory_iterator(open.directory)) {
    const std::string name = entry.path().filename().string();
    if (name.ends_with(".json") && !name.ends_with(".index.json")) {
      std::filesystem::copy(entry.path(), to + "/" + name);
    }
  }
  std::ifstream read(to + "/config.json");
  auto config_json = nlohmann::ordered_json::parse(read);
  config_json.erase("quantization_config");
  std::ofstream(to + "/config.json") << config_json.dump();
  const std::string text = header.dump();
  const std::uint64_t bytes = text.size();
  std::ofstream file(to + "/model.safetensors", std::ios::binary);
  file << std::string(reinterpret_cast<const char*>(&bytes), sizeof bytes) << text << data;
  EXPECT_TRUE(file.flush().good());
}

void expect_same_bits(const RecordingOps::Record& a, const RecordingOps::Record& b,
                      const std::string& what) {
  if (world().rank() != 0) return;
  ASSERT_EQ(a.size(), b.size()) << what;
  for (const auto& [key, row] : a) {
    const auto other = b.find(key);
    ASSERT_NE(other, b.end()) << what;
    ASSERT_EQ(0, std::memcmp(row.data(), other->second.data(), row.size() * sizeof(float)))
        << what << ": prompt " << key.first << ", position " << key.second;
  }
}

}  // namespace zi::test

#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "plan/plan_command.h"

/// What the tests of `zero-infer plan` share.
namespace zi {

inline constexpr std::size_t kGiB = std::size_t{1} << 30;
// 7b1: H = 4096, 30 blocks of 12 H^2 elements, V = 250880; bfloat16.
inline constexpr double kBlocks = 30 * 12.0 * 4096 * 4096 * 2;
inline constexpr double kHead = 250880.0 * 4096 * 2;
inline constexpr double kKv = 491'520;  // of a token

inline std::string shape(const std::string& name) {
  return std::string(ZI_SOURCE_DIR) + "/config/models/bloom-" + name;
}

/// Weights are gathered, unless a test says otherwise.
inline RunConfig run_of(const std::string& name) {
  RunConfig config;
  config.model = shape(name);
  config.travel = Travel::kWeights;
  return config;
}

inline PlanOptions like(const std::string& gpu, std::int64_t ranks = 1) {
  PlanOptions options;
  options.gpus_like = gpu;
  options.ranks = ranks;
  options.host_memory = 1024 * kGiB;
  return options;
}

inline nlohmann::json planned(const RunConfig& config, PlanOptions options) {
  options.json = true;
  return nlohmann::json::parse(plan_text(config, options));
}

inline nlohmann::json link_of(const nlohmann::json& limit, const std::string& name) {
  for (const auto& link : limit.at("links")) {
    if (link.at("link") == name) return link;
  }
  ADD_FAILURE() << "no link " << name << " in " << limit;
  return {{"bytes", 0}, {"operations", 0}, {"seconds", 0}};
}

inline nlohmann::json batch_of(const nlohmann::json& plan, std::int64_t batch) {
  for (const auto& b : plan.at("batches")) {
    if (b.at("batch") == batch) return b;
  }
  ADD_FAILURE() << "no batch " << batch;
  return {};
}

inline std::string advice_of(const nlohmann::json& plan) {
  std::string all;
  for (const auto& line : plan.at("advice")) all += line.get<std::string>() + "\n";
  return all;
}

/// No limits of this machine, whatever was measured on it.
class Plan : public testing::Test {
 protected:
  Plan() {
    std::string name = std::filesystem::temp_directory_path() / "zero-infer-plan-XXXXXX";
    folder_ = mkdtemp(name.data());
    setenv("XDG_CACHE_HOME", folder_.c_str(), 1);
    for (const char* variable : {"OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"}) {
      unsetenv(variable);
    }
  }
  ~Plan() override { std::filesystem::remove_all(folder_); }

  std::string write(const std::string& name, const std::string& text) const {
    const std::string path = folder_ + "/" + name;
    std::ofstream(path) << text;
    return path;
  }
  std::string folder_;
};

}  // namespace zi

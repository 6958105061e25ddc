#pragma once

#include <gtest/gtest.h>

#include <cstddef>
#include <memory>

#include "engine/memory_planner.h"

namespace zi {

/// Plans of bloom-7b1 on GPUs of their own, all on one host: 30 blocks of 384 MiB. With its own
/// vocabulary the head's exchange would take more than those of the blocks.
class GpuPlanTest : public testing::Test {
 protected:
  static constexpr std::size_t kGibibyte = std::size_t{1} << 30;

  explicit GpuPlanTest(int world) {
    ModelConfig c;
    c.family = "bloom";
    c.hidden = 4096;
    c.layers = 30;
    c.heads = c.kv_heads = 32;
    c.head_dim = 128;
    c.ffn = 4 * c.hidden;
    c.vocabulary = 32000;
    model_ = make_model(c, false);
    in_.model = model_.get();
    in_.world = in_.local_size = world;
    in_.device_is_host = false;
    in_.device_free = 80 * kGibibyte;
    in_.host_free = 400 * kGibibyte;
    config_.model = "m";
  }

  std::unique_ptr<Model> model_;
  PlanInput in_;
  RunConfig config_;
};

}  // namespace zi

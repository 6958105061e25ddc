// Where the inputs of a pass lie on the device.

#include "engine/pass_inputs.h"

#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "engine/sequence.h"
#include "zero_infer/backend.h"

namespace zi {
namespace {

struct Places {
  const std::int32_t* row_begin;
  const std::int32_t* context;
  const std::int32_t* block_tables;
  const std::int32_t* logits_rows;
  int max_pages;

  bool operator==(const Places&) const = default;
};

class PassInputsTest : public testing::Test {
 protected:
  static constexpr int kSequences = 3;

  void SetUp() override {
    tokenizer_ = Tokenizer::bytes();
    for (int s = 0; s < kSequences; ++s) {
      sequences_.push_back(std::make_unique<Sequence>(Prompt{}, *tokenizer_));
      sequences_.back()->pages = {7 + s, 3 + s, 11 + s, 5 + s};
    }
  }

  /// A pass that decodes, sequence s after `tokens` + s of them, with so many indices of embedding
  /// rows.
  Places upload(std::int64_t tokens, std::size_t row_indices) {
    std::vector<Chunk> chunks;
    for (int s = 0; s < kSequences; ++s) {
      chunks.push_back({sequences_[static_cast<std::size_t>(s)].get(), tokens + s, 1});
    }
    const std::array<std::int32_t, kSequences> rows = {0, 1, 2};
    std::vector<std::int32_t> indices(row_indices);
    for (std::size_t i = 0; i < indices.size(); ++i)
      indices[i] = static_cast<std::int32_t>(100 + i);
    inputs_.upload(chunks, rows, indices, *stream_);
    stream_->synchronize();
    for (std::size_t i = 0; i < indices.size(); ++i) {
      EXPECT_EQ(inputs_.row_indices()[i], indices[i]);
    }
    const RaggedBatch& batch = inputs_.batch();
    for (int s = 0; s < kSequences; ++s) {
      EXPECT_EQ(batch.row_begin[s], s);
      EXPECT_EQ(batch.context[s], tokens + s + 1);
      EXPECT_EQ(batch.block_tables[s * batch.max_pages],
                sequences_[static_cast<std::size_t>(s)]->pages[0]);
      EXPECT_EQ(inputs_.logits_rows()[s], s);
    }
    return {batch.row_begin, batch.context, batch.block_tables, inputs_.logits_rows(),
            batch.max_pages};
  }

  std::optional<Tokenizer> tokenizer_;
  std::vector<std::unique_ptr<Sequence>> sequences_;
  std::unique_ptr<Device> device_ = make_cpu_device();
  std::unique_ptr<Stream> stream_ = device_->make_stream("compute");
  PassInputs inputs_{*device_, {.lanes = 4, .pass_tokens = 8, .kv_pages = 16, .row_indices = 64}};
};

// A recorded pass reads from where these were when it was recorded.
TEST_F(PassInputsTest, StandInTheSamePlacesHoweverManyEmbeddingRowsAreExchanged) {
  const Places few = upload(40, 5);
  EXPECT_EQ(upload(41, 13), few);
  EXPECT_EQ(upload(50, 64), few) << "as many pages, in powers of two";
  EXPECT_EQ(upload(42, 0), few);
}

}  // namespace
}  // namespace zi

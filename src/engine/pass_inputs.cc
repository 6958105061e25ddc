#include "engine/pass_inputs.h"

#include <algorithm>
#include <bit>

#include "engine/embedding_rows.h"
#include "zero_infer/bytes.h"

namespace zi {

PassInputs::Shape PassInputs::shape_of(const MemoryPlan& plan, const ModelConfig& config) {
  return {.lanes = plan.lanes,
          .pass_tokens = plan.pass_tokens,
          .kv_pages = plan.kv_pages,
          .row_indices = EmbeddingRows::most_indices(EmbeddingRows::shape_of(plan, config))};
}

std::size_t PassInputs::bytes(const Shape& s) {
  // row_begin, context, the wanted rows, those of the embedding, and at most every page once for
  // each lane's row of the table.
  const std::int64_t ints =
      (s.lanes + 1) + s.lanes + s.pass_tokens + s.row_indices + s.lanes * s.kv_pages;
  return align_up(static_cast<std::size_t>(ints) * sizeof(std::int32_t), kPageBytes);
}

PassInputs::PassInputs(Device& device, const Shape& shape)
    : device_(&device),
      shape_(shape),
      host_(device.allocate_pinned(bytes(shape))),
      device_memory_(device.allocate(bytes(shape))) {}

void PassInputs::upload(std::span<const Chunk> chunks, std::span<const std::int32_t> logits_rows,
                        std::span<const std::int32_t> row_indices, Stream& stream) {
  std::size_t max_pages = 0;
  for (const Chunk& c : chunks) {
    const auto pages = ceil_div(c.first + c.count, kKvPageTokens);
    max_pages = std::max(max_pages, static_cast<std::size_t>(pages));
  }
  // A power of two, so that passes of one shape keep the same places while sequences grow.
  max_pages = std::min(std::bit_ceil(max_pages), static_cast<std::size_t>(shape_.kv_pages));
  const std::size_t sequences = chunks.size();
  std::int32_t* const row_begin = host_.as<std::int32_t>();
  std::int32_t* const context = row_begin + sequences + 1;
  std::int32_t* const rows = context + sequences;
  std::int32_t* const tables = rows + logits_rows.size();
  // Last: in a world of many, passes of one shape have more or fewer of these.
  std::int32_t* const embedding = tables + sequences * max_pages;
  std::int32_t row = 0;
  for (std::size_t s = 0; s < sequences; ++s) {
    const Chunk& c = chunks[s];
    row_begin[s] = row;
    row += static_cast<std::int32_t>(c.count);
    context[s] = static_cast<std::int32_t>(c.first + c.count);
    const auto used = static_cast<std::size_t>(ceil_div(context[s], kKvPageTokens));
    std::int32_t* const table = tables + s * max_pages;
    std::copy_n(c.sequence->pages.begin(), used, table);
    std::fill(table + used, table + max_pages, 0);
  }
  row_begin[sequences] = row;
  std::ranges::copy(logits_rows, rows);
  std::ranges::copy(row_indices, embedding);

  const auto int_count = static_cast<std::size_t>(embedding - row_begin) + row_indices.size();
  device_->copy(device_memory_.data(), host_.data(), int_count * sizeof(std::int32_t), stream);

  const std::int32_t* const base = device_memory_.as<std::int32_t>();
  logits_rows_at_ = static_cast<std::size_t>(rows - row_begin);
  row_indices_at_ = static_cast<std::size_t>(embedding - row_begin);
  batch_ = {.tokens = row,
            .sequences = static_cast<int>(sequences),
            .row_begin = base,
            .context = base + (context - row_begin),
            .block_tables = base + (tables - row_begin),
            .max_pages = static_cast<int>(max_pages),
            .host_row_begin = {row_begin, sequences + 1},
            .host_context = {context, sequences}};
}

}  // namespace zi

#include "engine/pass_inputs.h"

#include <algorithm>
#include <bit>

#include "zero_infer/bytes.h"

namespace zi {
namespace {

std::size_t embedding_bytes(const PassInputs::Shape& s) {
  return align_up(static_cast<std::size_t>(s.pass_tokens) * s.embedding_row_bytes, kPageBytes);
}

}  // namespace

PassInputs::Shape PassInputs::shape_of(const MemoryPlan& plan, const ModelConfig& config) {
  return {
      .lanes = plan.lanes,
      .pass_tokens = plan.pass_tokens,
      .kv_pages = plan.kv_pages,
      .embedding_row_bytes = static_cast<std::size_t>(config.hidden) * size_of(plan.weight_dtype)};
}

std::size_t PassInputs::bytes(const Shape& s) {
  // row_begin, context, the wanted rows, the ids, and at most every page once for each lane's row
  // of the table.
  const std::int64_t ints = (s.lanes + 1) + s.lanes + 2 * s.pass_tokens + s.lanes * s.kv_pages;
  return embedding_bytes(s) +
         align_up(static_cast<std::size_t>(ints) * sizeof(std::int32_t), kPageBytes);
}

PassInputs::PassInputs(Device& device, const Shape& shape)
    : device_(&device),
      shape_(shape),
      host_(device.allocate_pinned(bytes(shape))),
      device_memory_(device.allocate(bytes(shape))) {}

std::int32_t* PassInputs::ints(const Buffer& buffer) const {
  return reinterpret_cast<std::int32_t*>(buffer.data() + embedding_bytes(shape_));
}

void PassInputs::upload(std::span<const Chunk> chunks, std::span<const std::int32_t> logits_rows,
                        std::span<const std::int32_t> ids, Stream& stream) {
  std::size_t max_pages = 0;
  for (const Chunk& c : chunks) {
    const auto pages = ceil_div(c.first + c.count, kKvPageTokens);
    max_pages = std::max(max_pages, static_cast<std::size_t>(pages));
  }
  // A power of two, so that passes of one shape keep the same places while sequences grow.
  max_pages = std::min(std::bit_ceil(max_pages), static_cast<std::size_t>(shape_.kv_pages));
  const std::size_t sequences = chunks.size();
  std::int32_t* const row_begin = ints(host_);
  std::int32_t* const context = row_begin + sequences + 1;
  std::int32_t* const rows = context + sequences;
  std::int32_t* const own_ids = rows + logits_rows.size();
  std::int32_t* const tables = own_ids + ids.size();
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
  std::ranges::copy(ids, own_ids);

  const std::size_t head = embedding_bytes(shape_);
  const auto int_count = static_cast<std::size_t>(tables + sequences * max_pages - row_begin);
  if (ids.empty()) {
    device_->copy(device_memory_.data(), host_.data(),
                  static_cast<std::size_t>(row) * shape_.embedding_row_bytes, stream);
  }
  device_->copy(device_memory_.data() + head, host_.data() + head, int_count * sizeof(std::int32_t),
                stream);

  const std::int32_t* const base = ints(device_memory_);
  logits_rows_at_ = static_cast<std::size_t>(rows - row_begin);
  ids_at_ = static_cast<std::size_t>(own_ids - row_begin);
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

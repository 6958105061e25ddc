#include "exchange_check.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "zero_infer/error.h"

namespace zi {
namespace {

constexpr int kChecked = 3;

}  // namespace

std::byte* ExchangeCheck::Numbers::at(int exchange) const {
  return device.data() + static_cast<std::size_t>(exchange) * bytes();
}

ExchangeCheck::Numbers ExchangeCheck::make(Device& device, std::size_t each) {
  return {device.allocate(kChecked * each * sizeof(Number)), std::vector<Number>(kChecked * each),
          each};
}

ExchangeCheck::ExchangeCheck(RankGroup& ranks, Device& device, std::int64_t rows,
                             std::int64_t hidden, std::int64_t columns)
    : ranks_(&ranks),
      device_(&device),
      rows_(rows),
      hidden_(static_cast<std::size_t>(hidden) * size_of(DType::kBFloat16) / sizeof(Number)),
      slice_(columns / ranks.size()) {
  part_ = static_cast<std::size_t>(slice_) * sizeof(float) / sizeof(Number);
  const auto own = static_cast<std::size_t>(rows);
  const std::size_t all = own * static_cast<std::size_t>(ranks.size());
  ranks.all_or_none([&] {
    inputs_ = make(device, own * hidden_);
    gathered_ = make(device, all * hidden_);
    parts_ = make(device, all * part_);
    results_ = make(device, all * part_);
  });
}

void ExchangeCheck::enqueue(RowExchange& exchange, Stream& compute) {
  const std::array slices = {slice_};
  for (int k = 0; k < kChecked; ++k) {
    const RowExchange::Product product{inputs_.at(k), hidden_ * sizeof(Number), results_.at(k),
                                       DType::kFloat32, slices};
    exchange.run(
        product, rows_,
        [&](const std::byte* inputs, std::int64_t, std::byte* parts) {
          device_->copy(gathered_.at(k), inputs, gathered_.bytes(), compute);
          device_->copy(parts, parts_.at(k), parts_.bytes(), compute);
        },
        compute);
  }
}

ExchangeCheck::Number ExchangeCheck::number(bool input, int rank, int exchange,
                                            std::size_t i) const {
  const std::uint64_t series = ((runs_ * kChecked + static_cast<std::uint64_t>(exchange)) * 64 +
                                static_cast<std::uint64_t>(rank)) *
                                   2 +
                               (input ? 1 : 0);
  return static_cast<Number>(((i + 1) * 0x9E3779B97F4A7C15 ^ series * 0xD1B54A32D192ED03) >> 32);
}

void ExchangeCheck::run(const std::string& way, const std::function<void()>& enqueued,
                        Stream& compute) {
  ++runs_;
  for (const bool input : {true, false}) {
    Numbers& numbers = input ? inputs_ : parts_;
    for (int k = 0; k < kChecked; ++k) {
      Number* const of = numbers.host.data() + static_cast<std::size_t>(k) * numbers.each;
      for (std::size_t i = 0; i < numbers.each; ++i) of[i] = number(input, ranks_->rank(), k, i);
    }
    device_->copy(numbers.device.data(), numbers.host.data(), kChecked * numbers.bytes(), compute);
  }
  compute.synchronize();
  ranks_->barrier();
  enqueued();
  for (Numbers* numbers : {&gathered_, &results_}) {
    device_->copy(numbers->host.data(), numbers->device.data(), kChecked * numbers->bytes(),
                  compute);
  }
  compute.synchronize();
  ranks_->all_or_none([&] { compare(way); });
}

void ExchangeCheck::compare(const std::string& way) const {
  const auto wrong = [&](const char* what, int exchange, int from, std::size_t row) {
    throw Error(fmt::format("{}: exchange {} brought wrong {} of rank {}, row {}", way, exchange,
                            what, from, row));
  };
  const auto rows = static_cast<std::size_t>(rows_);
  const auto world = static_cast<std::size_t>(ranks_->size());
  const std::size_t first = static_cast<std::size_t>(ranks_->rank()) * rows;  // of the own rows
  for (int k = 0; k < kChecked; ++k) {
    const auto round = static_cast<std::size_t>(k);
    for (std::size_t from = 0; from < world; ++from) {
      const int rank = static_cast<int>(from);
      for (std::size_t row = 0; row < rows; ++row) {
        const Number* const inputs =
            gathered_.host.data() + round * gathered_.each + (from * rows + row) * hidden_;
        for (std::size_t i = 0; i < hidden_; ++i) {
          if (inputs[i] != number(true, rank, k, row * hidden_ + i)) wrong("inputs", k, rank, row);
        }
        const Number* const results =
            results_.host.data() + round * results_.each + (row * world + from) * part_;
        for (std::size_t i = 0; i < part_; ++i) {
          if (results[i] != number(false, rank, k, (first + row) * part_ + i)) {
            wrong("results", k, rank, row);
          }
        }
      }
    }
  }
}

}  // namespace zi

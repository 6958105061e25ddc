#include "content_samples.h"

#include <xxhash.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <exception>
#include <mutex>
#include <string_view>
#include <system_error>
#include <thread>

#include "zero_infer/random.h"

namespace zi {
namespace {

/// Raised whenever the same weights get another hash: each shard file is then written again.
constexpr std::uint64_t kVersion = 1;

std::uint64_t hash_of(std::string_view text) { return XXH3_64bits(text.data(), text.size()); }

/// One read, and the hash of what it gave.
struct Sample {
  std::size_t tensor = 0;  // index
  std::uint64_t offset = 0;
  std::size_t bytes = 0;
  std::uint64_t hash = 0;
};

/// Reads and hashes the samples, several at a time.
class SampleReader {
 public:
  SampleReader(const std::vector<TensorInFile>& tensors, std::vector<Sample>& samples)
      : tensors_(tensors), samples_(samples) {}

  void read(int threads) {
    {
      std::vector<std::jthread> helpers;
      try {
        for (int i = 1; i < threads; ++i) {
          helpers.emplace_back([this] { work(); });
        }
      } catch (const std::system_error&) {
        // Those that there are share the work.
      }
      work();
    }  // joins
    if (failure_) std::rethrow_exception(failure_);
  }

 private:
  void work() {
    try {
      std::vector<char> bytes(kMostSamples * kSampleBytes);
      for (std::size_t i = next_++; i < samples_.size(); i = next_++) {
        Sample& sample = samples_[i];
        const TensorInFile& of = tensors_[sample.tensor];
        of.file->read(of.tensor->begin + sample.offset, bytes.data(), sample.bytes);
        sample.hash = hash_of({bytes.data(), sample.bytes});
      }
    } catch (...) {
      next_ = samples_.size();  // the others stop after their current read
      const std::lock_guard lock(mutex_);
      if (!failure_) failure_ = std::current_exception();
    }
  }

  const std::vector<TensorInFile>& tensors_;
  std::vector<Sample>& samples_;
  std::atomic<std::size_t> next_ = 0;
  std::mutex mutex_;  // guards the failure
  std::exception_ptr failure_;
};

std::vector<Sample> samples_of(const std::vector<TensorInFile>& tensors) {
  const std::size_t each = samples_of_each(tensors.size());
  std::vector<Sample> samples;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const std::uint64_t bytes = tensors[i].tensor->end - tensors[i].tensor->begin;
    if (bytes <= each * kSampleBytes) {
      if (bytes > 0) samples.push_back({i, 0, static_cast<std::size_t>(bytes)});
      continue;
    }
    for (const std::uint64_t offset : sample_offsets(tensors[i].name, bytes, each)) {
      samples.push_back({i, offset, kSampleBytes});
    }
  }
  return samples;
}

}  // namespace

std::size_t samples_of_each(std::size_t tensors) {
  return std::clamp(kSampleReads / std::max<std::size_t>(tensors, 1), kFewestSamples, kMostSamples);
}

std::vector<std::uint64_t> sample_offsets(const std::string& name, std::uint64_t bytes,
                                          std::size_t samples) {
  const std::uint64_t part = bytes / samples;  // at least a sample
  const std::uint64_t key = hash_of(name);
  std::vector<std::uint64_t> offsets = {0};
  for (std::uint64_t i = 1; i + 1 < samples; ++i) {
    offsets.push_back(i * part + random_bits(kVersion, key, i) % (part - kSampleBytes + 1));
  }
  offsets.push_back(bytes - kSampleBytes);
  return offsets;
}

std::uint64_t sampled_content(std::vector<TensorInFile> tensors, int threads) {
  std::ranges::sort(tensors, {}, &TensorInFile::name);
  std::vector<Sample> samples = samples_of(tensors);
  SampleReader(tensors, samples).read(threads);

  std::vector<std::uint64_t> facts = {kVersion, tensors.size()};
  for (const TensorInFile& of : tensors) {
    facts.push_back(hash_of(of.name));
    facts.push_back(hash_of(of.tensor->dtype));
    facts.push_back(of.tensor->shape.size());
    for (const std::int64_t extent : of.tensor->shape) {
      facts.push_back(static_cast<std::uint64_t>(extent));
    }
    facts.push_back(of.tensor->end - of.tensor->begin);
  }
  for (const Sample& sample : samples) facts.push_back(sample.hash);
  return XXH3_64bits(facts.data(), facts.size() * sizeof(facts.front()));
}

}  // namespace zi

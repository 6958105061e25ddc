#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <ostream>
#include <random>
#include <string>
#include <vector>

#include "reference_ops.h"
#include "zero_infer/backend.h"

/// What the tests of the ops share: the backends, guarded outputs, tolerances.
namespace zi {

/// One backend under test. `exact`: a row's bits must not depend on the other rows.
struct OpsBackend {
  std::string name;
  bool exact;
  std::function<std::unique_ptr<Device>()> device;
  std::function<std::unique_ptr<Ops>(Device&)> ops;
  std::string missing;  // why this machine cannot run it; empty: it can
};

inline void PrintTo(const OpsBackend& backend, std::ostream* out) { *out << backend.name; }

/// The backends of this test program: ops_backends_cpu.cc or ops_backends_cuda.cc.
std::vector<OpsBackend> backends();

inline constexpr std::byte kGuard{0xa5};
inline constexpr std::size_t kGuardBytes = 256;

struct OpsTest : ::testing::TestWithParam<OpsBackend> {
  std::unique_ptr<Device> device;
  std::unique_ptr<Ops> ops;
  std::unique_ptr<Stream> stream;
  std::mt19937 random{42};

  void SetUp() override {
    if (!GetParam().missing.empty()) GTEST_SKIP() << GetParam().missing;
    device = GetParam().device();
    ops = GetParam().ops(*device);
    stream = device->make_stream("ops");
  }

  /// Device memory with these bytes.
  template <typename T>
  Buffer upload(const std::vector<T>& values) {
    Buffer buffer = device->allocate(std::max<std::size_t>(values.size() * sizeof(T), 1));
    device->copy(buffer.data(), values.data(), values.size() * sizeof(T), *stream);
    stream->synchronize();
    return buffer;
  }

  /// Runs `op` on an output of `bytes` between guard bytes and returns what it wrote.
  std::vector<std::byte> run(std::size_t bytes, const std::function<void(std::byte*)>& op) {
    std::vector<std::byte> host(bytes + 2 * kGuardBytes, kGuard);
    Buffer buffer = upload(host);
    op(buffer.data() + kGuardBytes);
    device->copy(host.data(), buffer.data(), host.size(), *stream);
    stream->synchronize();
    for (std::size_t i = 0; i < kGuardBytes; ++i) {
      EXPECT_EQ(host[i], kGuard) << "byte " << i << " in front of the output was changed";
      EXPECT_EQ(host[host.size() - 1 - i], kGuard) << "byte after the output was changed";
    }
    return {host.begin() + kGuardBytes, host.end() - kGuardBytes};
  }

  std::vector<float> floats(std::int64_t count, float scale = 1) {
    std::normal_distribution<float> normal(0, scale);
    std::vector<float> values(static_cast<std::size_t>(count));
    for (float& v : values) v = normal(random);
    return values;
  }
};

inline std::vector<std::byte> as(const std::vector<float>& values, DType dtype) {
  std::vector<std::byte> bytes(values.size() * size_of(dtype));
  convert(values.data(), DType::kFloat32, bytes.data(), dtype, values.size());
  return bytes;
}

/// Half a unit in the last place of a type, relative: what storing a result may lose.
inline double rounding(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return std::ldexp(1.0, -24);
    case DType::kFloat16:
      return std::ldexp(1.0, -11);
    case DType::kBFloat16:
      return std::ldexp(1.0, -8);
  }
  return 0;
}

/// |got - want| <= absolute + relative * |want|, with the rounding of the output's type.
inline void expect_near(const std::vector<std::byte>& got, DType dtype,
                        const std::vector<double>& want, double relative, double absolute) {
  const auto values = test::to_doubles(got.data(), dtype, static_cast<std::int64_t>(want.size()));
  for (std::size_t i = 0; i < want.size(); ++i) {
    ASSERT_NEAR(values[i], want[i], absolute + (relative + rounding(dtype)) * std::abs(want[i]))
        << "element " << i;
  }
}

inline constexpr DType kDTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};

inline std::string backend_name(const ::testing::TestParamInfo<OpsBackend>& info) {
  return info.param.name;
}

}  // namespace zi

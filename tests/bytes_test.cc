#include "zero_infer/bytes.h"

#include <gtest/gtest.h>

#include <string>

#include "zero_infer/error.h"

namespace zi {
namespace {

TEST(ParseSize, ReadsBinaryUnitsAsPowersOf1024) {
  EXPECT_EQ(parse_size("24GiB"), std::size_t{24} << 30);
  EXPECT_EQ(parse_size("512 MiB"), std::size_t{512} << 20);
  EXPECT_EQ(parse_size("3KiB"), 3072u);
  EXPECT_EQ(parse_size("2TiB"), std::size_t{2} << 40);
  EXPECT_EQ(parse_size("0.5GiB"), std::size_t{1} << 29);
}

TEST(ParseRate, ReadsBytesAndBitsASecond) {
  EXPECT_EQ(parse_rate("25GB/s"), 25e9);
  EXPECT_EQ(parse_rate("1.5 GiB/s"), 1.5 * (1 << 30));
  EXPECT_EQ(parse_rate("200Gbit/s"), 25e9);
  EXPECT_EQ(parse_rate("200 Gbit/s "), 25e9);
  EXPECT_EQ(parse_rate("100Mbit/s"), 12.5e6);
  for (const char* text : {"", "abc", "0", "0GB/s", "25", "25GB", "25 GB/", "GB/s", "-1GB/s",
                           "25Gb/s", "25GB/h", "25GB/s/s", "200Gbit", "200GiBbit/s", "inf/s"}) {
    EXPECT_THROW(parse_rate(text), ConfigError) << text;
  }
}

TEST(ParseSize, ReadsABareLetterAsABinaryUnit) {
  EXPECT_EQ(parse_size("1K"), 1024u);
  EXPECT_EQ(parse_size("1k"), 1024u);
  EXPECT_EQ(parse_size("1M"), std::size_t{1} << 20);
  EXPECT_EQ(parse_size("24G"), std::size_t{24} << 30);
  EXPECT_EQ(parse_size("1T"), std::size_t{1} << 40);
}

TEST(ParseSize, ReadsDecimalUnitsAsPowersOf1000) {
  EXPECT_EQ(parse_size("1kB"), 1000u);
  EXPECT_EQ(parse_size("1.5GB"), 1500000000u);
  EXPECT_EQ(parse_size("2MB"), 2000000u);
  EXPECT_EQ(parse_size("1TB"), 1000000000000u);
}

TEST(ParseSize, ReadsPlainBytesAndZero) {
  EXPECT_EQ(parse_size("4096"), 4096u);
  EXPECT_EQ(parse_size("4096B"), 4096u);
  EXPECT_EQ(parse_size("0"), 0u);
  EXPECT_EQ(parse_size(" 7 "), 7u);
}

TEST(ParseSize, TakesUnitsInAnyCase) {
  EXPECT_EQ(parse_size("1gib"), std::size_t{1} << 30);
  EXPECT_EQ(parse_size("1GIB"), std::size_t{1} << 30);
  EXPECT_EQ(parse_size("1mb"), 1000000u);
}

TEST(ParseSize, RefusesWhatIsNoSize) {
  for (const char* text : {"", " ", "GiB", "x", "-1", "-1GiB", "+1", "1.5.2G", "1e9", "0x10", "nan",
                           "inf", "12PiB", "1GiBs", "1 G iB", "24GiB24", "1,5GB"}) {
    EXPECT_THROW(parse_size(text), ConfigError) << text;
  }
}

TEST(ParseSize, RefusesMoreThanTwoToThe62) {
  EXPECT_EQ(parse_size("4194304TiB"), std::size_t{1} << 62);
  EXPECT_THROW(parse_size("4194305TiB"), ConfigError);
  EXPECT_THROW(parse_size("9223372036854775808"), ConfigError);
  EXPECT_THROW(parse_size(std::string(400, '9')), ConfigError);
}

TEST(ParseSize, NamesTheTextAndAnExampleInItsMessage) {
  try {
    parse_size("3Q");
    FAIL();
  } catch (const ConfigError& error) {
    EXPECT_NE(std::string(error.what()).find("`3Q`"), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("24GiB"), std::string::npos) << error.what();
  }
}

TEST(FormatBytes, KeepsThreeDigitsInDecimalUnits) {
  EXPECT_EQ(format_bytes(0), "0 B");
  EXPECT_EQ(format_bytes(512), "512 B");
  EXPECT_EQ(format_bytes(999), "999 B");
  EXPECT_EQ(format_bytes(1000), "1.00 kB");
  EXPECT_EQ(format_bytes(25.2e6), "25.2 MB");
  EXPECT_EQ(format_bytes(402.8e6), "403 MB");
  EXPECT_EQ(format_bytes(4.933e9), "4.93 GB");
  EXPECT_EQ(format_bytes(2.5e15), "2500 TB");
}

TEST(FormatBytes, KeepsThreeDigitsWhereRoundingAddsOne) {
  EXPECT_EQ(format_bytes(9.996e6), "10.0 MB");
  EXPECT_EQ(format_bytes(99.96e6), "100 MB");
  EXPECT_EQ(format_bytes(999.7e6), "1.00 GB");
  EXPECT_EQ(format_bytes(999.6), "1.00 kB");
}

TEST(FormatMemory, UsesBinaryUnits) {
  EXPECT_EQ(format_memory(24.0 * (1 << 30)), "24.0 GiB");
  EXPECT_EQ(format_memory(1023), "1023 B");
  EXPECT_EQ(format_memory(1024), "1.00 KiB");
  EXPECT_EQ(format_memory(1023.0 * (1 << 20)), "1023 MiB");
  EXPECT_EQ(format_memory(1023.9 * (1 << 20)), "1.00 GiB");
}

TEST(AlignUp, GivesTheNextMultiple) {
  EXPECT_EQ(align_up(0, 256), 0u);
  EXPECT_EQ(align_up(1, 256), 256u);
  EXPECT_EQ(align_up(256, 256), 256u);
  EXPECT_EQ(align_up(4097, kPageBytes), 8192u);
}

TEST(CeilDiv, RoundsUp) {
  EXPECT_EQ(ceil_div(0, 3), 0);
  EXPECT_EQ(ceil_div(9, 3), 3);
  EXPECT_EQ(ceil_div(10, 3), 4);
}

}  // namespace
}  // namespace zi

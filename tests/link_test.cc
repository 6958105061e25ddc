#include "base/link.h"

#include <gtest/gtest.h>

#include <set>
#include <string_view>

namespace zi {
namespace {

TEST(Link, HasANameAndAKeyOfItsOwn) {
  std::set<std::string_view> names;
  std::set<std::string_view> keys;
  for (const Link link : kLinks) {
    names.insert(name_of(link));
    keys.insert(key_of(link));
  }
  EXPECT_EQ(names, (std::set<std::string_view>{"gather", "network", "copy", "nvme read",
                                               "device memory", "host memory", "products"}));
  EXPECT_EQ(keys, (std::set<std::string_view>{"gather", "network", "copy", "read", "device_memory",
                                              "host_memory", "weights"}));
}

TEST(PerLink, HoldsAValueForEachLinkZeroAtFirst) {
  PerLink<double> seconds;
  EXPECT_EQ(seconds.sum(), 0);
  double value = 1;
  for (const Link link : kLinks) seconds[link] = value++;
  EXPECT_EQ(seconds[kLinks.front()], 1);
  EXPECT_EQ(seconds[kLinks.back()], 7);
  EXPECT_EQ(seconds.sum(), 28);
}

TEST(PerLink, AddsAndScalesLinkByLink) {
  PerLink<double> one, other;
  one[Link::kCopy] = 2;
  other[Link::kCopy] = 3;
  other[Link::kGather] = 7;
  one += other;
  one *= 0.5;
  EXPECT_EQ(one[Link::kCopy], 2.5);
  EXPECT_EQ(one[Link::kGather], 3.5);
  EXPECT_EQ(one.sum(), 6);
}

}  // namespace
}  // namespace zi

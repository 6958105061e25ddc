#include "base/link.h"

namespace zi {
namespace {

struct Words {
  std::string_view name;
  std::string_view key;
};

Words words_of(Link link) {
  switch (link) {
    case Link::kGather:
      return {"gather", "gather"};
    case Link::kNetwork:
      return {"network", "network"};
    case Link::kCopy:
      return {"copy", "copy"};
    case Link::kRead:
      return {"nvme read", "read"};
    case Link::kDeviceMemory:
      return {"device memory", "device_memory"};
    case Link::kHostMemory:
      return {"host memory", "host_memory"};
    case Link::kProducts:
      return {"products", "weights"};
  }
  return {};
}

}  // namespace

std::string_view name_of(Link link) { return words_of(link).name; }
std::string_view key_of(Link link) { return words_of(link).key; }

}  // namespace zi

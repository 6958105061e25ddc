#include "offload/unit_timer.h"

#include <fmt/format.h>

#include "zero_infer/error.h"

namespace zi {

void UnitTimer::start(Device& device, std::size_t units) {
  begun_ = 0;
  passes_.clear();
  passes_.resize(2);
  for (Pass& pass : passes_) {
    for (std::size_t u = 0; u < units; ++u) {
      pass.units.push_back({device.make_event(), device.make_event(), device.make_event(), {}});
    }
  }
}

UnitTimer::Events* UnitTimer::events(int unit) {
  if (!on()) return nullptr;
  return &passes_[(begun_ - 1) % passes_.size()].units[static_cast<std::size_t>(unit)];
}

const UnitTimer::Pass& UnitTimer::pass(std::uint64_t number) const {
  if (number >= begun_ || number + passes_.size() < begun_) {
    throw Error(fmt::format("the times of pass {} are not kept", number));
  }
  return passes_[number % passes_.size()];
}

}  // namespace zi

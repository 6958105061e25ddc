#include "ops_fixture.h"

namespace zi {

std::vector<OpsBackend> backends() {
  return {
      {"cpu", true, [] { return make_cpu_device(); }, [](Device&) { return make_cpu_ops(2); }, ""},
      {"cpu1", true, [] { return make_cpu_device(); }, [](Device&) { return make_cpu_ops(1); }, ""},
  };
}

}  // namespace zi

#include <fmt/format.h>
#include <hwloc.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <string>

#include "backend/host/cgroup.h"
#include "zero_infer/backend.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

struct TopologyDeleter {
  void operator()(hwloc_topology_t topology) const { hwloc_topology_destroy(topology); }
};
using Topology = std::unique_ptr<hwloc_topology, TopologyDeleter>;

struct BitmapDeleter {
  void operator()(hwloc_bitmap_t bitmap) const { hwloc_bitmap_free(bitmap); }
};
using Bitmap = std::unique_ptr<hwloc_bitmap_s, BitmapDeleter>;

Topology load_topology() {
  hwloc_topology_t raw = nullptr;
  if (hwloc_topology_init(&raw) != 0) throw Error("hwloc_topology_init failed: out of memory?");
  Topology topology(raw);
  if (hwloc_topology_load(raw) != 0) {
    throw Error("hwloc could not read this machine's cores; set OMP_NUM_THREADS");
  }
  return topology;
}

int count_cores(hwloc_topology_t topology, hwloc_const_cpuset_t set) {
  const int cores = hwloc_get_nbobjs_inside_cpuset_by_type(topology, set, HWLOC_OBJ_CORE);
  // A process bound to one hyperthread of a core has no whole core; some virtual machines show no
  // cores at all.
  return cores > 0 ? cores : std::max(1, hwloc_bitmap_weight(set));
}

/// OMP_NUM_THREADS: `4`, or `4,1` for nested levels; 0 when it is not set.
int threads_from_environment() {
  const char* text = std::getenv("OMP_NUM_THREADS");
  if (text == nullptr || *text == '\0') return 0;
  char* end = nullptr;
  const long threads = std::strtol(text, &end, 10);
  if (end == text || (*end != '\0' && *end != ',') || threads < 1 || threads > 4096) {
    throw ConfigError(
        fmt::format("OMP_NUM_THREADS is `{}`; set it to a number of threads from 1 to 4096", text));
  }
  return static_cast<int>(threads);
}

}  // namespace

int threads_per_rank(int local_size) {
  if (local_size < 1) throw ConfigError(fmt::format("{} ranks on this host", local_size));
  if (const int threads = threads_from_environment(); threads > 0) return threads;

  const Topology topology = load_topology();
  const hwloc_const_cpuset_t allowed = hwloc_topology_get_allowed_cpuset(topology.get());
  const int machine = count_cores(topology.get(), allowed);
  int threads = std::max(1, machine / local_size);

  // A binding is an upper limit. It may be shared (mpirun binds more than two ranks to sockets), so
  // the rank's share of the machine stays one, too.
  const Bitmap bound(hwloc_bitmap_alloc());
  if (bound && hwloc_get_cpubind(topology.get(), bound.get(), HWLOC_CPUBIND_PROCESS) == 0) {
    hwloc_bitmap_and(bound.get(), bound.get(), allowed);
    if (hwloc_bitmap_weight(bound.get()) > 0) {
      threads = std::min(threads, count_cores(topology.get(), bound.get()));
    }
  }
  const double quota = read_cgroup_limits().cpus / local_size;
  if (quota < threads) threads = std::max(1, static_cast<int>(std::floor(quota)));
  return threads;
}

}  // namespace zi

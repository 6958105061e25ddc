#include "backend/host/numa_node.h"

#include <hwloc.h>

#include <memory>

namespace zi {
namespace {

/// The host's topology, loaded once and not changed afterwards; null where it cannot be read.
hwloc_topology_t topology() {
  struct Owner {
    Owner() {
      if (hwloc_topology_init(&topology) != 0) topology = nullptr;
      if (topology != nullptr && hwloc_topology_load(topology) != 0) {
        hwloc_topology_destroy(topology);
        topology = nullptr;
      }
    }
    ~Owner() {
      if (topology != nullptr) hwloc_topology_destroy(topology);
    }
    hwloc_topology_t topology = nullptr;
  };
  static const Owner owner;
  return owner.topology;
}

/// Null where it is no matter of choice.
hwloc_obj_t node_of(int numa_node) {
  const hwloc_topology_t host = topology();
  if (host == nullptr || numa_node < 0) return nullptr;
  if (hwloc_get_nbobjs_by_type(host, HWLOC_OBJ_NUMANODE) < 2) return nullptr;
  return hwloc_get_numanode_obj_by_os_index(host, static_cast<unsigned>(numa_node));
}

struct FreeBitmap {
  void operator()(hwloc_bitmap_t bitmap) const { hwloc_bitmap_free(bitmap); }
};
using OwnedBitmap = std::unique_ptr<hwloc_bitmap_s, FreeBitmap>;

/// The node's processors that this process may use; null where that is no matter of choice.
OwnedBitmap usable_processors(int numa_node) {
  const hwloc_obj_t node = node_of(numa_node);
  if (node == nullptr) return nullptr;
  OwnedBitmap set(hwloc_bitmap_alloc());
  if (!set || hwloc_get_cpubind(topology(), set.get(), HWLOC_CPUBIND_PROCESS) != 0) return nullptr;
  hwloc_bitmap_and(set.get(), set.get(), node->cpuset);
  hwloc_bitmap_and(set.get(), set.get(), hwloc_topology_get_allowed_cpuset(topology()));
  return hwloc_bitmap_iszero(set.get()) ? nullptr : std::move(set);
}

}  // namespace

void prefer_node(void* data, std::size_t bytes, int numa_node) {
  const hwloc_obj_t node = node_of(numa_node);
  if (node == nullptr) return;
  hwloc_set_area_membind(topology(), data, bytes, node->nodeset, HWLOC_MEMBIND_BIND,
                         HWLOC_MEMBIND_BYNODESET);
}

void bind_thread_to_node(int numa_node) {
  const OwnedBitmap set = usable_processors(numa_node);
  if (set) hwloc_set_cpubind(topology(), set.get(), HWLOC_CPUBIND_THREAD);
}

int cores_of_node(int numa_node) {
  const OwnedBitmap set = usable_processors(numa_node);
  if (!set) return 0;
  const int cores = hwloc_get_nbobjs_inside_cpuset_by_type(topology(), set.get(), HWLOC_OBJ_CORE);
  return cores > 0 ? cores : hwloc_bitmap_weight(set.get());
}

}  // namespace zi

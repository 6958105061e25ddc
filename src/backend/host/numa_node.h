#pragma once

#include <cstddef>

namespace zi {

/// The host's NUMA nodes, by the system's numbers. All of this are hints: where there is only one
/// node, none of that number (-1 is none), or the system refuses, nothing happens.

/// Asks for pages of this node.
void prefer_node(void* data, std::size_t bytes, int numa_node);

/// Keeps the calling thread on the node's cores.
void bind_thread_to_node(int numa_node);

/// The node's cores that this process may use; 0: not known.
int cores_of_node(int numa_node);

}  // namespace zi

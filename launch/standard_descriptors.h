#pragma once

namespace zi {

/// Which standard descriptors were closed when the program started, as `<&-` and `>&-` leave them;
/// the input also where mpirun has none to pass on.
struct ClosedDescriptors {
  bool input = false;
  bool output = false;
};

/// Opens /dev/null in place of descriptors 0, 1 and 2 that are closed. Call it before anything is
/// opened: otherwise a library's socket or a file of results gets the number, and code that reads
/// standard input or writes standard error would use it. Reads then find the end at once, and
/// writes to standard output fail as they would have.
ClosedDescriptors fill_standard_descriptors();

}  // namespace zi

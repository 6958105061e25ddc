#pragma once

namespace zi {

/// From now on, the first SIGINT or SIGTERM is remembered instead of ending the process; a second
/// one ends it.
void catch_stop_signals();

/// The signal that was received, or 0.
int stop_signal();

}  // namespace zi

//! The limit of every wait.

use std::time::Duration;

/// The limit of a wait: longer than any step takes on two busy cores.
pub const LIMIT: Duration = Duration::from_secs(90);

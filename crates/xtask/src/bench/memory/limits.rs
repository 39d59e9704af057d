//! What the measurements of workers and of the API have in common.

use std::time::Duration;

/// One MiB in bytes.
pub(super) const MIB: u64 = 1 << 20;

/// A container's limit is at least so many times the largest measured number.
pub(super) const MARGIN: f64 = 1.25;

/// Timeout of a load.
pub(super) const LIMIT: Duration = Duration::from_secs(120);

/// How long an idle worker is watched: two counts of the queues, several sweeps for closes.
pub(super) const IDLE: Duration = Duration::from_secs(12);

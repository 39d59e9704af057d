//! Times as answers show them.

use chrono::{DateTime, Utc};
use domain::time::Timestamp;

/// A stored time. One that something else stored and that is out of range is clamped.
pub(crate) fn time(at: DateTime<Utc>) -> Timestamp {
    let is_early = at < DateTime::from(Timestamp::EARLIEST);
    let nearest = if is_early { Timestamp::EARLIEST } else { Timestamp::LATEST };
    Timestamp::try_from(at).unwrap_or(nearest)
}

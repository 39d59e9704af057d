//! Converts a worker's settings into those of the crates that use them.

use broker::topology::RetryQueue;
use conversation::{Background, ClaimCriteria, InvalidShare};
use service::settings::{BackgroundSettings, ClosingSettings, ConsumerSettings};

/// The settings of a consumer.
#[must_use]
pub fn consumer_settings(settings: &ConsumerSettings) -> broker::Settings {
    broker::Settings {
        batch_size: settings.batch_size,
        linger: settings.linger,
        batches_in_flight: settings.batches_in_flight,
        max_inflight_bytes: settings.max_inflight_bytes,
        largest_body: settings.max_body_bytes,
        hold_limit: settings.hold_limit,
        stall_limit: settings.stall_limit,
        retries: RetryQueue::ALL.to_vec(),
        ..broker::Settings::default()
    }
}

/// Which conversations a closer closes.
#[must_use]
pub fn closing(settings: &ClosingSettings) -> ClaimCriteria {
    ClaimCriteria {
        grace: settings.due.close_grace,
        idle: settings.due.close_idle,
        lease: settings.close_lease,
    }
}

/// The background work of a process, throttled by `VERBATIM_BACKGROUND_SHARE`.
///
/// # Errors
/// The share is not 0.01 to 1.
pub fn background(settings: &BackgroundSettings) -> Result<Background, InvalidShare> {
    Background::new(settings.background_share)
}

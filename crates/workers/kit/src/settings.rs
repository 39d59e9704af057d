//! Settings in the terms of those who work by them.

use broker::topology::RetryQueue;
use conversation::{InvalidShare, Share};
use service::settings::{BackgroundSettings, ClosingSettings, ConsumerSettings};

/// How a consumer paces itself.
#[must_use]
pub fn pace(settings: &ConsumerSettings) -> broker::Settings {
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

/// When conversations close, and in what part of the time.
///
/// # Errors
/// As [`share`].
pub fn closing(
    closing: &ClosingSettings,
    background: &BackgroundSettings,
) -> Result<conversation::ClosingSettings, InvalidShare> {
    Ok(conversation::ClosingSettings {
        grace: closing.close_grace,
        idle: closing.close_idle,
        lease: closing.close_lease,
        batch: closing.close_batch,
        share: share(background)?,
    })
}

/// The part of its time that a process spends on what nobody waits for.
///
/// # Errors
/// It is not more than 0 and at most 1.
pub fn share(settings: &BackgroundSettings) -> Result<Share, InvalidShare> {
    Share::new(settings.background_share)
}

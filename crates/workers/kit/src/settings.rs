//! Converts the settings of a consumer into those of the crate `broker`.

use service::settings::ConsumerSettings;

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
        ..broker::Settings::default()
    }
}

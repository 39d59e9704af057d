//! Everything that the fleet counts, and the registry that renders it for Prometheus.
//!
//! [`catalogue`] is the one place where a metric gets its name, help text, labels and unit; nobody
//! can count under a name that is not there, and `docs/metrics.md` is generated from it. No globals:
//! whoever counts holds a [`Metrics`], so two of them in one test never mix.
//!
//! To add a metric: one more variant in `catalogue.rs`, then `UPDATE_DOCS=1 cargo test -p metrics`.

mod catalogue;
mod definition;
mod document;
mod label;
mod labels;
mod registry;

pub use catalogue::{Counter, Gauge, Size, Timing};
pub use definition::{Definition, Kind, LabelDefinition};
pub use document::markdown;
pub use label::Label;
pub use labels::{
    CloseCause, ConsumerRestart, Counted, DeadLetterState, DeliveryOutcome, GenerationChange,
    HotLoad, HotRead, PublishOutcome, QueueState, RerouteCause, RetryClass, SessionEventKind,
    TaskEnd, TransactionRetry,
};
pub use registry::Metrics;

/// The definition of every metric, in the order of the documentation.
#[must_use]
pub fn definitions() -> Vec<&'static Definition> {
    [Counter::DEFINITIONS, Gauge::DEFINITIONS, Timing::DEFINITIONS, Size::DEFINITIONS]
        .into_iter()
        .flatten()
        .collect()
}

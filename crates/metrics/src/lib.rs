//! The metrics of the fleet, and the registry that renders them for Prometheus.
//!
//! [`catalogue`] is the one place that defines a metric's name, help text, labels and unit. The types
//! admit no other metric, and `docs/metrics.md` is generated from it. There are no globals: code that
//! counts holds a [`Metrics`], so two of them in one test do not mix.
//!
//! To add a metric: add a variant in `catalogue.rs`, then `UPDATE_DOCS=1 cargo test -p metrics`.

mod catalogue;
mod definition;
mod label;
mod labels;
mod registry;

pub use catalogue::{Counter, Gauge, Size, Timing, definitions};
pub use definition::{Definition, Kind, LabelDefinition};
pub use label::Label;
pub use labels::{
    AnomalyKind, CloseCause, ConsumerRestart, Counted, DeadLetterState, DeliveryOutcome,
    EpochCause, GenerationChange, HotLoad, HotRead, HttpStatus, PublishOutcome, QueueState,
    ReadServer, RefusedCredential, ReplyOutcome, RerouteCause, RetryClass, SessionEventKind,
    SlowOutcome, SlowWork, SyncAlignment, TaskEnd, TransactionRetry,
};
pub use registry::Metrics;

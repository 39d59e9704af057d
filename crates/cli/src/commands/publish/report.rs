//! What `verbatim publish` reports.

use serde::Serialize;

use crate::validator::Fault;

#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    /// Lines that are not blank.
    pub(super) lines: u64,
    /// Actions that RabbitMQ confirmed.
    pub(super) confirmed: u64,
    /// Actions that RabbitMQ returned as unroutable.
    pub(super) unroutable: u64,
    /// Actions that RabbitMQ refused, that were not sent, or whose outcome is unknown.
    pub(super) failed: u64,
    /// Lines that the workers would refuse. If there is one, nothing was published.
    pub(super) invalid: u64,
    /// What is wrong with each invalid line.
    pub(super) faults: Vec<Fault>,
    /// The unroutable and the failed actions.
    pub(super) failures: Vec<NotConfirmed>,
    /// Confirmed actions that are in `domain.unrouted`, because no queue is bound to their routing key.
    pub(super) unrouted: u64,
    /// Whether RabbitMQ became unreachable; the remaining lines were not sent.
    pub(super) rabbitmq_unavailable: bool,
}

/// An action that RabbitMQ did not confirm.
#[derive(Debug, Serialize)]
pub(super) struct NotConfirmed {
    pub(super) line: u64,
    pub(super) outcome: &'static str,
    pub(super) detail: String,
}

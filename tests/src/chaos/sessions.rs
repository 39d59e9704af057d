//! To which tenant and session each message of a publisher belongs, and which messages are deleted.

/// Each has its own connection.
pub(super) const PUBLISHERS: usize = 5;
/// The publisher that publishes over HTTP.
pub(super) const OVER_HTTP: usize = PUBLISHERS - 1;
/// Concurrent conversations of a publisher.
pub(super) const CONCURRENT: usize = 25;
/// Messages of a conversation; then its session closes.
pub(super) const LENGTH: usize = 100;
/// The tenant of the publishers with connections to RabbitMQ, and that of the publisher over HTTP.
pub(super) const TENANTS: [&str; 2] = ["chaos", "chaos-http"];

/// The number of a message in the sessions at its place, one after the other. Staggered, so that sessions open and close
/// throughout the run.
pub(super) fn step(n: usize) -> usize {
    n / CONCURRENT + n % CONCURRENT * LENGTH / CONCURRENT
}

/// Whether the next message of its session deletes the `n`th message of a publisher.
pub(super) fn is_deleted(n: usize) -> bool {
    step(n) % 10 == 4
}

/// The tenant for which a publisher publishes.
pub(super) fn tenant_of(publisher: usize) -> &'static str {
    TENANTS[usize::from(publisher == OVER_HTTP)]
}

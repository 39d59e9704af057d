//! Failpoints: the named steps at which a test build can be made to abort, as in a crash.
//!
//! The claim "a crash at any step loses no message" concerns every gap between two effects of one
//! piece of work. So each gap is a step with a name. The code calls [`reached`] at it, and a test
//! aborts a real process exactly there.
//!
//! Invariant: without the feature `armed`, which only test builds have, no binary contains a
//! failpoint (a test checks this).
//!
//! To add a step: add it to [`Step`], [`Step::ALL`] and [`Step::name`], call [`reached`] at it, and
//! add a case to the test of all steps (`tests/tests/faults/crashes.rs`), which fails until it has
//! one.

/// A gap between two effects of one piece of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A batch of messages is decoded; nothing is stored.
    SaveDecoded,
    /// The messages are committed in PostgreSQL; nothing is written to Redis.
    SaveCommitted,
    /// The messages are in Redis too, or their hot copies are invalidated; nothing is acknowledged.
    SaveAppended,
    /// RabbitMQ has confirmed the copies of a batch (retries, suspects, dead letters); the
    /// originals are not acknowledged.
    Copied,
    /// Some deliveries are settled; they are not acknowledged.
    Settled,
    /// These deliveries are acknowledged.
    Acknowledged,
    /// A worker has claimed conversations to close.
    CloseClaimed,
    /// Their tokens are counted.
    CloseCounted,
    /// Their hot copies are dropped.
    CloseDropped,
    /// Their events are published.
    CloseAnnounced,
    /// They are archived.
    CloseArchived,
    /// The dead-letter collector has stored dead letters; their events are not published.
    DeadLetterStored,
    /// Their events are published.
    DeadLetterAnnounced,
    /// RabbitMQ has confirmed replayed dead letters; their rows are not marked as replayed.
    ReplayConfirmed,
    /// Their rows are marked as replayed.
    ReplayMarked,
}

impl Step {
    /// Every step.
    pub const ALL: [Self; 15] = [
        Self::SaveDecoded,
        Self::SaveCommitted,
        Self::SaveAppended,
        Self::Copied,
        Self::Settled,
        Self::Acknowledged,
        Self::CloseClaimed,
        Self::CloseCounted,
        Self::CloseDropped,
        Self::CloseAnnounced,
        Self::CloseArchived,
        Self::DeadLetterStored,
        Self::DeadLetterAnnounced,
        Self::ReplayConfirmed,
        Self::ReplayMarked,
    ];

    /// The name of the step in the variable [`AT`].
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::SaveDecoded => "save.decoded",
            Self::SaveCommitted => "save.committed",
            Self::SaveAppended => "save.appended",
            Self::Copied => "delivery.copied",
            Self::Settled => "delivery.settled",
            Self::Acknowledged => "delivery.acknowledged",
            Self::CloseClaimed => "close.claimed",
            Self::CloseCounted => "close.counted",
            Self::CloseDropped => "close.dropped",
            Self::CloseAnnounced => "close.announced",
            Self::CloseArchived => "close.archived",
            Self::DeadLetterStored => "dead_letter.stored",
            Self::DeadLetterAnnounced => "dead_letter.announced",
            Self::ReplayConfirmed => "replay.confirmed",
            Self::ReplayMarked => "replay.marked",
        }
    }
}

/// The environment variable with the name of the step at which a test build aborts.
pub const AT: &str = "VERBATIM_CRASH_AT";
/// The environment variable with a text: a test build aborts when it decodes a body that contains
/// it. Such a message crashes every worker that receives it.
pub const ON: &str = "VERBATIM_CRASH_ON";

/// Marks a step as reached. In an ordinary build it does nothing.
#[cfg(not(feature = "armed"))]
#[inline(always)]
pub fn reached(_: Step) {}

/// Passes a body that is about to be decoded. In an ordinary build it does nothing.
#[cfg(not(feature = "armed"))]
#[inline(always)]
pub fn shown(_: &[u8]) {}

#[cfg(feature = "armed")]
pub use armed::{reached, shown};

#[cfg(feature = "armed")]
mod armed {
    use std::sync::LazyLock;

    use super::{AT, ON, Step};

    static STEP: LazyLock<Option<String>> = LazyLock::new(|| variable(AT));
    static TEXT: LazyLock<Option<String>> = LazyLock::new(|| variable(ON));

    /// Aborts the process if this is the step in [`AT`].
    pub fn reached(step: Step) {
        if STEP.as_deref() == Some(step.name()) {
            // Runs no destructor and closes no connection, as in a power failure.
            std::process::abort();
        }
    }

    /// Aborts the process if the body contains the text in [`ON`].
    pub fn shown(body: &[u8]) {
        let Some(text) = TEXT.as_deref() else { return };
        if body.windows(text.len()).any(|window| window == text.as_bytes()) {
            std::process::abort();
        }
    }

    #[expect(clippy::disallowed_methods, reason = "only test builds read it; it is no setting")]
    fn variable(name: &str) -> Option<String> {
        std::env::var(name).ok().filter(|value| !value.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_step_has_a_name_of_its_own() {
        let names: HashSet<_> = Step::ALL.map(Step::name).into();
        assert_eq!(names.len(), Step::ALL.len());
    }
}

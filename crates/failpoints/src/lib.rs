//! The named steps at which a test build can be made to end, as a crash would end it.
//!
//! "Whatever dies, at whichever step, nothing is lost" is a claim about every gap between two effects
//! of one piece of work. So each gap has a name here, the code says when it has [`reached`] one, and a
//! test kills a real process exactly there.
//!
//! Invariant: without the feature `armed`, which only test builds have, nothing of this is left in a
//! binary (a test looks).
//!
//! To add a step: a line in [`Step`] and one in [`Step::name`], a call where it is reached, and its
//! case in the test of all steps (`tests/tests/faults/crashes.rs`), which fails until it has one.

/// A gap between two effects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A batch of messages is decoded, nothing is stored.
    SaveDecoded,
    /// PostgreSQL has committed the messages, Redis has heard nothing.
    SaveCommitted,
    /// Redis has them too, or their copies are void; nothing is acknowledged.
    SaveAppended,
    /// The copies of a batch (retries, suspects, dead letters) are confirmed, their originals are not
    /// acknowledged.
    Copied,
    /// Nothing is left to do for some deliveries but to acknowledge them.
    Settled,
    /// They are acknowledged.
    Acknowledged,
    /// A closer has claimed conversations.
    CloseClaimed,
    /// Their tokens are counted.
    CloseCounted,
    /// Their hot copies are dropped.
    CloseDropped,
    /// Their ends are published.
    CloseAnnounced,
    /// They are archived.
    CloseArchived,
    /// The dead-letter collector has stored dead letters and announced none.
    DeadLetterStored,
    /// They are announced.
    DeadLetterAnnounced,
    /// Dead letters that an operator sends again are confirmed, their rows do not say so.
    ReplayConfirmed,
    /// Their rows say so.
    ReplayMarked,
}

impl Step {
    /// All of them.
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

    /// How the environment names it.
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
            Self::DeadLetterStored => "dead letter.stored",
            Self::DeadLetterAnnounced => "dead letter.announced",
            Self::ReplayConfirmed => "replay.confirmed",
            Self::ReplayMarked => "replay.marked",
        }
    }
}

/// The variable that names the step at which a test build ends.
pub const AT: &str = "VERBATIM_CRASH_AT";
/// The variable with the words at whose sight a test build ends: a message that kills its worker.
pub const ON: &str = "VERBATIM_CRASH_ON";

/// Says that a step is reached. In an ordinary build it does nothing.
#[cfg(not(feature = "armed"))]
#[inline(always)]
pub fn reached(_: Step) {}

/// Shows a body that is to be decoded. In an ordinary build it does nothing.
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
    static WORDS: LazyLock<Option<String>> = LazyLock::new(|| variable(ON));

    /// Ends the process if this is the step that its environment names.
    pub fn reached(step: Step) {
        if STEP.as_deref() == Some(step.name()) {
            // No destructor, no goodbye: what a power cut leaves.
            std::process::abort();
        }
    }

    /// Ends the process if the body holds the words that its environment names.
    pub fn shown(body: &[u8]) {
        let Some(words) = WORDS.as_deref() else { return };
        if body.windows(words.len()).any(|window| window == words.as_bytes()) {
            std::process::abort();
        }
    }

    #[expect(clippy::disallowed_methods, reason = "a test build's own, past all settings")]
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

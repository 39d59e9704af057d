//! Failpoints: the named steps at which a test build can be made to abort, as in a crash, or to stop, as a process
//! that gets no time for a while; and the guards that a test build can be made to leave out.
//!
//! The claim "a crash at any step loses no message" concerns every gap between two effects of one
//! piece of work. So each gap is a step with a name. The code calls [`reached`] at it, and a test
//! aborts a real process exactly there.
//!
//! Invariant: without the feature `armed`, which only test builds have, no binary contains a
//! failpoint (a test checks this).
//!
//! A test that passes proves little if it would pass without the code that it is about. So a guard is the code on
//! which a row of the loss table rests, asked for by [`holds`]; a test build leaves it out, and the row's test
//! must fail then (`tests/tests/guards.rs`).
//!
//! To add a step: add it to [`Step`], [`Step::ALL`] and [`Step::name`], call [`reached`] at it, and
//! add a case to the test of all steps (`tests/tests/faults/crashes.rs`), which fails until it has
//! one.

#[cfg(not(feature = "armed"))]
use std::time::Duration;

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
    /// A worker has claimed archived conversations whose words are due; none are written.
    WordsClaimed,
    /// Messages are deleted in PostgreSQL; their hot copies are invalid, and still in Redis.
    DeletionCommitted,
    /// The dead-letter collector has stored dead letters; their events are not published.
    DeadLetterStored,
    /// Their events are published.
    DeadLetterAnnounced,
    /// A replay has taken dead letters; it has not confirmed that it still holds them.
    ReplayTaken,
    /// It has confirmed that it holds them; they are not published.
    ReplayHeld,
    /// RabbitMQ has confirmed replayed dead letters; their rows are not marked as replayed.
    ReplayConfirmed,
    /// Their rows are marked as replayed.
    ReplayMarked,
}

impl Step {
    /// Every step.
    pub const ALL: [Self; 19] = [
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
        Self::WordsClaimed,
        Self::DeletionCommitted,
        Self::DeadLetterStored,
        Self::DeadLetterAnnounced,
        Self::ReplayTaken,
        Self::ReplayHeld,
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
            Self::WordsClaimed => "words.claimed",
            Self::DeletionCommitted => "deletion.committed",
            Self::DeadLetterStored => "dead_letter.stored",
            Self::DeadLetterAnnounced => "dead_letter.announced",
            Self::ReplayTaken => "replay.taken",
            Self::ReplayHeld => "replay.held",
            Self::ReplayConfirmed => "replay.confirmed",
            Self::ReplayMarked => "replay.marked",
        }
    }
}

/// The environment variable with the name of the step at which a test build aborts.
pub const AT: &str = "VERBATIM_CRASH_AT";
/// The environment variable with the name of the step at which a test build stops itself (SIGSTOP) the first
/// time, until it is continued (SIGCONT).
pub const STOP_AT: &str = "VERBATIM_STOP_AT";
/// The environment variable with the lease of a replay in milliseconds. A test cannot wait for the usual one.
pub const REPLAY_LEASE: &str = "VERBATIM_REPLAY_LEASE_MS";
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

/// What keeps a promise: an order of effects, or a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    /// A delivery is acknowledged after its effect, not on arrival.
    AcknowledgementAfterEffect,
    /// A copy (retry, suspect, dead letter) is published and confirmed before its original is acknowledged.
    CopyBeforeAcknowledgement,
    /// A stored message is recognised by its id.
    StoredMessageRecognised,
    /// A hot copy that could not be written is invalidated before the acknowledgement.
    FailedAppendInvalidates,
    /// A hot copy that may lack a message stored under two ids is invalidated before the acknowledgement.
    SavedAgainInvalidates,
    /// A hot copy that may lack a message that was stored before it became a dead letter is invalidated before the
    /// acknowledgement.
    DeadLetterInvalidates,
    /// A message that was requeued too often is handled apart from others.
    Quarantine,
    /// While a dependency is unavailable, messages are held and no attempt is counted.
    HoldInOutage,
    /// A consumer that stops finishes what was delivered to it.
    DrainFinishes,
    /// A dead letter is stored before it is acknowledged.
    DeadLetterStored,
    /// An unroutable action is published to its own queue before it is acknowledged.
    UnroutedRerouted,
    /// A close whose closer died is taken over.
    CloseTakenOver,
    /// Messages without a time in their body keep the order of their receipt.
    ReceiptOrder,
    /// A message with an identity that is dead-lettered twice is one dead letter.
    DeadLetterIdDerived,
    /// A replay sends only what it still holds.
    ReplayHoldsItsLease,
    /// A message that alone is too slow, or locked, is handled again from the slow queue.
    SlowQueue,
    /// A failure of PostgreSQL is put down to a message only if a write beside it succeeds.
    SuccessBeside,
    /// A conversation that is too slow to close with others is closed apart from them.
    SlowCloseApart,
}

impl Guard {
    /// Every guard.
    pub const ALL: [Self; 18] = [
        Self::AcknowledgementAfterEffect,
        Self::CopyBeforeAcknowledgement,
        Self::StoredMessageRecognised,
        Self::FailedAppendInvalidates,
        Self::SavedAgainInvalidates,
        Self::DeadLetterInvalidates,
        Self::Quarantine,
        Self::HoldInOutage,
        Self::DrainFinishes,
        Self::DeadLetterStored,
        Self::UnroutedRerouted,
        Self::CloseTakenOver,
        Self::ReceiptOrder,
        Self::DeadLetterIdDerived,
        Self::ReplayHoldsItsLease,
        Self::SlowQueue,
        Self::SuccessBeside,
        Self::SlowCloseApart,
    ];

    /// The name of the guard in the variable [`OFF`].
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::AcknowledgementAfterEffect => "acknowledgement.after_effect",
            Self::CopyBeforeAcknowledgement => "copy.before_acknowledgement",
            Self::StoredMessageRecognised => "save.stored_message_recognised",
            Self::FailedAppendInvalidates => "save.failed_append_invalidates",
            Self::SavedAgainInvalidates => "save.saved_again_invalidates",
            Self::DeadLetterInvalidates => "dead_letter.invalidates",
            Self::Quarantine => "delivery.quarantine",
            Self::HoldInOutage => "delivery.hold_in_outage",
            Self::DrainFinishes => "delivery.drain_finishes",
            Self::DeadLetterStored => "dead_letter.stored",
            Self::UnroutedRerouted => "unrouted.rerouted",
            Self::CloseTakenOver => "close.taken_over",
            Self::ReceiptOrder => "delivery.receipt_order",
            Self::DeadLetterIdDerived => "dead_letter.id_derived",
            Self::ReplayHoldsItsLease => "replay.holds_its_lease",
            Self::SlowQueue => "slow.queue",
            Self::SuccessBeside => "slow.success_beside",
            Self::SlowCloseApart => "slow.close_apart",
        }
    }
}

/// The environment variable with the name of the guard that a test build leaves out.
pub const OFF: &str = "VERBATIM_GUARD_OFF";

/// Whether a guard is in force: always, in an ordinary build.
#[cfg(not(feature = "armed"))]
#[inline(always)]
#[must_use]
pub const fn holds(_: Guard) -> bool {
    true
}

/// The lease of a replay. In an ordinary build it is the usual one.
#[cfg(not(feature = "armed"))]
#[inline(always)]
#[must_use]
pub fn replay_lease(usual: Duration) -> Duration {
    usual
}

#[cfg(feature = "armed")]
pub use armed::{holds, reached, replay_lease, shown};

#[cfg(feature = "armed")]
mod armed {
    use std::process::Command;
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use super::{AT, Guard, OFF, ON, REPLAY_LEASE, STOP_AT, Step};

    static STEP: LazyLock<Option<String>> = LazyLock::new(|| variable(AT));
    static STOPPED: AtomicBool = AtomicBool::new(false);
    static STOP: LazyLock<Option<String>> = LazyLock::new(|| variable(STOP_AT));
    static TEXT: LazyLock<Option<String>> = LazyLock::new(|| variable(ON));
    static LEFT_OUT: LazyLock<Option<String>> = LazyLock::new(|| variable(OFF));

    /// Aborts the process if this is the step in [`AT`], and stops it if it is the one in [`STOP_AT`], the
    /// first time.
    pub fn reached(step: Step) {
        if STOP.as_deref() == Some(step.name()) && !STOPPED.swap(true, Ordering::Relaxed) {
            stop();
        }
        if STEP.as_deref() == Some(step.name()) {
            // Runs no destructor and closes no connection, as in a power failure.
            std::process::abort();
        }
    }

    /// Whether a guard is in force: not if it is the one in [`OFF`].
    #[must_use]
    pub fn holds(guard: Guard) -> bool {
        LEFT_OUT.as_deref() != Some(guard.name())
    }

    /// Returns when the process was stopped and continued. The shell ends only when its parent is stopped, so this
    /// thread cannot run on meanwhile.
    fn stop() {
        let stop = "kill -STOP $PPID; until grep -q '^State:.T' /proc/$PPID/status; do :; done";
        if !Command::new("sh").args(["-c", stop]).status().is_ok_and(|status| status.success()) {
            std::process::abort();
        }
    }

    /// The lease in [`REPLAY_LEASE`], or else the usual one.
    pub fn replay_lease(usual: Duration) -> Duration {
        let milliseconds = variable(REPLAY_LEASE).and_then(|value| value.parse().ok());
        milliseconds.map_or(usual, Duration::from_millis)
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
        let names: HashSet<_> = Guard::ALL.map(Guard::name).into();
        assert_eq!(names.len(), Guard::ALL.len());
    }
}

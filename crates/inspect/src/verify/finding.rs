//! Findings: what can be wrong, and what to run about it.

use database::Difference;
use domain::ids::ConversationKey;
use serde::Serialize;

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    /// What it is.
    pub kind: Kind,
    /// The tenant, if it concerns one.
    pub tenant_id: Option<String>,
    /// The conversation, if it concerns one.
    pub conversation_id: Option<String>,
    /// The message, the day with its agent and model, or the queue.
    pub id: Option<String>,
    /// What is wrong, as text; never the content of a message.
    pub detail: String,
    /// Whether it was repaired.
    #[serde(rename = "repair")]
    pub repair_outcome: RepairOutcome,
}

/// Declares the kinds: each with its stable JSON name, and what to do about it and which command to run.
macro_rules! kinds {
    ($($(#[doc = $meaning:literal])+ $kind:ident = $name:literal: $advice:expr;)+) => {
        /// What can be wrong.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
        pub enum Kind { $($(#[doc = $meaning])+ #[serde(rename = $name)] $kind,)+ }

        impl Kind {
            /// Its name in JSON.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$kind => $name,)+ }
            }

            /// What to do about it, and which command to run.
            #[must_use]
            pub fn advice(self) -> &'static str {
                match self { $(Self::$kind => $advice,)+ }
            }
        }
    };
}

const INVALIDATE: &str = "readers use this copy: run `verbatim verify --repair`, which invalidates it; the next reader \
     loads it again";
const REFRESH: &str = "check that a statistics-worker is running and keeps up; its log says \"statistics not refreshed\" \
     with the error when it cannot";
const COLLECT: &str = "check that a dead-letter-worker is running (`verbatim queues` shows consumers); its log says what \
     it cannot store or reroute";

kinds! {
    /// A valid hot copy lacks a committed message.
    HotCopyMissing = "hot_copy_missing": INVALIDATE;
    /// A valid hot copy holds a message that is not committed.
    HotCopySurplus = "hot_copy_surplus": INVALIDATE;
    /// A valid hot copy holds a message that differs from its committed row.
    HotCopyDifferent = "hot_copy_different": INVALIDATE;
    /// A hot copy cannot be decoded. Readers do not use it.
    HotCopyDamaged = "hot_copy_damaged":
        "readers do not use it: run `verbatim verify --repair`, which drops it";
    /// A hot copy with messages of a conversation that does not exist, or a key of no conversation.
    HotCopyOrphaned = "hot_copy_orphaned":
        "readers do not use it: run `verbatim verify --repair`, which drops the copy of a \
         conversation; delete any other key yourself";
    /// A close has stopped: its lease expired, and no closer took it over.
    ClosingStuck = "closing_stuck":
        "run `verbatim verify --repair`, which makes it due for the closing sweep again; check that a \
         persistence-migration-worker is running";
    /// A conversation should be closed by now.
    CloseOverdue = "close_overdue":
        "check that a persistence-migration-worker is running and keeps up (metric \
         verbatim_close_lag_seconds)";
    /// An archived conversation's totals are not those of its messages.
    TotalsDiffer = "totals_differ":
        "run `verbatim verify --repair`, which closes it again: that recounts its messages and publishes \
         conversation.migrated once more";
    /// An archived conversation no longer has messages.
    MessagesGone = "messages_gone":
        "its message rows were deleted: restore them from a backup; there is no repair, because \
         closing it again would delete the conversation";
    /// Messages cannot be decoded by this program.
    MessagesUnreadable = "messages_unreadable":
        "a newer version wrote these rows, or they were changed by hand: upgrade, or restore them from a \
         backup";
    /// A conversation's statistics are not what follows from its messages.
    StatisticsDiffer = "statistics_differ": "run `verbatim verify --repair`, which has them recomputed";
    /// A conversation's statistics should be computed by now.
    StatisticsOverdue = "statistics_overdue": REFRESH;
    /// Searches do not find an archived conversation by its words, or find it by others.
    WordsDiffer = "words_differ":
        "run `verbatim verify --repair`, after which a statistics-worker writes the words again";
    /// A day's statistics are not what follows from its conversations', or are missing.
    DayDiffers = "day_differs":
        "run `verbatim verify --repair`, which has the day recomputed";
    /// A day's statistics should be computed by now.
    DayOverdue = "day_overdue": REFRESH;
    /// There are messages whose conversation does not exist.
    MessagesOrphaned = "messages_orphaned":
        "the row of their conversation was deleted: restore it from a backup, with its `number`";
    /// There are statistics whose conversation does not exist.
    StatisticsOrphaned = "statistics_orphaned":
        "run `verbatim verify --repair`, which deletes them and has their day recomputed";
    /// There are words of a conversation that does not exist or was never archived.
    WordsOrphaned = "words_orphaned": "no search finds them: run `verbatim verify --repair`, which deletes them";
    /// A queue or exchange is missing or was declared with other arguments.
    TopologyDiffers = "topology_differs":
        "run `verbatim setup`, which creates what is missing and reports what it cannot change";
    /// Dead letters are in their queue, and no dead-letter collector consumes them.
    DeadLettersWaiting = "dead_letters_waiting": COLLECT;
    /// Actions wait in `domain.unrouted`, and no dead-letter-worker reroutes them.
    UnroutedWaiting = "unrouted_waiting": COLLECT;
    /// Suspects are in their queue, and no worker handles them.
    SuspectsWaiting = "suspects_waiting":
        "suspects are handled while their consumer has no other delivery: check that a \
         worker of the queue is running (`verbatim queues` shows consumers)";
    /// Messages that alone are too slow, or whose rows are locked, are in their queue.
    SlowWaiting = "slow_waiting":
        "the worker of the queue handles them one by one, each for 30 s and then for 5 min; verify again in some \
         minutes. What stays is locked: look for a long transaction in PostgreSQL (pg_stat_activity, pg_locks) and end \
         it";
    /// Messages failed and wait for their next attempt.
    RetriesWaiting = "retries_waiting":
        "verify again in a minute: until then each is done or a dead letter. What waits longer is a dead letter that \
         cannot be stored, or more messages fail: the workers' logs have each with its error (\"message failed\", \
         \"PostgreSQL refused a dead letter\")";
    /// Messages are in a work queue, and it has no consumer.
    WorkWithoutConsumers = "work_without_consumers":
        "start the worker of the queue, which `verbatim queues` names; if this version has none, the messages wait \
         for a version that has one";
}

/// Whether a finding was repaired.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RepairOutcome {
    /// It can be repaired, and that was not requested.
    NotRequested,
    /// It was marked as stale; the fleet corrects it.
    Done,
    /// The repair failed; why.
    Failed(String),
    /// No repair exists: see [`Kind::advice`].
    NotRepairable,
}

impl Finding {
    pub(super) fn of(kind: Kind, key: &ConversationKey, detail: impl Into<String>) -> Self {
        Self {
            tenant_id: Some(key.tenant.to_string()),
            conversation_id: Some(key.conversation.to_string()),
            ..Self::about(kind, None, detail)
        }
    }

    pub(super) fn about(kind: Kind, id: Option<String>, detail: impl Into<String>) -> Self {
        Self {
            kind,
            tenant_id: None,
            conversation_id: None,
            id,
            detail: detail.into(),
            repair_outcome: RepairOutcome::NotRepairable,
        }
    }
}

/// Differences as one line of text.
pub(super) fn describe(differences: &[Difference]) -> String {
    let one = |it: &Difference| format!("{} is {}, should be {}", it.field, it.is, it.should_be);
    differences.iter().map(one).collect::<Vec<_>>().join("; ")
}

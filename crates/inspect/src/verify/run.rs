//! A verification under way: its sections, progress, findings and repairs.

use std::time::Duration;

use broker::Endpoints;
use database::{Database, Repair, Scope};
use domain::causes::with_causes;
use domain::failure::Dependency;
use hot_store::HotStore;
use serde_json::json;
use tokio::time::Instant;

use super::finding::{Finding, RepairOutcome};
use conversation::RandomSource;

/// How a fleet is verified.
#[derive(Debug, Clone)]
pub struct VerifyingSettings {
    /// The grace period between the close of the last session and the close of its conversation, as the closers
    /// have it.
    pub grace: Duration,
    /// After how long without a message a conversation is closed, as the closers have it.
    pub idle: Duration,
    /// Work of the fleet, such as a close, is a finding when it is overdue by more than this.
    pub overdue_after: Duration,
    /// Whether anything is repaired.
    pub repairs: Repairs,
}

/// Whether anything is repaired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Repairs {
    /// Nothing is written.
    None,
    /// Everything repairable is repaired; the audit log names this person.
    By(String),
}

/// A part of verifying.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Section {
    /// Hot copies against rows.
    HotCopies,
    /// Conversations against their messages: totals, statistics, overdue closes.
    Conversations,
    /// Days against the statistics of their conversations.
    Days,
    /// Words of archived conversations, by which searches find them, against their messages.
    Words,
    /// Rows without the row that they belong to.
    Integrity,
    /// Queues: declared as they must be, and consumed.
    Queues,
}

/// Progress of a verification.
#[derive(Debug, Clone, Copy)]
pub enum VerifyProgress<'a> {
    /// A section begins.
    Begins(Section),
    /// How much of it has been checked so far.
    Checked(u64),
    /// A finding.
    Found(&'a Finding),
    /// A section is over.
    Ends(&'a Verified),
}

/// How a section ended.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Verified {
    /// The section.
    pub section: Section,
    /// How many copies, conversations, days, rows or queues were checked.
    pub checked: u64,
    /// How many findings there were.
    pub found: u64,
    /// How many of them were not repaired.
    pub unrepaired: u64,
    /// Why it was not checked to its end; `None`: it was.
    pub incomplete: Option<Incomplete>,
}

/// Why a section was not checked, or not to its end.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(untagged)]
pub enum Incomplete {
    /// The given filters exclude it. This is no failure.
    Skipped {
        /// Why.
        cause: String,
    },
    /// A server was unavailable, so the check was not finished.
    Unavailable {
        /// The server.
        dependency: Dependency,
        /// Why.
        cause: String,
    },
}

/// Verifies a fleet by its three servers.
pub struct Verifier {
    pub(super) database: Database,
    pub(super) hot: HotStore,
    pub(super) endpoints: Endpoints,
    pub(super) random: RandomSource,
    pub(super) settings: VerifyingSettings,
}

pub(super) struct Run<'a> {
    pub(super) verifier: &'a Verifier,
    pub(super) scope: &'a Scope,
    pub(super) began: Instant,
    pub(super) report: &'a mut (dyn FnMut(VerifyProgress<'_>) + Send),
    pub(super) verified: Verified,
}

impl Section {
    /// Every section, in the order in which they run.
    pub const ALL: [Self; 6] = [
        Self::HotCopies,
        Self::Conversations,
        Self::Days,
        Self::Words,
        Self::Integrity,
        Self::Queues,
    ];

    /// The servers that it needs.
    #[must_use]
    pub fn stores(self) -> &'static [Dependency] {
        match self {
            Self::HotCopies => &[Dependency::Redis, Dependency::PostgreSql],
            Self::Conversations | Self::Days | Self::Words | Self::Integrity => {
                &[Dependency::PostgreSql]
            }
            Self::Queues => &[Dependency::RabbitMq],
        }
    }
}

impl Verifier {
    /// A verifier of these servers.
    #[must_use]
    pub fn new(
        database: Database,
        hot: HotStore,
        endpoints: Endpoints,
        random: RandomSource,
        settings: VerifyingSettings,
    ) -> Self {
        Self { database, hot, endpoints, random, settings }
    }

    async fn repair(
        &self,
        repair: Repair,
        actor: &str,
        detail: &serde_json::Value,
    ) -> Result<bool, String> {
        let copy = match &repair {
            Repair::InvalidateCopy(key, _) | Repair::DropCopy(key) => Some(key.clone()),
            _ => None,
        };
        let done = self.database.repair(repair, actor, detail).await;
        let done = done.map_err(|error| with_causes(&error))?;
        if let Some(key) = copy {
            let dropped = self.hot.drop_copies(&[key]).await;
            dropped.map_err(|error| with_causes(&error))?;
        }
        Ok(done)
    }
}

impl Run<'_> {
    pub(super) fn checked(&mut self, more: usize) {
        self.verified.checked += more as u64;
        (self.report)(VerifyProgress::Checked(self.verified.checked));
    }

    /// Reports a finding, after its repair if that was requested and is possible.
    pub(super) async fn found(&mut self, finding: Finding, repair: Option<Repair>) {
        self.all_found(vec![finding], repair).await;
    }

    /// Reports findings that one repair corrects, all with its outcome.
    pub(super) async fn all_found(&mut self, findings: Vec<Finding>, repair: Option<Repair>) {
        let Some(first) = findings.first() else { return };
        let repair_outcome = match (&self.verifier.settings.repairs, repair) {
            (_, None) => RepairOutcome::NotRepairable,
            (Repairs::None, Some(_)) => RepairOutcome::NotRequested,
            (Repairs::By(actor), Some(repair)) => {
                let detail = json!({
                    "finding": first.kind, "id": first.id, "detail": first.detail,
                    "findings": findings.len(),
                });
                match self.verifier.repair(repair, actor, &detail).await {
                    Ok(true) => RepairOutcome::Done,
                    Ok(false) => RepairOutcome::Failed(
                        "not changed: it was modified since the check, or must not be repaired"
                            .into(),
                    ),
                    Err(cause) => RepairOutcome::Failed(cause),
                }
            }
        };
        for mut finding in findings {
            finding.repair_outcome = repair_outcome.clone();
            self.verified.found += 1;
            self.verified.unrepaired += u64::from(finding.repair_outcome != RepairOutcome::Done);
            (self.report)(VerifyProgress::Found(&finding));
        }
    }
}

impl From<database::Error> for Incomplete {
    fn from(error: database::Error) -> Self {
        Self::Unavailable { dependency: Dependency::PostgreSql, cause: with_causes(&error) }
    }
}

impl From<hot_store::Error> for Incomplete {
    fn from(error: hot_store::Error) -> Self {
        Self::Unavailable { dependency: Dependency::Redis, cause: with_causes(&error) }
    }
}

impl From<broker::Error> for Incomplete {
    fn from(error: broker::Error) -> Self {
        Self::Unavailable { dependency: Dependency::RabbitMq, cause: with_causes(&error) }
    }
}

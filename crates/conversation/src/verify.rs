//! Verifying: queues, Redis and PostgreSQL compared with each other and with what follows from the rows.
//!
//! Everything is looked at in pages, so memory does not grow with the archive. What others are changing
//! meanwhile must not look like damage: a page of rows is one snapshot, what the fleet does by itself is
//! left to it for a while, and what Redis and PostgreSQL disagree on is looked at again and again before
//! anybody hears of it.
//!
//! One section after the other, each with the stores that it needs. A store that is away ends its section
//! and no other. Nothing is written unless repairs are asked for, and a repair only marks what is wrong as
//! stale (see `database::Repair`): the fleet then does in its ordinary way what is missing.

mod compare;
mod copies;
mod finding;
mod queues;
mod rows;

use std::time::Duration;

use broker::Endpoints;
use database::{Database, Repair, Scope};
use domain::causes::with_causes;
use domain::failure::Dependency;
use hot_store::HotStore;
use serde_json::json;
use tokio::time::Instant;

pub use finding::{Finding, Kind, RepairOutcome};

use crate::RandomSource;

/// How a fleet is verified.
#[derive(Debug, Clone)]
pub struct VerifyingSettings {
    /// How long a conversation whose last session closed waits for a reconnection, as the closers
    /// have it.
    pub grace: Duration,
    /// After how long without a message a conversation closes by itself, as the closers have it.
    pub idle: Duration,
    /// What the fleet does by itself is a finding when it is overdue by so long.
    pub overdue_after: Duration,
    /// Whether anything is repaired.
    pub repairs: Repairs,
}

/// Whether anything is repaired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Repairs {
    /// Nothing is written.
    None,
    /// Whatever can be is, and the audit log says that this person did it.
    By(String),
}

/// A part of verifying.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Section {
    /// Hot copies against rows.
    HotCopies,
    /// Conversations against their messages: totals, statistics, and who should have closed by now.
    Conversations,
    /// Days against the statistics of their conversations.
    Days,
    /// Rows that belong to nothing.
    Integrity,
    /// Queues: there as they must be, and worked on.
    Queues,
}

/// What happens while a fleet is verified.
#[derive(Debug, Clone, Copy)]
pub enum VerifyProgress<'a> {
    /// A section begins.
    Begins(Section),
    /// So much of it has been looked at.
    Checked(u64),
    /// Something is wrong.
    Found(&'a Finding),
    /// A section is over.
    Ends(&'a Verified),
}

/// How a section ended.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Verified {
    /// The section.
    pub section: Section,
    /// How many copies, conversations, days, rows or queues were looked at.
    pub checked: u64,
    /// How many findings there were, and how many of them were not repaired.
    pub found: u64,
    /// Findings that stay.
    pub unrepaired: u64,
    /// What kept it from being looked at to its end; `None`: nothing did.
    pub incomplete: Option<Incomplete>,
}

/// Why a section was not looked at, or not to its end.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(untagged)]
pub enum Incomplete {
    /// What was asked for leaves something out: nothing is amiss.
    Skipped {
        /// Why.
        cause: String,
    },
    /// A store could not be asked: what was asked for was not done.
    Unavailable {
        /// The store.
        #[serde(serialize_with = "dependency_name")]
        dependency: Dependency,
        /// Why.
        cause: String,
    },
}

/// The three servers.
pub struct Verifier {
    database: Database,
    hot: HotStore,
    endpoints: Endpoints,
    random: RandomSource,
    settings: VerifyingSettings,
}

/// A verification under way.
struct Run<'a> {
    verifier: &'a Verifier,
    scope: &'a Scope,
    began: Instant,
    tell: &'a mut (dyn FnMut(VerifyProgress<'_>) + Send),
    verified: Verified,
}

impl Section {
    /// Every section, in the order in which they are looked at.
    pub const ALL: [Self; 5] =
        [Self::HotCopies, Self::Conversations, Self::Days, Self::Integrity, Self::Queues];

    /// The stores that it looks at.
    #[must_use]
    pub fn stores(self) -> &'static [Dependency] {
        match self {
            Self::HotCopies => &[Dependency::Redis, Dependency::PostgreSql],
            Self::Conversations | Self::Days | Self::Integrity => &[Dependency::PostgreSql],
            Self::Queues => &[Dependency::RabbitMq],
        }
    }
}

impl Verifier {
    /// Verifies over these stores.
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

    /// Looks at everything in scope, section by section, and repairs it if that was asked for. Tells what
    /// it finds as it finds it; returns how each section ended.
    pub async fn run(
        &self,
        scope: &Scope,
        sections: &[Section],
        tell: &mut (dyn FnMut(VerifyProgress<'_>) + Send),
    ) -> Vec<Verified> {
        let began = Instant::now();
        // Which days wait to be recomputed now: whoever still waits at the end, untouched, was forgotten.
        let waiting = if sections.contains(&Section::Days) {
            self.database.dirty_days(scope, rows::REMEMBERED).await.unwrap_or_default()
        } else {
            Vec::new()
        };
        let mut ended = Vec::with_capacity(sections.len());
        for &section in sections {
            tell(VerifyProgress::Begins(section));
            let verified =
                Verified { section, checked: 0, found: 0, unrepaired: 0, incomplete: None };
            let mut run = Run { verifier: self, scope, began, tell, verified };
            let result = match section {
                Section::HotCopies => run.hot_copies().await,
                Section::Conversations => run.conversations().await,
                Section::Days => run.days(&waiting).await,
                Section::Integrity => run.integrity().await,
                Section::Queues => run.queues().await,
            };
            run.verified.incomplete = result.err();
            let verified = run.verified;
            tell(VerifyProgress::Ends(&verified));
            ended.push(verified);
        }
        ended
    }
}

impl Run<'_> {
    fn checked(&mut self, more: usize) {
        self.verified.checked += more as u64;
        (self.tell)(VerifyProgress::Checked(self.verified.checked));
    }

    /// Tells a finding, repaired before if that was asked for and is possible.
    async fn found(&mut self, finding: Finding, repair: Option<Repair>) {
        self.all_found(vec![finding], repair).await;
    }

    /// Tells findings that one repair mends, all with its outcome.
    async fn all_found(&mut self, findings: Vec<Finding>, repair: Option<Repair>) {
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
                    Ok(false) => {
                        RepairOutcome::Failed("it has changed since, or must be left alone".into())
                    }
                    Err(cause) => RepairOutcome::Failed(cause),
                }
            }
        };
        for mut finding in findings {
            finding.repair_outcome = repair_outcome.clone();
            self.verified.found += 1;
            self.verified.unrepaired += u64::from(finding.repair_outcome != RepairOutcome::Done);
            (self.tell)(VerifyProgress::Found(&finding));
        }
    }
}

impl Verifier {
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

impl Incomplete {
    fn skipped(cause: &str) -> Self {
        Self::Skipped { cause: cause.to_owned() }
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

fn dependency_name<S: serde::Serializer>(store: &Dependency, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(store.as_str())
}

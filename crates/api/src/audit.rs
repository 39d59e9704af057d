//! The audit log of the API: what each key read or did.
//!
//! What shows a conversation or a dead letter is an entry of its own, and the answer leaves after PostgreSQL has committed
//! that entry. Entries of requests that end while a commit is under way share the next one, so that they do not wait for
//! each other one by one. All other requests are counted, by key, endpoint, tenant and minute.
//!
//! What operators change is no concern of this file: each statement that changes a dead letter writes its own entry.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use database::{ApiDatabase, NewAuditEntry};
use domain::causes::with_causes;
use domain::clock::Clock;
use domain::failure::FailureClass;
use domain::ids::TenantId;
use serde_json::{Value, json};
use service::Service;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::problem::{Kind, Problem};

/// The most entries in one commit.
const GROUP: usize = 1_000;

/// How often counts and notes are written.
const WRITE_EVERY: Duration = Duration::from_secs(10);

/// The most counts and notes that wait for PostgreSQL. Then the oldest notes go: a log line has them too.
const MOST_WAITING: usize = 10_000;

/// What the audit log says of an answer.
#[derive(Debug, Clone)]
pub(crate) enum Audited {
    /// It is counted.
    Counted(Option<TenantId>),
    /// It is an entry of its own.
    Entry {
        /// Such as `conversation.read`.
        action: &'static str,
        tenant: Option<TenantId>,
        /// What was read.
        subject: String,
        /// Details of the answer, an object.
        detail: Value,
    },
}

/// What is counted together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Counted {
    /// Minutes since 1970.
    minute: i64,
    actor: String,
    endpoint: &'static str,
    tenant: Option<TenantId>,
}

/// What waits for the next write.
#[derive(Debug, Default)]
struct Waiting {
    counts: BTreeMap<Counted, u64>,
    notes: VecDeque<NewAuditEntry>,
}

/// Whether an entry was written.
type Written = Result<(), Arc<database::Error>>;

/// An entry whose request waits for its commit.
struct Awaited {
    entry: NewAuditEntry,
    done: oneshot::Sender<Written>,
}

/// The audit log. Cheap to clone.
#[derive(Clone)]
pub(crate) struct AuditLog {
    clock: Clock,
    waiting: Arc<Mutex<Waiting>>,
    awaited: mpsc::Sender<Awaited>,
}

impl AuditLog {
    /// Writes entries until the process stops.
    pub(crate) fn start(service: &Service, database: &ApiDatabase) -> Self {
        let (awaited, entries) = mpsc::channel(GROUP);
        let waiting = Arc::<Mutex<Waiting>>::default();
        let clock = service.clock().clone();
        let log = Self { clock, waiting, awaited };
        // Taken by each run of the task, and given to the next one if a run fails.
        let entries = Arc::new(tokio::sync::Mutex::new(entries));
        let (writing, database) = (log.clone(), database.clone());
        service.support("audit", move |stopping| {
            let (log, database, entries) =
                (writing.clone(), database.clone(), Arc::clone(&entries));
            async move {
                log.write(&database, &mut *entries.lock().await, stopping).await;
                Ok(())
            }
        });
        log
    }

    /// Records an answer. Returns when it may leave.
    ///
    /// # Errors
    /// PostgreSQL did not take the entry.
    pub(crate) async fn record(
        &self,
        actor: String,
        endpoint: &'static str,
        audited: Audited,
    ) -> Result<(), Problem> {
        match audited {
            Audited::Counted(tenant) => {
                let counted = Counted { minute: self.minute(), actor, endpoint, tenant };
                *self.waiting().counts.entry(counted).or_default() += 1;
                Ok(())
            }
            Audited::Entry { action, tenant, subject, detail } => {
                let subject = Some(subject);
                self.write_entry(NewAuditEntry { actor, action, tenant, subject, detail }).await
            }
        }
    }

    async fn write_entry(&self, entry: NewAuditEntry) -> Result<(), Problem> {
        let (done, result) = oneshot::channel();
        let stopped = || {
            let detail = "the API is stopping; repeat the request";
            Problem::new(Kind::Unavailable, detail).retry_after(Duration::from_secs(2))
        };
        self.awaited.send(Awaited { entry, done }).await.map_err(|_| stopped())?;
        result.await.map_err(|_| stopped())?.map_err(|error| Problem::from(&*error))
    }

    /// The minute that it is.
    fn minute(&self) -> i64 {
        DateTime::<Utc>::from(self.clock.now()).timestamp().div_euclid(60)
    }

    /// Writes an entry within seconds; nobody waits for it.
    pub(crate) fn note(&self, entry: NewAuditEntry) {
        let mut waiting = self.waiting();
        if waiting.notes.len() == MOST_WAITING {
            waiting.notes.pop_front();
        }
        waiting.notes.push_back(entry);
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn write(
        &self,
        database: &ApiDatabase,
        entries: &mut mpsc::Receiver<Awaited>,
        stopping: CancellationToken,
    ) {
        let mut every = tokio::time::interval(WRITE_EVERY);
        let mut group = Vec::with_capacity(GROUP);
        loop {
            tokio::select! {
                _ = entries.recv_many(&mut group, GROUP) => commit(database, &mut group).await,
                _ = every.tick() => self.write_waiting(database, Which::PastMinutes).await,
                () = stopping.cancelled() => break,
            }
        }
        // The requests have ended, except those that outlasted the drain.
        entries.close();
        while entries.recv_many(&mut group, GROUP).await > 0 {
            commit(database, &mut group).await;
        }
        self.write_waiting(database, Which::All).await;
    }

    /// Writes counts and notes. If PostgreSQL fails, they wait for the next time. One that it refuses although it writes
    /// others is dropped, and logged with its content.
    async fn write_waiting(&self, database: &ApiDatabase, which: Which) {
        let now = self.minute();
        let is_due = |counted: &Counted| match which {
            Which::PastMinutes => counted.minute < now,
            Which::All => true,
        };
        let (due, notes): (BTreeMap<Counted, u64>, _) = {
            let mut waiting = self.waiting();
            let notes = std::mem::take(&mut waiting.notes);
            let counts = std::mem::take(&mut waiting.counts).into_iter();
            let (due, rest) = counts.partition(|(counted, _)| is_due(counted));
            waiting.counts = rest;
            (due, notes)
        };
        let mut rest: VecDeque<Unwritten> = notes.into_iter().map(Unwritten::Note).collect();
        rest.extend(due.into_iter().map(|(counted, requests)| Unwritten::Count(counted, requests)));
        while !rest.is_empty() {
            let behind = rest.split_off(rest.len().min(GROUP));
            let part: Vec<_> = rest.iter().map(Unwritten::entry).collect();
            let written = write_each(database, &part).await;
            let is_any_written = written.iter().any(Result::is_ok);
            let mut failure = None;
            let mut failed = VecDeque::new();
            for ((unwritten, entry), written) in rest.into_iter().zip(&part).zip(written) {
                match written {
                    Ok(()) => {}
                    Err(error) if is_any_written && is_refusal(&error) => {
                        log_dropped(entry, &error);
                    }
                    Err(error) => {
                        failed.push_back(unwritten);
                        failure = Some(error);
                    }
                }
            }
            rest = behind;
            if let Some(error) = failure {
                failed.append(&mut rest);
                tracing::warn!(
                    error = with_causes(&error),
                    "{} counts and notes could not be written to the audit log; they are written later",
                    failed.len()
                );
                return self.keep(failed);
            }
        }
    }

    fn keep(&self, rest: VecDeque<Unwritten>) {
        let mut waiting = self.waiting();
        let mut notes = VecDeque::new();
        for unwritten in rest {
            match unwritten {
                Unwritten::Count(counted, requests) => {
                    *waiting.counts.entry(counted).or_default() += requests;
                }
                Unwritten::Note(entry) => notes.push_back(entry),
            }
        }
        notes.append(&mut waiting.notes);
        notes.drain(..notes.len().saturating_sub(MOST_WAITING));
        waiting.notes = notes;
        while waiting.counts.len() > MOST_WAITING {
            waiting.counts.pop_first();
        }
    }
}

/// What is to be written.
enum Unwritten {
    Count(Counted, u64),
    Note(NewAuditEntry),
}

impl Unwritten {
    fn entry(&self) -> NewAuditEntry {
        match self {
            Self::Count(counted, requests) => counted.entry(*requests),
            Self::Note(entry) => entry.clone(),
        }
    }
}

/// Which counts to write.
#[derive(Debug, Clone, Copy)]
enum Which {
    /// Those of minutes that are over.
    PastMinutes,
    All,
}

impl Counted {
    fn entry(&self, requests: u64) -> NewAuditEntry {
        NewAuditEntry {
            actor: self.actor.clone(),
            action: "api.requests",
            tenant: self.tenant.clone(),
            subject: Some(self.endpoint.to_owned()),
            detail: json!({
                "requests": requests, "minute": DateTime::from_timestamp(self.minute * 60, 0),
            }),
        }
    }
}

/// Commits a group, and lets its answers leave.
async fn commit(database: &ApiDatabase, group: &mut Vec<Awaited>) {
    let (entries, waiting): (Vec<_>, Vec<_>) =
        group.drain(..).map(|Awaited { entry, done }| (entry, done)).unzip();
    for (written, done) in write_each(database, &entries).await.into_iter().zip(waiting) {
        // A request that was given up waits no longer.
        done.send(written).ok();
    }
}

/// Writes entries in one commit. If PostgreSQL refuses one of them, each is written by itself.
async fn write_each(database: &ApiDatabase, entries: &[NewAuditEntry]) -> Vec<Written> {
    let written = database.audit(entries).await.map_err(Arc::new);
    let is_refused = written.as_ref().is_err_and(|error| is_refusal(error));
    if !is_refused || entries.len() == 1 {
        return vec![written; entries.len()];
    }
    let mut all: Vec<Written> = Vec::with_capacity(entries.len());
    for entry in entries {
        let written = match all.last() {
            // It is not about that entry, so the next one would fail, too.
            Some(Err(error)) if !is_refusal(error) => Err(Arc::clone(error)),
            _ => database.audit(std::slice::from_ref(entry)).await.map_err(Arc::new),
        };
        all.push(written);
    }
    all
}

/// Whether the error is one of an entry, and not of PostgreSQL.
fn is_refusal(error: &database::Error) -> bool {
    match error.class() {
        FailureClass::Data | FailureClass::Retryable => true,
        FailureClass::Unavailable | FailureClass::Transient => false,
    }
}

fn log_dropped(entry: &NewAuditEntry, error: &database::Error) {
    tracing::error!(
        actor = entry.actor,
        action = entry.action,
        tenant = entry.tenant.as_ref().map(TenantId::as_str),
        subject = entry.subject,
        detail = %entry.detail,
        error = with_causes(error),
        "PostgreSQL refused an entry of the audit log; it is dropped"
    );
}

//! The result of a chaos run, as text and as JSON.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::time::Duration;

use serde_json::{Value, json};

use super::api::ApiRecord;
use super::plan::Fault;
use super::recovery::Recovery;
use crate::Discrepancies;

/// How many items of each kind of damage the text lists; JSON has all.
const SHOWN: usize = 10;

/// The result of a run.
pub struct Report {
    pub(super) seed: u64,
    pub(super) took: Duration,
    pub(super) injected: Vec<InjectedFault>,
    pub(super) recoveries: Vec<Recovery>,
    pub(super) confirmed: usize,
    pub(super) events: usize,
    pub(super) closed: usize,
    pub(super) misread_during_faults: Vec<String>,
    pub(super) unfinished: Vec<String>,
    pub(super) discrepancies: Discrepancies,
    pub(super) unexpected_exits: Vec<String>,
    /// What is wrong with the audit log.
    pub(super) audit: Vec<String>,
    pub(super) api: ApiRecord,
}

/// A fault that was injected.
#[derive(Debug, Clone, Copy)]
pub(super) struct InjectedFault {
    pub(super) fault: Fault,
    /// Since the start of the run.
    pub(super) at: Duration,
    /// Until it was repaired.
    pub(super) lasted: Duration,
}

impl Report {
    /// Each kind of damage with its items; empty when every message was stored once, in its place, and
    /// all work was done.
    #[must_use]
    pub fn damage(&self) -> Vec<(&'static str, Vec<String>)> {
        let Discrepancies {
            lost,
            duplicated,
            never_published,
            dead_letters,
            undeleted,
            misread,
            outdated,
            repeated: _,
        } = &self.discrepancies;
        let kinds = [
            ("lost actions", lost.clone()),
            ("duplicated actions", duplicated.clone()),
            ("actions that were never published", never_published.clone()),
            ("dead letters", dead_letters.iter().cloned().collect()),
            ("messages that were deleted and are stored", undeleted.clone()),
            ("misread transcripts after the faults", misread.clone()),
            ("conversations with another rating or close reason", outdated.clone()),
            ("misread transcripts during the faults", self.misread_during_faults.clone()),
            ("unfinished work", self.unfinished.clone()),
            ("processes that exited unexpectedly", self.unexpected_exits.clone()),
            ("wrong answers of the API", self.api.wrong.clone()),
            ("the audit log", self.audit.clone()),
        ];
        kinds.into_iter().filter(|(_, items)| !items.is_empty()).collect()
    }

    /// The lone faults after which a replica did not work again within the promised time.
    #[must_use]
    pub fn late(&self) -> Vec<String> {
        let late = self.recoveries.iter().filter(|recovery| !recovery.is_in_time());
        late.map(|recovery| format!("{}: {recovery}", recovery.fault)).collect()
    }

    /// The report as one JSON document.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let faults = self.injected.iter().map(|it| {
            json!({
                "fault": it.fault.to_string(),
                "at_seconds": it.at.as_secs_f64(),
                "lasted_seconds": it.lasted.as_secs_f64(),
            })
        });
        let recoveries = self.recoveries.iter().map(|it| {
            json!({
                "fault": it.fault.to_string(),
                "seconds": it.took.map(|took| took.as_secs_f64()),
                "promised_seconds": it.promised().as_secs_f64(),
                "in_time": it.is_in_time(),
            })
        });
        let Discrepancies {
            lost,
            duplicated,
            never_published,
            dead_letters,
            undeleted,
            misread,
            outdated,
            repeated,
        } = &self.discrepancies;
        json!({
            "seed": self.seed,
            "seconds": self.took.as_secs_f64(),
            "messages_confirmed": self.confirmed,
            "events_confirmed": self.events,
            "conversations_closed": self.closed,
            "faults": faults.collect::<Vec<_>>(),
            "recoveries": recoveries.collect::<Vec<_>>(),
            "lost": lost,
            "duplicated": duplicated,
            "never_published": never_published,
            "dead_letters": dead_letters,
            "repeated_without_identity": repeated,
            "deleted_and_stored": undeleted,
            "misread_transcripts": misread,
            "outdated_conversations": outdated,
            "misread_transcripts_during_faults": self.misread_during_faults,
            "unfinished_work": self.unfinished,
            "unexpected_exits": self.unexpected_exits,
            "http_requests_published": self.api.published,
            "http_requests_repeated": self.api.repeated,
            "http_requests_unanswered": self.api.unanswered,
            "http_requests_refused": self.api.refused,
            "http_pages_read": self.api.pages,
            "http_wrong_answers": self.api.wrong,
            "audit_log": self.audit,
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Time until all replicas worked again after each lone fault")?;
        let mut rows = BTreeMap::<String, String>::new();
        for recovery in &self.recoveries {
            let cell = rows.entry(recovery.fault.to_string()).or_default();
            match recovery.took {
                Some(took) => write!(cell, " {:.2} s", took.as_secs_f64())?,
                None => cell.push_str(" not recovered"),
            }
            write!(cell, " (promised {} s)", recovery.promised().as_secs())?;
        }
        for (fault, cell) in rows {
            writeln!(f, "  {fault:<44}{cell}")?;
        }
        let (minutes, seconds) = (self.took.as_secs() / 60, self.took.as_secs() % 60);
        writeln!(
            f,
            "\nSeed {}: {} faults in {minutes} min {seconds:02} s; {} messages and {} session events and \
             ratings confirmed, {} conversations closed",
            self.seed,
            self.injected.len(),
            self.confirmed,
            self.events,
            self.closed
        )?;
        let Discrepancies { lost, duplicated, dead_letters, misread, repeated, .. } =
            &self.discrepancies;
        let (lost, duplicated, dead_letters) = (lost.len(), duplicated.len(), dead_letters.len());
        let repeated = repeated.len();
        let misread = misread.len() + self.misread_during_faults.len();
        write!(
            f,
            "{lost} lost, {duplicated} duplicated, {dead_letters} dead letters, {misread} misread \
             transcripts; {repeated} messages without an identity were stored again"
        )?;
        let ApiRecord { published, repeated, pages, unanswered, refused, .. } = &self.api;
        write!(
            f,
            "\nHTTP: {published} requests published, {repeated} times again; {pages} pages of conversations read; \
             {unanswered} requests without an answer, {refused} answered with 429 or 503"
        )?;
        for (kind, items) in self.damage() {
            write!(f, "\n{kind} ({}):", items.len())?;
            for item in items.iter().take(SHOWN) {
                write!(f, "\n  {item}")?;
            }
        }
        for late in self.late() {
            write!(f, "\nlate: {late}")?;
        }
        Ok(())
    }
}

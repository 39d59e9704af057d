//! What a run found, for people and for machines.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::time::Duration;

use serde_json::{Value, json};

use super::plan::Fault;
use super::recovery::Recovery;
use crate::Findings;

/// How many names of each kind of damage are shown.
const SHOWN: usize = 10;

/// The outcome of a run.
pub struct Report {
    pub(super) seed: u64,
    pub(super) took: Duration,
    pub(super) struck: Vec<Struck>,
    pub(super) recoveries: Vec<Recovery>,
    pub(super) confirmed: usize,
    pub(super) closed: usize,
    pub(super) misread: Vec<String>,
    pub(super) unsettled: Vec<String>,
    pub(super) findings: Findings,
    pub(super) fallen: Vec<String>,
}

/// A fault that was made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Struck {
    pub(super) fault: Fault,
    /// Since the beginning.
    pub(super) at: Duration,
    /// Until it was mended.
    pub(super) lasted: Duration,
}

impl Report {
    /// What is wrong with the messages, by kind; empty when each was kept, once, in its place.
    #[must_use]
    pub fn damage(&self) -> Vec<(&'static str, Vec<String>)> {
        let Findings { lost, doubled, unknown_keys, dead_letters, misread } = &self.findings;
        let kinds = [
            ("lost", lost.clone()),
            ("doubled", doubled.clone()),
            ("never published", unknown_keys.clone()),
            ("dead letters", dead_letters.iter().cloned().collect()),
            ("transcripts that differ", misread.clone()),
            ("transcripts in disorder while things broke", self.misread.clone()),
            ("not at rest", self.unsettled.clone()),
            ("workers that ended by themselves", self.fallen.clone()),
        ];
        kinds.into_iter().filter(|(_, names)| !names.is_empty()).collect()
    }

    /// The faults after which the fleet was not back in time.
    #[must_use]
    pub fn late(&self) -> Vec<String> {
        let late = self.recoveries.iter().filter(|recovery| !recovery.is_kept());
        late.map(|recovery| format!("{}: {recovery}", recovery.fault)).collect()
    }

    /// All of it as one document.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let struck = self.struck.iter().map(|it| {
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
                "kept": it.is_kept(),
            })
        });
        let Findings { lost, doubled, unknown_keys, dead_letters, misread } = &self.findings;
        json!({
            "seed": self.seed,
            "seconds": self.took.as_secs_f64(),
            "messages_confirmed": self.confirmed,
            "conversations_closed": self.closed,
            "faults": struck.collect::<Vec<_>>(),
            "recoveries": recoveries.collect::<Vec<_>>(),
            "lost": lost,
            "doubled": doubled,
            "never_published": unknown_keys,
            "dead_letters": dead_letters,
            "transcripts_that_differ": misread,
            "transcripts_in_disorder": self.misread,
            "not_at_rest": self.unsettled,
            "workers_that_ended": self.fallen,
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Working again after a fault alone, by its slowest replica")?;
        let mut rows = BTreeMap::<String, String>::new();
        for recovery in &self.recoveries {
            let cell = rows.entry(recovery.fault.to_string()).or_default();
            match recovery.took {
                Some(took) => write!(cell, " {:.2} s", took.as_secs_f64())?,
                None => cell.push_str(" never"),
            }
            write!(cell, " (promised {} s)", recovery.promised().as_secs())?;
        }
        for (fault, cell) in rows {
            writeln!(f, "  {fault:<44}{cell}")?;
        }
        let (minutes, seconds) = (self.took.as_secs() / 60, self.took.as_secs() % 60);
        writeln!(
            f,
            "\nSeed {}: {} faults in {minutes} min {seconds:02} s; {} messages confirmed, {} \
             conversations closed",
            self.seed,
            self.struck.len(),
            self.confirmed,
            self.closed
        )?;
        let Findings { lost, doubled, dead_letters, misread, .. } = &self.findings;
        let (lost, doubled, dead_letters) = (lost.len(), doubled.len(), dead_letters.len());
        let misread = misread.len() + self.misread.len();
        write!(
            f,
            "{lost} lost, {doubled} doubled, {dead_letters} dead letters, {misread} transcripts misread"
        )?;
        for (kind, names) in self.damage() {
            write!(f, "\n{kind} ({}):", names.len())?;
            for name in names.iter().take(SHOWN) {
                write!(f, "\n  {name}")?;
            }
        }
        for late in self.late() {
            write!(f, "\nlate: {late}")?;
        }
        Ok(())
    }
}

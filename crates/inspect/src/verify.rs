//! Verifying: compares queues, Redis and PostgreSQL with each other, and derived rows with the messages.
//!
//! Everything is read in pages, so memory use does not grow with the database. Changes by the running fleet
//! must not appear as findings: a page of rows is one snapshot, work of the fleet is a finding only when it is
//! overdue, and a difference between Redis and PostgreSQL is reported only if several checks show it.
//!
//! The sections run one after the other, each with the servers that it needs. An unavailable server ends its
//! section and no other. Nothing is written unless repairs are requested. A repair only marks what is wrong as
//! stale (see `database::Repair`); the fleet then corrects it in its ordinary way.

mod compare;
mod copies;
mod finding;
mod queues;
mod rows;
mod run;
mod words;

use database::Scope;
use tokio::time::Instant;

pub use finding::{Finding, Kind, RepairOutcome};
use run::Run;
pub use run::{
    Incomplete, Repairs, Section, Verified, Verifier, VerifyProgress, VerifyingSettings,
};

impl Verifier {
    /// Checks everything in scope, section by section, and repairs it if that was requested. Calls `report` with
    /// progress and findings; returns how each section ended.
    pub async fn run(
        &self,
        scope: &Scope,
        sections: &[Section],
        report: &mut (dyn FnMut(VerifyProgress<'_>) + Send),
    ) -> Vec<Verified> {
        let began = Instant::now();
        // The days that are marked dirty now. One that is still dirty and unchanged at the end is overdue.
        let dirty = if sections.contains(&Section::Days) {
            let read = self.database.dirty_days(scope, rows::REMEMBERED).await;
            read.map_err(Incomplete::from)
        } else {
            Ok(Vec::new())
        };
        let mut ended = Vec::with_capacity(sections.len());
        for &section in sections {
            report(VerifyProgress::Begins(section));
            let verified =
                Verified { section, checked: 0, found: 0, unrepaired: 0, incomplete: None };
            let mut run = Run { verifier: self, scope, began, report, verified };
            let result = match section {
                Section::HotCopies => run.hot_copies().await,
                Section::Conversations => run.conversations().await,
                Section::Days => match &dirty {
                    Ok(dirty) => run.days(dirty).await,
                    Err(unknown) => Err(unknown.clone()),
                },
                Section::Words => run.words().await,
                Section::Integrity => run.integrity().await,
                Section::Queues => run.queues().await,
            };
            run.verified.incomplete = result.err();
            let verified = run.verified;
            report(VerifyProgress::Ends(&verified));
            ended.push(verified);
        }
        ended
    }
}

//! The steps of a replay: take, send, record.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use broker::{PublishError, Publisher};
use conversation::retry_transient;
use database::{
    Actor, ContentFingerprint, Database, DeadLetterCursor, DeadLetterDetail, DeadLetterPage,
    DeadLetterStatus, ReplayOutcome, Selection,
};
use failpoints::{Guard, Step};
use metrics::Metrics;
use uuid::Uuid;

use super::report::Planned;
use crate::operations::PAGE;
use crate::validator::DeadLetterValidator;

/// How long a run holds the dead letters that it takes: far longer than publishing and recording some fifty of
/// them, which times out after 10 s; short enough that another run need not wait long after a crash.
const LEASE: Duration = Duration::from_secs(60);

/// Replays dead letters. Clones share their connections.
#[derive(Clone)]
pub struct Replayer {
    pub(super) database: Database,
    publisher: Publisher,
    metrics: Metrics,
    validator: DeadLetterValidator,
}

/// Dead letters that were published, with RabbitMQ's replies.
#[derive(Debug)]
#[must_use = "they stay open until this is recorded"]
pub(super) struct Sent {
    pub(super) outcomes: Vec<ReplayOutcome>,
    /// Each one that was confirmed, with the content fingerprint of its message.
    pub(super) confirmed: Vec<(Uuid, Option<ContentFingerprint>)>,
    /// Those that were not sent, because the run no longer held them.
    pub(super) no_longer_held: Vec<Uuid>,
    /// How many were not sent, because they name another tenant than the run is limited to.
    pub(super) of_another_tenant: u64,
    pub(super) unavailable: Option<String>,
}

impl Replayer {
    /// A replayer of the dead letters in this database.
    #[must_use]
    pub fn new(
        database: Database,
        publisher: Publisher,
        metrics: Metrics,
        validator: DeadLetterValidator,
    ) -> Self {
        Self { database, publisher, metrics, validator }
    }

    /// Calls `each` with what a run would send, and to which queue, oldest first. Changes nothing.
    ///
    /// # Errors
    /// PostgreSQL failed.
    pub async fn plan(
        &self,
        selection: Selection,
        mut each: impl FnMut(Planned),
    ) -> Result<(), database::Error> {
        let mut rest = Some(self.database.dead_letter_cursor(selection).await?);
        while let Some(cursor) = rest {
            let open = [DeadLetterStatus::Open];
            let page = self.database.next_dead_letters(&cursor, &open, PAGE).await?;
            page.dead_letters.iter().for_each(|detail| each(self.planned(detail)));
            rest = page.rest;
        }
        Ok(())
    }

    /// Leases the next open dead letters after the cursor, at most `limit`. Unless they are sent, no run can take
    /// them until their lease expires.
    pub(super) async fn take(
        &self,
        cursor: &DeadLetterCursor,
        actor: &Actor,
        limit: u32,
    ) -> Result<DeadLetterPage<DeadLetterDetail>, database::Error> {
        let lease = failpoints::replay_lease(LEASE);
        let take = || self.database.take_dead_letters(cursor, actor, lease, limit);
        let taken = retry_transient(&self.metrics, take).await?;
        failpoints::reached(Step::ReplayTaken);
        Ok(taken)
    }

    /// Publishes what was taken and is still held, and waits for the confirms.
    ///
    /// If this process is stopped, its lease ends without it, and an operator may discard what it has taken. So
    /// PostgreSQL is asked again right before the publish, and the publish ends with the lease that this
    /// renews, by a clock that runs on while the process is stopped.
    pub(super) async fn send(
        &self,
        taken: &[DeadLetterDetail],
        actor: &Actor,
    ) -> Result<Sent, database::Error> {
        let plan = taken.iter().map(|detail| (detail, self.validator.plan(detail)));
        let prepared: Vec<_> = plan
            .map(|(detail, plan)| {
                let publication = Arc::new(plan.publication(detail));
                (detail.dead_letter.id, plan, publication)
            })
            .collect();
        let lease = failpoints::replay_lease(LEASE);
        let ids: Vec<Uuid> = prepared.iter().map(|(id, ..)| *id).collect();
        // From before the request: PostgreSQL begins the lease later.
        let mut lease_end = Instant::now() + lease;
        if !failpoints::holds(Guard::ReplayHoldsItsLease) {
            lease_end += Duration::from_secs(3_600);
        }
        let hold = || self.database.hold_dead_letters(&ids, actor, lease);
        let held: HashSet<Uuid> = match ids.as_slice() {
            [] => HashSet::new(),
            _ if !failpoints::holds(Guard::ReplayHoldsItsLease) => ids.iter().copied().collect(),
            _ => retry_transient(&self.metrics, hold).await?.into_iter().collect(),
        };
        failpoints::reached(Step::ReplayHeld);
        let (held, lost): (Vec<_>, Vec<_>) =
            prepared.into_iter().partition(|(id, ..)| held.contains(id));
        let mut no_longer_held: Vec<Uuid> = lost.into_iter().map(|(id, ..)| id).collect();
        let (foreign, held): (Vec<_>, Vec<_>) =
            held.into_iter().partition(|(_, plan, _)| plan.is_of_another_tenant(actor));
        let of_another_tenant = foreign.len() as u64;
        let refused = foreign.into_iter().map(|(dead_letter, plan, _)| ReplayOutcome {
            dead_letter,
            queue: plan.queue,
            fault: Some("its body names another tenant than the dead letter".to_owned()),
        });
        let mut outcomes: Vec<ReplayOutcome> = refused.collect();
        // Collected: a closure that is held over an await keeps the future from being `Send`.
        let publications: Vec<_> =
            held.iter().map(|(.., publication)| Arc::clone(publication)).collect();
        let results = self.publisher.publish_all_before(lease_end, publications).await;
        failpoints::reached(Step::ReplayConfirmed);
        let (mut confirmed, mut unavailable) = (Vec::new(), None);
        for ((dead_letter, plan, _), result) in held.into_iter().zip(results) {
            let fault = result.err();
            match &fault {
                Some(PublishError::TooLate) => {
                    no_longer_held.push(dead_letter);
                    continue;
                }
                None => confirmed.push((dead_letter, plan.fingerprint)),
                Some(error @ (PublishError::Unreachable(_) | PublishError::Blocked)) => {
                    unavailable = Some(error.to_string());
                }
                Some(_) => {}
            }
            outcomes.push(ReplayOutcome {
                dead_letter,
                queue: plan.queue,
                fault: fault.map(|error| error.to_string()),
            });
        }
        Ok(Sent { outcomes, confirmed, no_longer_held, of_another_tenant, unavailable })
    }

    /// Records the result of each dead letter; returns how many of them the run still held. If that fails, what was
    /// sent stays open; sending it again is harmless.
    pub(super) async fn record(&self, sent: &Sent, actor: &Actor) -> Result<u64, database::Error> {
        let record = || self.database.note_replayed(&sent.outcomes, actor);
        let recorded = retry_transient(&self.metrics, record).await?;
        failpoints::reached(Step::ReplayMarked);
        Ok(recorded)
    }

    fn planned(&self, detail: &DeadLetterDetail) -> Planned {
        let plan = self.validator.plan(detail);
        let dead_letter = &detail.dead_letter;
        let resolved = plan.resolved.as_ref();
        let (refused_as, field, refusal) = match plan.refusal {
            Some(refusal) => (Some(refusal.reason), refusal.field, Some(refusal.detail)),
            None => (None, None, None),
        };
        Planned {
            id: dead_letter.id,
            message_id: resolved
                .map(|it| it.id.to_string())
                .or_else(|| dead_letter.message_id.clone()),
            conversation_id: resolved
                .map(|it| it.conversation.to_string())
                .or_else(|| dead_letter.conversation_id.clone()),
            queue: plan.queue,
            edited: detail.edit.edited_body.is_some(),
            bytes: detail.body_to_send().len(),
            replay: dead_letter.replay_count.saturating_add(1),
            refused_as,
            field,
            refusal,
        }
    }
}

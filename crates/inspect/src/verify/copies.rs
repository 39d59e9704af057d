//! Checks hot copies against committed rows.
//!
//! A copy is checked as readers use it: only if a completeness marker has the current epoch and generation, and
//! only from the marker's `complete_from` on. There it must hold exactly the committed rows. A saver commits
//! before it appends, so a row may be missing for a moment; a saver that stalled or crashed in between has not
//! acknowledged the message, and its redelivery appends it. So a copy that differs is checked again, with epoch
//! and generation read again, and only what differs in every check is reported.

use std::collections::HashSet;
use std::panic::resume_unwind;
use std::time::Duration;

use database::{Database, Page, Repair};
use domain::ids::ConversationKey;
use domain::message::{Message, Position};
use hot_store::{CompleteFrom, Extent, HotStore, Window};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::compare::{Mismatch, compare};
use super::finding::{Finding, Kind};
use super::run::{Incomplete, Run};
use conversation::current_numbers;

/// Messages of a copy, and rows, that are read at once.
const PAGE: usize = 200;
/// The most bytes of rows that are read at once; at least one row is read.
const PAGE_BYTES: usize = 16 * 1024 * 1024;
/// Copies that are checked concurrently: no more than the connections of the command line.
const CONCURRENCY: usize = 4;
/// The pause before each further check: together five times the timeout of a saver's Redis command.
const PAUSES: [Duration; 4] = [
    Duration::from_millis(200),
    Duration::from_millis(800),
    Duration::from_secs(2),
    Duration::from_secs(2),
];

/// The result of one check of a copy.
#[derive(Debug, Clone, PartialEq)]
enum CheckResult {
    /// It equals the rows, or readers do not use it.
    Consistent,
    /// Readers use it, and it differs from PostgreSQL.
    Mismatches(Vec<Mismatch>),
    /// It cannot be decoded.
    Damaged(String),
    /// It holds messages of a conversation that does not exist.
    Orphaned,
    /// The rows in PostgreSQL cannot be decoded.
    Unreadable(String),
}

impl Run<'_> {
    pub(super) async fn hot_copies(&mut self) -> Result<(), Incomplete> {
        let hot = self.verifier.hot.clone();
        if let Some(key) = self.scope.key() {
            return self.copies_of(&hot, vec![key]).await;
        }
        // SCAN may return a key twice.
        let mut seen = HashSet::new();
        let mut cursor = None;
        loop {
            let step = hot.scan(self.scope.tenant.as_ref(), cursor).await?;
            for name in step.unknown_keys {
                let detail = "not the key of a conversation; verbatim does not drop it";
                self.found(Finding::about(Kind::HotCopyOrphaned, Some(name), detail), None).await;
            }
            let mut keys = step.keys;
            if let Some(conversation) = &self.scope.conversation {
                keys.retain(|key| key.conversation == *conversation);
            }
            if let Some(since) = self.scope.since {
                keys = self.verifier.database.touched_since(&keys, since).await?;
            }
            keys.retain(|key| !seen.contains(key));
            let found_before = self.verified.found;
            let checked = keys.clone();
            self.copies_of(&hot, keys).await?;
            if self.verified.found > found_before {
                // Only these would be reported a second time.
                seen.extend(checked);
            }
            match step.next {
                None => return Ok(()),
                next => cursor = next,
            }
        }
    }

    async fn copies_of(
        &mut self,
        hot: &HotStore,
        keys: Vec<ConversationKey>,
    ) -> Result<(), Incomplete> {
        let checked = keys.len();
        let mut differing = check_all(&self.verifier.database, hot, keys).await?;
        for pause in PAUSES {
            if differing.is_empty() {
                break;
            }
            sleep(pause).await;
            let keys = differing.iter().map(|(key, _)| key.clone()).collect();
            let again = check_all(&self.verifier.database, hot, keys).await?;
            differing = in_both(&differing, again);
        }
        for (key, result) in differing {
            self.report_copy(&key, result).await;
        }
        self.checked(checked);
        Ok(())
    }

    async fn report_copy(&mut self, key: &ConversationKey, result: CheckResult) {
        let invalidate = || Some(Repair::InvalidateCopy(key.clone(), self.verifier.random.next()));
        let one = |kind, detail: &str| vec![Finding::of(kind, key, detail)];
        let (findings, repair) = match result {
            CheckResult::Consistent => return,
            CheckResult::Mismatches(mismatches) => {
                let finding = |mismatch: Mismatch| {
                    let finding = Finding::of(mismatch.kind, key, mismatch.detail());
                    Finding { id: Some(mismatch.id), ..finding }
                };
                (mismatches.into_iter().map(finding).collect(), invalidate())
            }
            CheckResult::Damaged(damage) => (one(Kind::HotCopyDamaged, &damage), invalidate()),
            CheckResult::Orphaned => {
                let detail = "the copy holds messages, but the conversation does not exist";
                (one(Kind::HotCopyOrphaned, detail), Some(Repair::DropCopy(key.clone())))
            }
            CheckResult::Unreadable(fault) => (one(Kind::MessagesUnreadable, &fault), None),
        };
        self.all_found(findings, repair).await;
    }
}

/// Checks copies, several at the same time; returns those that are not consistent.
async fn check_all(
    database: &Database,
    hot: &HotStore,
    keys: Vec<ConversationKey>,
) -> Result<Vec<(ConversationKey, CheckResult)>, Incomplete> {
    let share = keys.len().div_ceil(CONCURRENCY).max(1);
    let mut shares = JoinSet::new();
    for keys in keys.chunks(share) {
        let (database, hot, keys) = (database.clone(), hot.clone(), keys.to_vec());
        shares.spawn(async move {
            let mut found = Vec::new();
            for key in keys {
                match check_copy(&database, &hot, &key).await? {
                    CheckResult::Consistent => {}
                    other => found.push((key, other)),
                }
            }
            Ok::<_, Incomplete>(found)
        });
    }
    let mut found = all(shares).await?;
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(found)
}

/// The results of all shares. A share that panicked has compared nothing, which must not count as consistent:
/// the panic is resumed here.
async fn all<T: 'static>(
    mut shares: JoinSet<Result<Vec<T>, Incomplete>>,
) -> Result<Vec<T>, Incomplete> {
    let mut found = Vec::new();
    while let Some(share) = shares.join_next().await {
        found.extend(share.unwrap_or_else(|error| resume_unwind(error.into_panic()))?);
    }
    Ok(found)
}

/// One check of one copy, from its newest message back to `complete_from`.
async fn check_copy(
    database: &Database,
    hot: &HotStore,
    key: &ConversationKey,
) -> Result<CheckResult, Incomplete> {
    let mut mismatches = Vec::new();
    let mut before: Option<Position> = None;
    loop {
        // The copy before the rows: what it holds is committed already, so the rows include it.
        let window = Window { newest: PAGE, before: before.clone() };
        let copy = hot.read(key, &window).await?;
        if let Some(damage) = copy.damage {
            return Ok(CheckResult::Damaged(damage.to_string()));
        }
        let page = Page { newest: PAGE, max_bytes: PAGE_BYTES, before };
        let snapshot = match database.read(key, &page).await {
            Ok(snapshot) => snapshot,
            Err(error @ database::Error::Corrupt { .. }) => {
                return Ok(CheckResult::Unreadable(error.to_string()));
            }
            Err(error) => return Err(error.into()),
        };
        let Some(conversation) = &snapshot.numbers.conversation else {
            let empty = copy.messages.is_empty();
            return Ok(if empty { CheckResult::Consistent } else { CheckResult::Orphaned });
        };
        let current = current_numbers(&snapshot.numbers, conversation);
        let Some(complete_from) = current.and_then(|it| copy.complete_from(it)).cloned() else {
            return Ok(CheckResult::Consistent);
        };
        let mut messages = copy.messages;
        messages.retain(|it| conversation.erased_at.is_none_or(|erased| it.created_at > erased));
        // Each side is known from its oldest message on, or entirely if there is no older message.
        let oldest = |of: Option<&Message>| of.map(Message::position);
        let copy_from = match copy.extent {
            Extent::Exhausted => None,
            Extent::Full => oldest(messages.first()),
            // Readers cannot read past this either, so older messages cannot mislead them.
            Extent::CutShort => return Ok(result_of(mismatches)),
        };
        let rows_from = match snapshot.from_beginning {
            true => None,
            false => oldest(snapshot.messages.first()),
        };
        let complete_from = match complete_from {
            CompleteFrom::Beginning => None,
            CompleteFrom::At(position) => Some(position),
        };
        let known_from = copy_from.max(rows_from);
        let from = known_from.clone().max(complete_from.clone());
        mismatches.extend(compare(&messages, &snapshot.messages, from.as_ref()));
        if known_from <= complete_from {
            return Ok(result_of(mismatches));
        }
        before = known_from;
    }
}

fn result_of(mismatches: Vec<Mismatch>) -> CheckResult {
    if mismatches.is_empty() {
        CheckResult::Consistent
    } else {
        CheckResult::Mismatches(mismatches)
    }
}

fn in_both(
    before: &[(ConversationKey, CheckResult)],
    after: Vec<(ConversationKey, CheckResult)>,
) -> Vec<(ConversationKey, CheckResult)> {
    let mut common = Vec::new();
    for (key, result) in after {
        let earlier = before.iter().find(|(before, _)| *before == key).map(|(_, result)| result);
        let result = match (earlier, result) {
            (Some(CheckResult::Mismatches(before)), CheckResult::Mismatches(mut after)) => {
                after.retain(|mismatch| before.contains(mismatch));
                result_of(after)
            }
            (Some(before), after) if *before == after => after,
            _ => CheckResult::Consistent,
        };
        if result != CheckResult::Consistent {
            common.push((key, result));
        }
    }
    common
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    #[should_panic(expected = "comparing failed")]
    async fn a_comparison_that_panics_fails_the_check() {
        let mut shares = JoinSet::new();
        shares.spawn(async { Ok(vec![1]) });
        shares.spawn(async { panic!("comparing failed") });
        drop(all(shares).await);
    }
}

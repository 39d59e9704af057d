//! Hot copies against committed rows.
//!
//! A copy counts only as a reader would let it count: under a mark of the current numbers, from its
//! floor on. There it must hold exactly the committed rows. A saver commits before it appends, so a row
//! may be missing for a moment; a saver that was frozen or died in between has not acknowledged it, and
//! the redelivery will bring it. So what differs is looked at again, numbers and all, and only what
//! differs in every look is told.

use std::collections::HashSet;
use std::panic::resume_unwind;
use std::time::Duration;

use database::{Database, Page, Repair};
use domain::ids::ConversationKey;
use domain::message::{Message, Position};
use hot_store::{CompleteFrom, Extent, HotStore, Window};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::compare::{Fault, compare};
use super::{Finding, Incomplete, Kind, Run};
use crate::reader::marked;

/// Messages that are read of a copy and its rows at once.
const PAGE: usize = 200;
/// Bytes of rows that are read at once, at most, but always one row.
const PAGE_BYTES: usize = 16 * 1024 * 1024;
/// Copies that are looked at side by side: what the connections of a command line carry.
const SIDE_BY_SIDE: usize = 4;
/// Before each look after the first: in all five times longer than Redis may take to answer a saver.
const PAUSES: [Duration; 4] = [
    Duration::from_millis(200),
    Duration::from_millis(800),
    Duration::from_secs(2),
    Duration::from_secs(2),
];

/// What one look at a copy showed.
#[derive(Debug, Clone, PartialEq)]
enum Look {
    /// No reader would use it, or it is as it should be.
    Nothing,
    /// A reader would use it, and gets something else than from PostgreSQL.
    Faults(Vec<Fault>),
    /// It cannot be read.
    Damaged(String),
    /// It holds messages of a conversation that is not there.
    Orphaned,
    /// The rows cannot be read.
    Unreadable(String),
}

impl Run<'_> {
    pub(super) async fn hot_copies(&mut self) -> Result<(), Incomplete> {
        let hot = self.verifier.hot.clone();
        if let Some(key) = self.scope.key() {
            return self.copies_of(&hot, vec![key]).await;
        }
        // A copy may come twice in a walk.
        let mut seen = HashSet::new();
        let mut place = None;
        loop {
            let step = hot.scan(self.scope.tenant.as_ref(), place).await?;
            for name in step.unknown_keys {
                let detail = "a key among the hot copies that is no conversation's";
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
            let faulty = self.verified.found;
            let told = keys.clone();
            self.copies_of(&hot, keys).await?;
            if self.verified.found > faulty {
                // Only these would be told a second time.
                seen.extend(told);
            }
            match step.next {
                None => return Ok(()),
                next => place = next,
            }
        }
    }

    async fn copies_of(
        &mut self,
        hot: &HotStore,
        keys: Vec<ConversationKey>,
    ) -> Result<(), Incomplete> {
        let looked_at = keys.len();
        let mut suspicious = look_at(&self.verifier.database, hot, keys).await?;
        for pause in PAUSES {
            if suspicious.is_empty() {
                break;
            }
            sleep(pause).await;
            let keys = suspicious.iter().map(|(key, _)| key.clone()).collect();
            let again = look_at(&self.verifier.database, hot, keys).await?;
            suspicious = in_both(&suspicious, again);
        }
        for (key, look) in suspicious {
            self.tell_of_copy(&key, look).await;
        }
        self.checked(looked_at);
        Ok(())
    }

    async fn tell_of_copy(&mut self, key: &ConversationKey, look: Look) {
        let void = || Repair::InvalidateCopy(key.clone(), self.verifier.random.next());
        match look {
            Look::Nothing => {}
            Look::Faults(faults) => {
                let told = |fault: Fault| {
                    let detail = match fault.kind {
                        Kind::HotCopyMissing => "committed, and not in the valid copy".to_owned(),
                        Kind::HotCopySurplus => "in the valid copy, and not committed".to_owned(),
                        _ => format!("the valid copy has another {}", fault.fields.join(", ")),
                    };
                    Finding { id: Some(fault.id), ..Finding::of(fault.kind, key, detail) }
                };
                let void = void();
                self.all_found(faults.into_iter().map(told).collect(), Some(void)).await;
            }
            Look::Damaged(damage) => {
                let void = void();
                self.found(Finding::of(Kind::HotCopyDamaged, key, damage), Some(void)).await;
            }
            Look::Orphaned => {
                let detail = "it holds messages, and there is no such conversation";
                let finding = Finding::of(Kind::HotCopyOrphaned, key, detail);
                self.found(finding, Some(Repair::DropCopy(key.clone()))).await;
            }
            Look::Unreadable(fault) => {
                self.found(Finding::of(Kind::MessagesUnreadable, key, fault), None).await;
            }
        }
    }
}

/// Looks at copies, some side by side; returns those that show something.
async fn look_at(
    database: &Database,
    hot: &HotStore,
    keys: Vec<ConversationKey>,
) -> Result<Vec<(ConversationKey, Look)>, Incomplete> {
    let share = keys.len().div_ceil(SIDE_BY_SIDE).max(1);
    let mut shares = JoinSet::new();
    for keys in keys.chunks(share) {
        let (database, hot, keys) = (database.clone(), hot.clone(), keys.to_vec());
        shares.spawn(async move {
            let mut found = Vec::new();
            for key in keys {
                match look(&database, &hot, &key).await? {
                    Look::Nothing => {}
                    shown => found.push((key, shown)),
                }
            }
            Ok::<_, Incomplete>(found)
        });
    }
    let mut found = all(shares).await?;
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(found)
}

/// What all shares found. One that panicked has compared nothing, which must not pass for agreement:
/// its panic goes on here.
async fn all<T: 'static>(
    mut shares: JoinSet<Result<Vec<T>, Incomplete>>,
) -> Result<Vec<T>, Incomplete> {
    let mut found = Vec::new();
    while let Some(share) = shares.join_next().await {
        found.extend(share.unwrap_or_else(|error| resume_unwind(error.into_panic()))?);
    }
    Ok(found)
}

/// One look at one copy, from its newest message to its floor.
async fn look(
    database: &Database,
    hot: &HotStore,
    key: &ConversationKey,
) -> Result<Look, Incomplete> {
    let mut faults = Vec::new();
    let mut before: Option<Position> = None;
    loop {
        // The copy first: what it holds was committed before, so the rows have it.
        let window = Window { newest: PAGE, before: before.clone() };
        let copy = hot.read(key, &window).await?;
        if let Some(damage) = copy.damage {
            return Ok(Look::Damaged(damage.to_string()));
        }
        let page = Page { newest: PAGE, max_bytes: PAGE_BYTES, before };
        let snapshot = match database.read(key, &page).await {
            Ok(snapshot) => snapshot,
            Err(error @ database::Error::Corrupt { .. }) => {
                return Ok(Look::Unreadable(error.to_string()));
            }
            Err(error) => return Err(error.into()),
        };
        let Some(conversation) = &snapshot.numbers.conversation else {
            let empty = copy.messages.is_empty();
            return Ok(if empty { Look::Nothing } else { Look::Orphaned });
        };
        let Some(complete_from) =
            copy.complete_from(marked(&snapshot.numbers, conversation)).cloned()
        else {
            return Ok(Look::Nothing);
        };
        let mut messages = copy.messages;
        messages.retain(|it| conversation.erased_at.is_none_or(|erased| it.created_at > erased));
        // Each side is known from its oldest message on, or wholly if there is none before that.
        let oldest = |of: Option<&Message>| of.map(Message::position);
        let copy_from = match copy.extent {
            Extent::Exhausted => None,
            Extent::Full => oldest(messages.first()),
            // No reader gets past this, so no reader is misled by what is below.
            Extent::CutShort => return Ok(shown(faults)),
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
        faults.extend(compare(&messages, &snapshot.messages, from.as_ref()));
        if known_from <= complete_from {
            return Ok(shown(faults));
        }
        before = known_from;
    }
}

fn shown(faults: Vec<Fault>) -> Look {
    if faults.is_empty() { Look::Nothing } else { Look::Faults(faults) }
}

/// What two looks have in common.
fn in_both(
    before: &[(ConversationKey, Look)],
    after: Vec<(ConversationKey, Look)>,
) -> Vec<(ConversationKey, Look)> {
    let mut left = Vec::new();
    for (key, look) in after {
        let same = before.iter().find(|(before, _)| *before == key).map(|(_, look)| look);
        let look = match (same, look) {
            (Some(Look::Faults(before)), Look::Faults(mut after)) => {
                after.retain(|fault| before.contains(fault));
                shown(after)
            }
            (Some(before), after) if *before == after => after,
            _ => Look::Nothing,
        };
        if look != Look::Nothing {
            left.push((key, look));
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    #[should_panic(expected = "comparing failed")]
    async fn a_comparison_that_panics_is_not_passed_over() {
        let mut shares = JoinSet::new();
        shares.spawn(async { Ok(vec![1]) });
        shares.spawn(async { panic!("comparing failed") });
        drop(all(shares).await);
    }
}

//! A batch of messages to save: which of them are saved together, and what became of each.

use std::collections::{BTreeSet, HashMap, HashSet};

use database::{Place, SaveRow, Saved, SavedBatch};
use domain::action::{Identity, SaveMessage};
use domain::failure::{DeadLetterReason, Done, Failure, Outcome, Refusal};
use domain::ids::ConversationKey;
use domain::message::Message;

use super::committed::{Committed, CommittedMessage};
use crate::locked_conversations::LockedConversations;

/// A message to save.
#[derive(Debug, Clone, Copy)]
pub struct ToSave<'a> {
    /// The message.
    pub message: &'a SaveMessage,
    /// Its unit: messages of one conversation that belong together.
    pub unit: usize,
    /// Whether none of its unit is saved if one of it cannot be.
    pub atomic: bool,
    /// How many microseconds after the time of receipt of its unit, where that is its time: nobody sent another.
    pub after_receipt: Option<usize>,
    /// Whether its time follows from its place in its unit: its sender gave none to it.
    pub is_time_estimated: bool,
}

impl<'a> ToSave<'a> {
    /// A message that is a unit of its own.
    #[must_use]
    pub fn alone(unit: usize, message: &'a SaveMessage) -> Self {
        Self { message, unit, atomic: false, after_receipt: None, is_time_estimated: false }
    }
}

/// A row to save, and the actions of the batch that it represents.
pub(super) struct Row<'a> {
    pub(super) row: SaveRow<'a>,
    pub(super) unit: usize,
    first: usize,
    /// Later actions with the same id and the same content.
    repeated: Vec<usize>,
}

pub(super) struct Batch<'a> {
    pub(super) actions: &'a [ToSave<'a>],
    /// Whether a unit has more than one message, or is atomic.
    pub(super) has_units: bool,
    /// Whether units repeat ids, of which one has more than one message or is atomic.
    repeats_ids: bool,
    /// One for each action; `None` until it is decided.
    pub(super) outcomes: Vec<Option<Outcome>>,
    /// Rows that are not stored yet, in key order. A transaction takes each id once, so rows with the same
    /// id and different content are saved in successive rounds: the first one committed stays.
    pending: Vec<Row<'a>>,
    /// The rows of atomic units, in the order of the units.
    atomic: Vec<Row<'a>>,
    /// Where ids are repeated: those under which a message of this batch is stored.
    stored: HashSet<RowKey<'a>>,
    /// The committed messages, to be appended to the hot copies.
    pub(super) committed: Committed<'a>,
}

impl<'a> Batch<'a> {
    /// A batch of these actions. Those of conversations that were locked a short time ago are decided already.
    pub(super) fn new(actions: &'a [ToSave<'a>], locked: &LockedConversations) -> Self {
        let mut outcomes: Vec<Option<Outcome>> = actions.iter().map(|_| None).collect();
        if !locked.is_empty() {
            for (ToSave { message, .. }, outcome) in actions.iter().zip(&mut outcomes) {
                *outcome =
                    locked.failure(&message.common.key, message.message.id.as_str()).map(Err);
            }
        }
        let has_units = actions.windows(2).any(|pair| pair[0].unit == pair[1].unit)
            || actions.iter().any(|action| action.atomic);
        let repeats_ids = has_units && repeats_ids(actions);
        let mut pending: Vec<Row<'a>> = Vec::with_capacity(actions.len());
        let mut atomic: Vec<Row<'a>> = Vec::new();
        let mut known = PlacesOfIds::new();
        let mut order: Vec<usize> =
            (0..actions.len()).filter(|index| outcomes[*index].is_none()).collect();
        if has_units {
            // The rows of a unit are neighbours, and the units of a conversation too.
            order.sort_by_key(|n| (&actions[*n].message.common.key, actions[*n].unit));
        } else {
            // A stable sort: actions with the same id stay in order of arrival.
            order.sort_by(|a, b| row_key(actions[*a].message).cmp(&row_key(actions[*b].message)));
        }
        for index in order {
            let ToSave {
                message: action,
                unit,
                atomic: is_atomic,
                after_receipt,
                is_time_estimated,
            } = actions[index];
            let row = SaveRow {
                key: &action.common.key,
                session: &action.common.session,
                tenant_tier: action.common.tenant_tier.as_deref(),
                message: &action.message,
                body_hash: action.body_hash(),
                place: after_receipt.map(|micros| Place { action: unit, micros }),
                created_at: action.message.created_at,
                is_time_estimated,
            };
            let rows = if is_atomic { &mut atomic } else { &mut pending };
            let is_same = |known: &Row<'_>| {
                row_key_of(&known.row) == row_key_of(&row) && known.row.body_hash == row.body_hash
            };
            let same = match (has_units, repeats_ids) {
                (true, false) => None,
                (true, true) => {
                    // Rows of an atomic unit are compared within it.
                    let scope = is_atomic.then_some(unit);
                    let places = known.entry((scope, row_key_of(&row))).or_default();
                    let same = places.iter().copied().find(|place| is_same(&rows[*place]));
                    places.extend(same.is_none().then_some(rows.len()));
                    same
                }
                (false, _) => {
                    // They are sorted by their ids.
                    let of_this_id = |n: &usize| row_key_of(&rows[*n].row) == row_key_of(&row);
                    (0..rows.len()).rev().take_while(of_this_id).find(|n| is_same(&rows[*n]))
                }
            };
            match same {
                Some(place) => rows[place].repeated.push(index),
                None => rows.push(Row { row, unit, first: index, repeated: Vec::new() }),
            }
        }
        Self {
            actions,
            has_units,
            repeats_ids,
            outcomes,
            pending,
            atomic,
            stored: HashSet::new(),
            committed: Committed::with_capacity(actions.len()),
        }
    }

    /// The first pending row of every id, or `None` if no row is pending.
    pub(super) fn next_round(&mut self) -> Option<Vec<Row<'a>>> {
        let mut round = std::mem::take(&mut self.pending);
        if self.repeats_ids {
            return self.next_round_of_units(round);
        }
        // Without units they are sorted by their ids.
        let mut last = None;
        let repeats_id = |row: &mut Row<'a>| {
            let key = row_key_of(&row.row);
            last.replace(key) == Some(key)
        };
        self.pending = round.extract_if(.., repeats_id).collect();
        (!round.is_empty()).then_some(round)
    }

    /// A round in which no id is repeated. A unit that repeats an id of another unit waits as a whole.
    fn next_round_of_units(&mut self, all: Vec<Row<'a>>) -> Option<Vec<Row<'a>>> {
        let mut ids: HashSet<RowKey<'_>> = HashSet::with_capacity(all.len());
        let mut round = Vec::with_capacity(all.len());
        let mut all = all.into_iter().peekable();
        while let Some(first) = all.next() {
            let unit = first.unit;
            let mut rows = vec![first];
            rows.extend(std::iter::from_fn(|| all.next_if(|row| row.unit == unit)));
            if rows.iter().any(|row| ids.contains(&row_key_of(&row.row))) {
                // No later unit with one of its ids comes before it.
                ids.extend(rows.iter().map(|row| row_key_of(&row.row)));
                self.pending.extend(rows);
                continue;
            }
            for row in rows {
                if self.stored.contains(&row_key_of(&row.row)) {
                    // This batch has seen the message that is stored under its id: it is another one.
                    let failure = conflict(&row);
                    self.fail(&row, &failure);
                } else if ids.insert(row_key_of(&row.row)) {
                    round.push(row);
                } else {
                    self.pending.push(row);
                }
            }
        }
        // With none left to save, some may wait behind those that were just decided.
        match round.is_empty() && !self.pending.is_empty() {
            true => {
                let pending = std::mem::take(&mut self.pending);
                self.next_round_of_units(pending)
            }
            false => (!round.is_empty()).then_some(round),
        }
    }

    /// The rows of each atomic unit. One with a row that was decided before fails like that row.
    pub(super) fn atomic_units(&mut self) -> Vec<Vec<Row<'a>>> {
        let mut rows = std::mem::take(&mut self.atomic).into_iter().peekable();
        let mut units: Vec<Vec<Row<'a>>> = Vec::new();
        while let Some(first) = rows.next() {
            let mut unit = vec![first];
            let of_unit = unit[0].unit;
            unit.extend(std::iter::from_fn(|| rows.next_if(|row| row.unit == of_unit)));
            units.push(unit);
        }
        units.retain(|unit| {
            let failure = self.actions.iter().zip(&self.outcomes).find_map(|(action, outcome)| {
                let is_of_unit = action.unit == unit[0].unit;
                outcome.as_ref().filter(|_| is_of_unit).and_then(|it| it.as_ref().err().cloned())
            });
            let mut ids = HashSet::new();
            let twice = unit.iter().find(|row| !ids.insert(row.row.message.id.as_str()));
            let twice = twice.map(|row| (row.first, conflict(row)));
            for row in unit {
                match (&failure, &twice) {
                    (Some(failure), _) => self.fail(row, failure),
                    (None, Some((first, conflict))) if row.first == *first => {
                        self.fail(row, conflict);
                    }
                    (None, Some(_)) => self.fail(row, &withheld()),
                    (None, None) => {}
                }
            }
            failure.is_none() && twice.is_none()
        });
        units
    }

    pub(super) fn settle(&mut self, part: &[&Row<'a>], saved: SavedBatch<'_>) {
        let mut times = saved.times.into_iter().peekable();
        for (n, (row, saved)) in part.iter().zip(saved.rows).enumerate() {
            let (first, repeated, committed) = match saved {
                Saved::New => {
                    let message = match times.next_if(|(of, _)| *of == n) {
                        Some((_, created_at)) => {
                            let message = Message { created_at, ..row.row.message.clone() };
                            CommittedMessage::Stored(Box::new(message))
                        }
                        None => CommittedMessage::Sent(row.row.message),
                    };
                    (Ok(Done::Applied), Ok(Done::Duplicate), Some(message))
                }
                Saved::Duplicate(message) => (
                    Ok(Done::Duplicate),
                    Ok(Done::Duplicate),
                    Some(CommittedMessage::Stored(message)),
                ),
                Saved::Conflict => (Err(conflict(row)), Err(conflict(row)), None),
                Saved::Erased | Saved::Deleted => (Ok(Done::Erased), Ok(Done::Erased), None),
                Saved::Withheld => (Err(withheld()), Err(withheld()), None),
            };
            if first == Ok(Done::Duplicate) {
                self.committed.renew([row.row.key]);
            }
            if self.repeats_ids && committed.is_some() {
                self.stored.insert(row_key_of(&row.row));
            }
            if let Some(message) = committed {
                self.committed.add(row.row.key, message);
            }
            for action in &row.repeated {
                self.outcomes[*action] = Some(repeated.clone());
            }
            self.outcomes[row.first] = Some(first);
        }
    }

    /// Fails the rows of conversations that were found to be locked meanwhile: each wait for them takes seconds.
    pub(super) fn fail_locked(&mut self, rows: &mut Vec<Row<'a>>, locked: &LockedConversations) {
        if locked.is_empty() {
            return;
        }
        rows.retain(|row| match locked.failure(row.row.key, row.row.message.id.as_str()) {
            Some(failure) => {
                self.fail(row, &failure);
                false
            }
            None => true,
        });
    }

    pub(super) fn fail(&mut self, row: &Row<'a>, failure: &Failure) {
        for action in row.repeated.iter().chain([&row.first]) {
            self.outcomes[*action] = Some(Err(failure.clone()));
        }
    }

    /// The saved messages of a conversation fail; they are handled again.
    pub(super) fn fail_conversation(&mut self, key: &ConversationKey, failure: &Failure) {
        for (action, outcome) in self.actions.iter().zip(&mut self.outcomes) {
            if action.message.common.key == *key && matches!(outcome, Some(Ok(_))) {
                *outcome = Some(Err(failure.clone()));
            }
        }
    }

    /// The conversations of messages that may be stored already, under an unknown id; whatever became of them now,
    /// unless they are handled again from the slow queue: then they are asked for again.
    pub(super) fn saved_again(&self) -> BTreeSet<ConversationKey> {
        let again = Identity::Random { redelivered: true };
        let is_slow =
            |outcome: &Option<Outcome>| matches!(outcome, Some(Err(failure)) if failure.is_apart());
        let saved_again = self.actions.iter().zip(&self.outcomes);
        let saved_again = saved_again
            .filter(|(action, outcome)| action.message.identity == again && !is_slow(outcome));
        saved_again.map(|(action, _)| action.message.common.key.clone()).collect()
    }

    pub(super) fn into_outcomes(self) -> Vec<Outcome> {
        // Every action is decided in some round.
        let undecided =
            || Err(Failure::Retry("the batch ended without an outcome for this message".into()));
        self.outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(undecided)).collect()
    }
}

/// Whether several messages have one id.
fn repeats_ids(actions: &[ToSave<'_>]) -> bool {
    let mut ids: Vec<RowKey<'_>> = actions.iter().map(|it| row_key(it.message)).collect();
    ids.sort_unstable();
    ids.windows(2).any(|pair| pair[0] == pair[1])
}

/// What identifies a row.
type RowKey<'a> = (&'a ConversationKey, &'a str);

/// Where the rows of an id are, in an atomic unit or outside of those.
type PlacesOfIds<'a> = HashMap<(Option<usize>, RowKey<'a>), Vec<usize>>;

fn row_key(action: &SaveMessage) -> RowKey<'_> {
    (&action.common.key, action.message.id.as_str())
}

fn row_key_of<'a>(row: &SaveRow<'a>) -> RowKey<'a> {
    (row.key, row.message.id.as_str())
}

/// The rows in the order in which they are saved: two batches cannot deadlock. Without units they are sorted already.
pub(super) fn in_key_order<'r, 'a>(part: &'r [Row<'a>], has_units: bool) -> Vec<&'r Row<'a>> {
    let mut rows: Vec<&Row<'a>> = part.iter().collect();
    if has_units {
        rows.sort_by(|a, b| row_key_of(&a.row).cmp(&row_key_of(&b.row)));
    }
    rows
}

/// Of a message whose atomic unit is not saved because of another message.
fn withheld() -> Failure {
    let detail = "another message of its action cannot be saved, and the action is atomic";
    Failure::DeadLetter(Refusal::new(DeadLetterReason::Conflict, detail.to_owned()))
}

fn conflict(row: &Row<'_>) -> Failure {
    Failure::DeadLetter(Refusal {
        reason: DeadLetterReason::Conflict,
        hint: None,
        field: Some("message_id".to_owned()),
        detail: format!(
            "message_id {:?} is already stored in this conversation with a different role, content, \
             tool_calls or tool_call_id; the stored message stays as it is",
            row.row.message.id
        ),
    })
}

//! What to store of a list: a pure function of the list and of what is stored.
//!
//! The rules, in their order:
//!
//! 1. Computed ids say how far the list is stored. Messages behind that whose own ids are stored are stored, too, if they say
//!    the same or another one of these follows. If that is all, nothing is new.
//! 2. No stored message follows: the rest is new.
//! 3. The end of the conversation stands at exactly one place in the list: the rest behind it is new. The caller cut,
//!    summarised or cleared what stands before.
//! 4. Something of the list is stored: the rest is a branch.
//! 5. The end of the list stands at exactly one place in the conversation: nothing is new.
//! 6. Nothing in common: a conflict.
//!
//! A list that names the message from which it goes on has that in common, and rule 3 does not apply to it.

use std::collections::{BTreeMap, HashSet};

use super::hash::{Fingerprint, SyncHash};
use super::names::{Aligned, OnConflict, SystemMessages};
use super::path::Computed;
use crate::action::{ListedMessage, SyncMessages};
use crate::ids::MessageId;
use crate::time::Timestamp;

/// A stored message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its id.
    pub id: MessageId,
    /// Its time; `None` if it was deleted.
    pub created_at: Option<Timestamp>,
    /// Whether it names the message to which it is the answer.
    pub has_parent: bool,
}

/// What is stored of a conversation, as far as a list concerns it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Known {
    /// The last message of the list that is stored under its computed id, by its place behind the head.
    pub last: Option<(usize, Stored)>,
    /// If that one was deleted: the last message before it in the list that is stored and was not.
    pub not_deleted: Option<Stored>,
    /// Messages of the list behind that one whose own ids are stored.
    pub own: BTreeMap<usize, Own>,
    /// The message from which the list goes on.
    pub after: Option<Stored>,
    /// The newest message of the conversation.
    pub newest: Option<Stored>,
    /// The hash of the system and developer messages that were stored last.
    pub head: Option<SyncHash>,
}

/// A message that is stored under its own id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Own {
    /// The message.
    pub stored: Stored,
    /// Whether the stored message says what that of the list says, or said so before it was changed or deleted.
    pub says_the_same: bool,
}

impl Known {
    /// The messages that are stored under their own ids. One that says something else is the stored one if another one
    /// follows: its sender cleared or shortened it. Else it is an edited message.
    fn named(&self) -> BTreeMap<usize, &Stored> {
        let same = self.own.iter().rev().find(|(_, own)| own.says_the_same);
        let end = same.map_or(0, |(place, _)| place + 1);
        self.own.range(..end).map(|(place, own)| (*place, &own.stored)).collect()
    }
}

/// The newest messages of a conversation, the newest first. Where one names the message to which it is the answer, that one
/// is next.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Line {
    /// The messages.
    pub messages: Vec<LineMessage>,
    /// Whether the conversation has no earlier ones.
    pub is_whole: bool,
}

/// A message of a [`Line`].
#[derive(Debug, Clone, PartialEq)]
pub struct LineMessage {
    /// The message.
    pub stored: Stored,
    /// What it is compared by.
    pub fingerprint: Fingerprint,
    /// Whether it is a system or developer message, which lists have at their head only.
    pub is_instruction: bool,
}

/// Messages of a line that are compared with a list, at most.
pub const LINE: usize = 16;

/// What to store of a list.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// How it continues what is stored.
    pub aligned: Aligned,
    /// The messages to store, in the order of the list; those of its head among them.
    pub new: Vec<New>,
    /// Further computed ids of messages.
    pub aliases: Vec<(Computed, MessageId)>,
    /// The hash of the head, if it is stored.
    pub head: Option<SyncHash>,
    /// How many messages behind the head are not new.
    pub known: usize,
    /// The id of the last message of the list; `None` if it has none behind its head.
    pub tail: Option<MessageId>,
    /// The message from which a branch goes on.
    pub branch_of: Option<MessageId>,
}

/// A message to store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct New {
    /// Its position in `messages`, from 0.
    pub position: usize,
    /// Its id: its sender's, else the computed one.
    pub id: MessageId,
    /// Its time.
    pub created_at: Timestamp,
    /// Whether its sender gave no time to it.
    pub is_time_estimated: bool,
    /// The message before it, if it is on a branch: other messages may stand between them.
    pub parent: Option<MessageId>,
}

/// Why a list cannot be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Undecided {
    /// The line of the conversation is needed.
    NeedsLine,
    /// It has nothing in common with the conversation.
    NothingInCommon,
    /// It goes on from an earlier message, and its sender wants no branch. The position of its first new message.
    Refused(usize),
    /// Two of its messages have one id: the position of the second.
    RepeatedId(usize),
}

/// Where the new messages of a list go.
struct Joint<'a> {
    aligned: Aligned,
    /// Messages before this place are not new.
    begin: usize,
    /// The time of the message before.
    before: Option<Timestamp>,
    /// The message at the end of the conversation, and its place in the list, where that was inferred.
    end: Option<(usize, &'a Stored)>,
    /// The message from which a branch goes on, or that is on a branch, and the place behind it.
    branch: Option<(usize, &'a Stored)>,
}

/// Decides what to store of a list. `path` are its [computed ids](SyncMessages::path). `line` is only read where it is needed.
///
/// # Errors
/// The list cannot be stored, or `line` is needed.
pub fn decide(
    list: &SyncMessages,
    path: &[Computed],
    known: &Known,
    line: Option<&Line>,
) -> Result<Plan, Undecided> {
    let named = known.named();
    let joint = joint(list, known, &named, line)?;
    let head = head_to_store(list, known);
    let new = new_messages(list, path, (known, &named), &joint, head.is_some());
    let listed = |new: &New| new.position >= list.head.len();
    let of_last = || {
        let (place, stored) = known.last.as_ref()?;
        Some((*place, &stored.id))
    };
    let stored_at = |place: usize| {
        let named = named.get(&place).map(|stored| &stored.id);
        let last = of_last().filter(|(last, _)| *last == place).map(|(_, id)| id);
        let end = joint.end.filter(|(end, _)| *end == place).map(|(_, stored)| &stored.id);
        named.or(last).or(end)
    };
    let tail = match list.listed.len().checked_sub(1) {
        None => known.after.as_ref().map(|stored| &stored.id),
        Some(end) => stored_at(end).or(new.last().map(|new| &new.id)),
    };
    let of_own = new.iter().filter(|new| listed(new)).filter_map(|new| {
        let place = new.position - list.head.len();
        (path[place].message_id() != new.id).then(|| (path[place], new.id.clone()))
    });
    // Those before it follow from it.
    let of_named = named.last_key_value().map(|(place, stored)| (path[*place], stored.id.clone()));
    let of_end = joint.end.map(|(place, stored)| (path[place], stored.id.clone()));
    let plan = Plan {
        aligned: joint.aligned,
        known: list.listed.len() - new.iter().filter(|new| listed(new)).count(),
        tail: tail.cloned(),
        aliases: of_own.chain(of_named).chain(of_end).collect(),
        head: head.filter(|_| new.iter().any(|new| !listed(new))),
        branch_of: joint
            .branch
            .filter(|_| joint.aligned == Aligned::Branch)
            .map(|(_, stored)| stored.id.clone()),
        new,
    };
    let mut ids = HashSet::new();
    match plan.new.iter().find(|new| !ids.insert(&new.id)) {
        Some(twice) => Err(Undecided::RepeatedId(twice.position)),
        None => Ok(plan),
    }
}

fn joint<'a>(
    list: &SyncMessages,
    known: &'a Known,
    named: &BTreeMap<usize, &'a Stored>,
    line: Option<&'a Line>,
) -> Result<Joint<'a>, Undecided> {
    let behind = |(place, stored): (usize, &'a Stored)| (place + 1, stored);
    let last = known.last.as_ref().map(|(place, stored)| {
        let not_deleted = known.not_deleted.as_ref().filter(|_| stored.created_at.is_none());
        behind((*place, not_deleted.unwrap_or(stored)))
    });
    let after = known.after.as_ref().map(|stored| (0, stored));
    let last_named = named.last_key_value().map(|(place, stored)| (*place, *stored)).map(behind);
    let begin = last.map_or(0, |(place, _)| place);
    let first_open =
        |from: usize| (from..list.listed.len()).find(|place| !named.contains_key(place));
    let before = last.or(after).and_then(|(_, stored)| stored.created_at);
    // The last message in common, and the place behind it.
    let common = last_named.or(last).or(after);
    let branch = common.filter(|(_, stored)| stored.has_parent);
    let exact = Joint { aligned: Aligned::Exact, begin, before, end: None, branch };
    let Some(first_new) = first_open(common.map_or(0, |(place, _)| place)) else {
        return Ok(exact);
    };
    let newest = known.newest.as_ref();
    match common {
        None if newest.is_none() => return Ok(exact),
        // Where a deleted message stood is not known: what is new goes behind all others.
        Some((_, Stored { created_at: None, .. })) => {
            let newest = newest.and_then(|stored| stored.created_at);
            return Ok(Joint { before: before.max(newest), ..exact });
        }
        Some((_, stored)) if newest.is_none_or(|newest| newest.id == stored.id) => {
            return Ok(exact);
        }
        _ => {}
    }
    if list.after.is_none() {
        let line = line.ok_or(Undecided::NeedsLine)?;
        if common.is_none() && line.is_whole && line.messages.iter().all(|it| it.is_instruction) {
            // Only instructions are stored, and no list has those behind its head.
            let newest = newest.and_then(|stored| stored.created_at);
            return Ok(Joint { before: newest, ..exact });
        }
        if let Some((place, end)) = end_in(&list.listed, begin, line) {
            return Ok(Joint {
                aligned: Aligned::Inferred,
                begin: place + 1,
                before: end.created_at,
                end: Some((place, end)),
                branch: Some((place + 1, end)).filter(|(_, end)| end.has_parent),
            });
        }
    }
    let of_line = line.filter(|_| common.is_none()).and_then(|line| end_on(&list.listed, line));
    if let Some(end) = of_line {
        let place = list.listed.len() - 1;
        return Ok(Joint {
            aligned: Aligned::Inferred,
            begin: place + 1,
            before: None,
            end: Some((place, end)),
            branch: None,
        });
    }
    match common {
        _ if list.on_conflict == OnConflict::Refuse => {
            Err(Undecided::Refused(list.listed[first_new].position))
        }
        None => Err(Undecided::NothingInCommon),
        Some(_) => Ok(Joint { aligned: Aligned::Branch, branch: common, ..exact }),
    }
}

/// The only place at which the end of a conversation stands in a list, if there is one. A place before the one in front of
/// `begin` does not count.
fn end_in<'a>(
    listed: &[ListedMessage],
    begin: usize,
    line: &'a Line,
) -> Option<(usize, &'a Stored)> {
    let newest = line.messages.iter().find(|message| !message.is_instruction)?;
    let is_end = |place: &usize| {
        let run = Run::of(&listed[..=*place], &line.messages);
        let is_all = line.is_whole && run.is_whole_list && run.is_whole_line;
        run.is_evidence() || run.messages > 0 && is_all
    };
    only((begin.saturating_sub(1)..listed.len()).filter(is_end))
        .map(|place| (place, &newest.stored))
}

/// The only message of a conversation at which a list ends, if there is one: a list that came after a longer one.
fn end_on<'a>(listed: &[ListedMessage], line: &'a Line) -> Option<&'a Stored> {
    let is_end = |at: &usize| {
        !line.messages[*at].is_instruction && Run::of(listed, &line.messages[*at..]).is_evidence()
    };
    only((0..line.messages.len()).filter(is_end)).map(|at| &line.messages[at].stored)
}

fn only<T>(mut all: impl Iterator<Item = T>) -> Option<T> {
    let first = all.next()?;
    all.next().is_none().then_some(first)
}

/// How many messages at the end of a list are those of a line, from its first one on.
struct Run {
    messages: usize,
    is_long: bool,
    /// Whether no other message of the list stands before them.
    is_whole_list: bool,
    /// Whether no other message is on the line.
    is_whole_line: bool,
}

impl Run {
    fn of(listed: &[ListedMessage], line: &[LineMessage]) -> Self {
        let (mut messages, mut is_long) = (0, false);
        let mut listed = listed.iter().rev().peekable();
        let mut line = line.iter().peekable();
        while let (Some(one), Some(message)) = (listed.peek(), line.peek()) {
            if one.fingerprint.hash == message.fingerprint.hash {
                messages += 1;
                is_long |= one.fingerprint.is_long;
                listed.next();
            } else if !message.is_instruction {
                break;
            }
            line.next();
        }
        let is_whole_list = listed.next().is_none();
        Self { messages, is_long, is_whole_list, is_whole_line: line.all(|it| it.is_instruction) }
    }

    /// Whether they are hardly the same by chance: at least two, one of them long.
    fn is_evidence(&self) -> bool {
        self.messages > 1 && self.is_long
    }
}

/// The hash of the head, if it is to be stored with the first new message.
fn head_to_store(list: &SyncMessages, known: &Known) -> Option<SyncHash> {
    let head = list.head_hash()?;
    let is_wanted = match list.system {
        SystemMessages::Changed => known.head != Some(head),
        SystemMessages::First => known.head.is_none(),
        SystemMessages::Ignore => false,
    };
    is_wanted.then_some(head)
}

/// The messages to store, each with a later time than the one before it in the list.
fn new_messages(
    list: &SyncMessages,
    path: &[Computed],
    (known, named): (&Known, &BTreeMap<usize, &Stored>),
    joint: &Joint<'_>,
    with_head: bool,
) -> Vec<New> {
    let mut new: Vec<New> = Vec::new();
    let mut before = joint.before;
    let mut parent = joint.branch.map(|(behind, stored)| (behind, stored.id.clone()));
    for (place, listed) in list.listed.iter().enumerate().skip(joint.begin) {
        if let Some(stored) = named.get(&place) {
            before = before.max(stored.created_at);
            if let Some((_, parent)) = parent.as_mut().filter(|(behind, _)| *behind <= place) {
                parent.clone_from(&stored.id);
            }
            continue;
        }
        // What stands before a stored message gets an earlier time than that.
        let next = named.range(place..).find_map(|(at, it)| Some((*at, it.created_at?)));
        let mut add = |listed: &ListedMessage, id: MessageId, distance: usize| {
            let estimated = || {
                let latest = next.map(|(at, time)| time.earlier_by(at - place + distance));
                list.common.happened_at.min(latest.unwrap_or(Timestamp::LATEST))
            };
            let wanted = listed.timestamp.unwrap_or_else(estimated);
            let created_at = before.map_or(wanted, |before| wanted.max(before.later_by(1)));
            before = Some(created_at);
            let (position, is_time_estimated) = (listed.position, listed.timestamp.is_none());
            New { position, id, created_at, is_time_estimated, parent: None }
        };
        let mut added = Vec::with_capacity(1);
        if with_head && new.is_empty() {
            let start = list.after.as_ref().map(|id| Computed::of_stored(&list.common.key, id));
            let before = place.checked_sub(1).map_or(start, |before| Some(path[before]));
            for (n, instruction) in list.head.iter().enumerate() {
                let place = u32::try_from(n).unwrap_or(u32::MAX);
                let hash = instruction.fingerprint.hash;
                let id = Computed::of_instruction(&list.common.key, before, place, hash);
                added.push(add(instruction, id.message_id(), list.head.len() - n));
            }
        }
        // Its own id is taken by a message that says something else.
        let own = listed.id.clone().filter(|_| !known.own.contains_key(&place));
        let id = own.unwrap_or_else(|| path[place].message_id());
        added.push(add(listed, id, 0));
        if let Some((_, parent)) = parent.as_mut().filter(|(behind, _)| *behind <= place) {
            for one in &mut added {
                one.parent = Some(std::mem::replace(parent, one.id.clone()));
            }
        }
        new.extend(added);
    }
    new
}

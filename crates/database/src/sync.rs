//! `conversation.sync_messages`: storing those messages of lists that are not stored.
//!
//! One transaction takes lists of different conversations:
//!
//! 1. It locks the conversations, in key order, missing ones inserted. Two lists of one conversation are decided one after
//!    the other, and no close ends between. Saves wait only if they change the conversation's row.
//! 2. It reads what is stored, in statements that begin after the locks (`known.rs`).
//! 3. [`decide`] says what is new of each list.
//! 4. It inserts that as saves do, and what later lists are recognised by.
//!
//! Nothing of it is repeated within the transaction. If a save stores the id of a new message meanwhile, the transaction is
//! rolled back and begins again.

mod known;
mod list;

pub use self::list::{ListToSync, SyncRefusal};

use std::collections::{BTreeMap, BTreeSet, HashSet};

use domain::action::{SaveMessage, SyncMessages};
use domain::decode::listed_messages;
use domain::ids::{ConversationKey, MessageId};
use domain::message::Message;
use domain::sync::hash::SyncHash;
use domain::sync::plan::{Plan, Undecided, decide};
use sqlx::PgConnection;
use sqlx::postgres::PgBindIterExt as _;
use uuid::Uuid;

use self::known::{Found, read_known, read_line};
use crate::epoch::{OpenSaves, change_generations};
use crate::lock_or_insert::{Locked, ToLock, lock_or_insert};
use crate::rows::{SaveRow, corrupt};
use crate::save::{HotWrites, is_stored_already};
use crate::tombstones::Tombstones;
use crate::writers::WriterRow;
use crate::{Database, Error, Result};

/// How often the transaction is begun at most.
const ROUNDS: usize = 6;

/// Messages that one statement inserts. A list may have 10 000.
const ROWS: usize = 500;

/// What became of a list.
#[derive(Debug, Clone, PartialEq)]
pub enum Synced {
    /// What was new of it is stored.
    Stored(Box<SyncedList>),
    /// What was new of it is not stored, because its conversation or user was erased after it was sent.
    Erased,
    /// Nothing of it is stored now.
    Refused(SyncRefusal),
}

/// A list that is stored.
#[derive(Debug, Clone, PartialEq)]
pub struct SyncedList {
    /// What was stored of it. Without the messages at its head that were stored before.
    pub plan: Plan,
    /// The messages that were stored.
    pub messages: Vec<Message>,
}

/// The outcome of a transaction.
#[derive(Debug, Default)]
pub struct SyncedBatch<'a> {
    /// One outcome for each list, in their order.
    pub lists: Vec<Synced>,
    /// How many archived or closing conversations were reopened.
    pub reopened: usize,
    /// Conversations that were inserted or whose row was updated.
    pub touched: Vec<&'a ConversationKey>,
}

impl Database {
    /// Stores what is new of lists of different conversations, in one transaction, which is committed when this returns.
    /// `random` returns random numbers for generations.
    ///
    /// # Errors
    /// PostgreSQL refuses one of them or is unavailable: nothing is stored.
    pub async fn sync<'a>(
        &self,
        lists: &[ListToSync<'a>],
        hot: HotWrites,
        random: &(dyn Fn() -> i64 + Sync),
    ) -> Result<SyncedBatch<'a>> {
        let mut saved_by = self.within(async |connection| self.writer(connection).await).await?;
        let mut may_be_erased = false;
        for _ in 0..ROUNDS {
            let synced = self.in_transaction(async |connection| {
                let storing = Storing { database: self, hot, random, saved_by, may_be_erased };
                storing.sync(connection, lists).await
            });
            match synced.await {
                // A save has stored the id of a new message meanwhile.
                Err(error) if is_stored_already(&error) => continue,
                Err(Error::Contended(_)) => {}
                synced => return synced,
            }
            may_be_erased = true;
            let row = saved_by;
            let existing =
                self.within(async |connection| self.existing_writer(connection, row).await);
            saved_by = existing.await?;
        }
        let fault =
            format!("conversations changed during each of {ROUNDS} attempts to store lists");
        Err(Error::Contended(fault))
    }
}

/// What is to be stored of a list.
struct Decided {
    plan: Plan,
    /// The messages of `plan.new`.
    messages: Vec<SaveMessage>,
    /// The hash of the head that was stored last, if it is to be stored.
    head: Option<SyncHash>,
    is_erased: bool,
}

impl Decided {
    /// Leaves out new messages.
    fn retain(&mut self, is_wanted: impl Fn(&SaveMessage) -> bool) {
        let wanted: Vec<bool> = self.messages.iter().map(is_wanted).collect();
        let is_kept = |n: &mut usize| {
            *n += 1;
            wanted.get(*n - 1) == Some(&true)
        };
        let (mut of_plan, mut of_messages) = (0, 0);
        self.plan.new.retain(|_| is_kept(&mut of_plan));
        self.messages.retain(|_| is_kept(&mut of_messages));
    }
}

/// How lists are stored.
struct Storing<'c> {
    database: &'c Database,
    hot: HotWrites,
    random: &'c (dyn Fn() -> i64 + Sync),
    saved_by: Option<WriterRow>,
    may_be_erased: bool,
}

impl Storing<'_> {
    /// What became of each list.
    ///
    /// # Errors
    /// [`Error::Contended`] if the transaction is to begin again.
    async fn sync<'a>(
        &self,
        connection: &mut PgConnection,
        lists: &[ListToSync<'a>],
    ) -> Result<SyncedBatch<'a>> {
        let to_lock: BTreeMap<_, _> =
            lists.iter().map(|list| (&list.action.common.key, to_lock(list.action))).collect();
        debug_assert_eq!(to_lock.len(), lists.len(), "two lists of one conversation");
        let locked = lock_or_insert(connection, &to_lock, self.random).await?;
        let locked: Vec<Locked> = lists
            .iter()
            .map(|list| locked.get(&list.action.common.key).copied().ok_or_else(changed))
            .collect::<Result<_>>()?;
        let found = read_known(connection, lists, &locked).await?;
        let mut decided = Vec::with_capacity(lists.len());
        for ((list, locked), found) in lists.iter().zip(&locked).zip(found) {
            decided.push(match found {
                Ok(found) => decide_list(connection, list, locked.number, &found).await?,
                Err(refusal) => Err(refusal),
            });
        }
        leave_out_stored_heads(connection, lists, &locked, &mut decided).await?;
        let (reopened, touched) = self.insert(connection, lists, &mut decided).await?;
        remember(connection, &locked, &decided).await?;
        if self.hot == HotWrites::KnownDown {
            self.invalidate_unchanged(connection, lists, &decided).await?;
        }
        delete_empty(connection, &locked, &decided).await?;
        let lists = decided.into_iter().map(outcome).collect();
        Ok(SyncedBatch { lists, reopened, touched })
    }

    /// Inserts the new messages. Returns how many conversations were reopened, and those that were changed.
    ///
    /// # Errors
    /// [`Error::Contended`] if not all were inserted, because a conversation, a tombstone or the row of this process in
    /// `writers` changed.
    async fn insert<'a>(
        &self,
        connection: &mut PgConnection,
        lists: &[ListToSync<'a>],
        decided: &mut [Result<Decided, SyncRefusal>],
    ) -> Result<(usize, Vec<&'a ConversationKey>)> {
        if self.may_be_erased {
            leave_out_erased(connection, decided).await?;
        }
        let rows = rows_of(decided);
        // What a tombstone covers was left out. The conversation itself may have one, of an earlier time.
        let tombstones = match self.may_be_erased {
            true => Tombstones::read(connection, &rows).await?,
            false => Tombstones::default(),
        };
        let (mut reopened, mut touched) = (0, BTreeSet::new());
        for chunk in rows.chunks(ROWS) {
            let chunk: Vec<&SaveRow<'_>> = chunk.iter().collect();
            let Self { database, hot, random, saved_by, .. } = *self;
            let sent =
                database.send(connection, &chunk, &tombstones, hot, random, saved_by).await?;
            let sent = sent.ok_or_else(changed)?;
            reopened += sent.reopened;
            touched.extend(sent.touched);
        }
        let of_lists = lists.iter().map(|list| &list.action.common.key);
        Ok((reopened, of_lists.filter(|key| touched.contains(key)).collect()))
    }

    /// Invalidates the copies of conversations without new messages: the process that stored them may have crashed before it
    /// wrote the copy, and Redis cannot be written now.
    async fn invalidate_unchanged(
        &self,
        connection: &mut PgConnection,
        lists: &[ListToSync<'_>],
        decided: &[Result<Decided, SyncRefusal>],
    ) -> Result<()> {
        let is_unchanged = |decided: &Result<Decided, SyncRefusal>| {
            decided.as_ref().is_ok_and(|it| it.messages.is_empty() && !it.is_erased)
        };
        let unchanged = lists.iter().zip(decided).filter(|(_, decided)| is_unchanged(decided));
        let mut changes: Vec<(ConversationKey, i64)> =
            unchanged.map(|(list, _)| (list.action.common.key.clone(), (self.random)())).collect();
        if changes.is_empty() {
            return Ok(());
        }
        changes.sort_unstable();
        change_generations(connection, &changes, OpenSaves::Independent).await?;
        Ok(())
    }
}

fn changed() -> Error {
    Error::Contended("a conversation, a tombstone or a row of writers changed meanwhile".to_owned())
}

/// Leaves out what was erased after it was sent.
async fn leave_out_erased(
    connection: &mut PgConnection,
    decided: &mut [Result<Decided, SyncRefusal>],
) -> Result<()> {
    let rows = rows_of(decided);
    let tombstones = Tombstones::read(connection, &rows).await?;
    let forbidden: HashSet<(ConversationKey, MessageId)> = rows
        .iter()
        .filter(|row| tombstones.forbid(row))
        .map(|row| (row.key.clone(), row.message.id.clone()))
        .collect();
    for list in decided.iter_mut().flatten().filter(|list| !list.messages.is_empty()) {
        list.retain(|save| {
            let row = (save.common.key.clone(), save.message.id.clone());
            !forbidden.contains(&row)
        });
        list.is_erased = list.messages.is_empty();
    }
    Ok(())
}

/// Deletes the conversations that this transaction inserted and that got no message.
async fn delete_empty(
    connection: &mut PgConnection,
    locked: &[Locked],
    decided: &[Result<Decided, SyncRefusal>],
) -> Result<()> {
    let is_empty = |it: &Result<Decided, _>| it.as_ref().map_or(true, |it| it.messages.is_empty());
    let empty = locked.iter().zip(decided).filter(|(it, list)| it.is_new && is_empty(list));
    let empty: Vec<i64> = empty.map(|(it, _)| it.number).collect();
    if !empty.is_empty() {
        sqlx::query("DELETE FROM conversations WHERE number = ANY ($1)")
            .bind(&empty)
            .execute(connection)
            .await?;
    }
    Ok(())
}

fn to_lock(list: &SyncMessages) -> ToLock<'_> {
    let common = &list.common;
    ToLock {
        session: common.session.as_str(),
        agent_id: common.agent_id.as_ref().map(AsRef::as_ref),
        user_id: common.user_id.as_ref().map(AsRef::as_ref),
        model_name: common.model_name.as_deref(),
        tenant_tier: common.tenant_tier.as_deref(),
        created_at: list.listed.first().and_then(|it| it.timestamp).unwrap_or(common.happened_at),
    }
}

async fn decide_list(
    connection: &mut PgConnection,
    list: &ListToSync<'_>,
    conversation: i64,
    Found { known, path, is_head_of_others, .. }: &Found,
) -> Result<Result<Decided, SyncRefusal>> {
    let action = list.action;
    let mut plan = decide(action, path, known, None);
    if plan == Err(Undecided::NeedsLine) {
        let line = read_line(connection, conversation).await?;
        plan = decide(action, path, known, Some(&line));
    }
    Ok(match plan {
        Ok(plan) => {
            let messages = listed_messages(list.body, action, &plan.new).map_err(|position| {
                let fault = format!("the body of the action has no message at position {position}");
                corrupt("messages", fault)
            })?;
            let head = plan.head.or(known.head.filter(|_| *is_head_of_others));
            Ok(Decided { plan, messages, head, is_erased: false })
        }
        Err(Undecided::NeedsLine | Undecided::NothingInCommon) => Err(SyncRefusal::NothingInCommon),
        Err(Undecided::Refused(position)) => Err(SyncRefusal::NoBranch(position)),
        Err(Undecided::RepeatedId(position)) => Err(SyncRefusal::RepeatedId(position)),
    })
}

/// The rows to insert, in key order.
fn rows_of(decided: &[Result<Decided, SyncRefusal>]) -> Vec<SaveRow<'_>> {
    let messages =
        decided.iter().flatten().flat_map(|list| list.plan.new.iter().zip(&list.messages));
    let mut rows: Vec<SaveRow<'_>> = messages
        .map(|(new, save)| SaveRow {
            key: &save.common.key,
            session: &save.common.session,
            tenant_tier: save.common.tenant_tier.as_deref(),
            message: &save.message,
            body_hash: save.body_hash(),
            place: None,
            created_at: save.message.created_at,
            is_time_estimated: new.is_time_estimated,
        })
        .collect();
    rows.sort_unstable_by(|a, b| (a.key, &a.message.id).cmp(&(b.key, &b.message.id)));
    rows
}

/// Leaves out messages of heads that are stored before the same message already, for another branch.
async fn leave_out_stored_heads(
    connection: &mut PgConnection,
    lists: &[ListToSync<'_>],
    locked: &[Locked],
    decided: &mut [Result<Decided, SyncRefusal>],
) -> Result<()> {
    let mut of_heads: Vec<(i64, &str)> = Vec::new();
    for ((list, locked), decided) in lists.iter().zip(locked).zip(decided.iter()) {
        let Ok(decided) = decided else { continue };
        let new = decided.plan.new.iter().filter(|new| new.position < list.action.head.len());
        of_heads.extend(new.map(|new| (locked.number, new.id.as_str())));
    }
    if of_heads.is_empty() {
        return Ok(());
    }
    let stored: Vec<(i64, String)> = sqlx::query_as(
        "SELECT m.conversation, m.id FROM unnest($1::bigint[], $2::text[]) AS k (conversation, id)
         JOIN message_rows m ON m.conversation = k.conversation AND m.id = k.id",
    )
    .bind(of_heads.iter().map(|(conversation, _)| *conversation).bind_iter())
    .bind(of_heads.iter().map(|(_, id)| *id).bind_iter())
    .fetch_all(connection)
    .await?;
    for (locked, decided) in locked.iter().zip(decided.iter_mut()) {
        let ids: HashSet<&str> = stored
            .iter()
            .filter(|(conversation, _)| *conversation == locked.number)
            .map(|(_, id)| id.as_str())
            .collect();
        if let Ok(decided) = decided
            && !ids.is_empty()
        {
            decided.retain(|save| !ids.contains(save.message.id.as_str()));
        }
    }
    Ok(())
}

/// Stores what later lists are recognised by.
async fn remember(
    connection: &mut PgConnection,
    locked: &[Locked],
    decided: &[Result<Decided, SyncRefusal>],
) -> Result<()> {
    let lists = || {
        let lists =
            locked.iter().zip(decided).filter_map(|(it, list)| Some((it, list.as_ref().ok()?)));
        lists.filter(|(_, list)| !list.is_erased)
    };
    let aliases: Vec<(i64, Uuid, &str)> = lists()
        .flat_map(|(locked, list)| {
            let of_list = list.plan.aliases.iter();
            of_list.map(|(computed, id)| (locked.number, computed.0, id.as_str()))
        })
        .collect();
    if !aliases.is_empty() {
        sqlx::query(
            "INSERT INTO sync_aliases (conversation, computed, message_id)
             SELECT * FROM unnest($1::bigint[], $2::uuid[], $3::text[])
             ON CONFLICT (conversation, computed) DO NOTHING",
        )
        .bind(aliases.iter().map(|(conversation, ..)| *conversation).bind_iter())
        .bind(aliases.iter().map(|(_, computed, _)| *computed).bind_iter())
        .bind(aliases.iter().map(|(.., id)| *id).bind_iter())
        .execute(&mut *connection)
        .await?;
    }
    let heads: Vec<(i64, [u8; 32])> =
        lists().filter_map(|(locked, list)| Some((locked.number, list.head?.0))).collect();
    if !heads.is_empty() {
        sqlx::query(
            "INSERT INTO sync_heads (conversation, hash) SELECT * FROM unnest($1::bigint[], $2::bytea[])
             ON CONFLICT (conversation) DO UPDATE SET hash = excluded.hash",
        )
        .bind(heads.iter().map(|(conversation, _)| *conversation).bind_iter())
        .bind(heads.iter().map(|(_, hash)| &hash[..]).bind_iter())
        .execute(connection)
        .await?;
    }
    Ok(())
}

fn outcome(decided: Result<Decided, SyncRefusal>) -> Synced {
    match decided {
        Err(refusal) => Synced::Refused(refusal),
        Ok(Decided { is_erased: true, .. }) => Synced::Erased,
        Ok(Decided { plan, messages, .. }) => {
            let messages = messages.into_iter().map(|save| save.message).collect();
            Synced::Stored(Box::new(SyncedList { plan, messages }))
        }
    }
}

//! What is stored of the conversations of lists.

use std::collections::BTreeMap;

use domain::action::SyncMessages;
use domain::decode::listed_messages;
use domain::ids::MessageId;
use domain::message::{Message, Role};
use domain::sync::hash::{Fingerprint, SyncHash};
use domain::sync::names::SystemMessages;
use domain::sync::path::Computed;
use domain::sync::plan::{Known, LINE, Line, LineMessage, New, Own, Stored};
use futures_util::TryStreamExt as _;
use sqlx::postgres::{PgBindIterExt as _, PgRow};
use sqlx::{AssertSqlSafe, PgConnection, Row as _};
use uuid::Uuid;

use super::list::{ListToSync, SyncRefusal};
use crate::Result;
use crate::lock_or_insert::Locked;
use crate::rows::{MESSAGE_COLUMNS, corrupt, id, item_of, message, timestamp};

/// Messages at the end of each list that are looked up first. Most lists are those of the call before, with some more.
const FIRST: usize = 8;

/// Computed ids by which a list may go on from one message, at most.
const STARTS: i64 = 16;

/// Rows among which the line of a conversation is followed. Some may be of other branches.
const ROWS_OF_LINE: i64 = 64;

/// What is known of a list.
pub(super) struct Found {
    pub(super) known: Known,
    /// Its computed ids.
    pub(super) path: Vec<Computed>,
    /// The body hashes of the messages that are stored under their own ids, by their places.
    own_hashes: BTreeMap<usize, Vec<u8>>,
    /// Whether the hash of the head was found among the messages: no list has stored one yet.
    pub(super) is_head_of_others: bool,
}

impl Found {
    fn new(known: Known, path: Vec<Computed>) -> Self {
        Self { known, path, own_hashes: BTreeMap::new(), is_head_of_others: false }
    }
}

/// Reads what is known of each list, or why it is refused.
pub(super) async fn read_known(
    connection: &mut PgConnection,
    lists: &[ListToSync<'_>],
    locked: &[Locked],
) -> Result<Vec<Result<Found, SyncRefusal>>> {
    let mut found = Vec::with_capacity(lists.len());
    for (list, locked) in lists.iter().zip(locked) {
        found.push(match &list.action.after {
            None => Ok(Found::new(Known::default(), list.action.path(None))),
            Some(after) => read_after(connection, list.action, locked.number, after)
                .await?
                .ok_or(SyncRefusal::AfterUnknown),
        });
    }
    read_listed(connection, lists, locked, &mut found).await?;
    read_not_deleted(connection, locked, &mut found).await?;
    read_newest(connection, locked, &mut found).await?;
    for ((list, locked), found) in lists.iter().zip(locked).zip(&mut found) {
        let Ok(one) = found else { continue };
        compare_own(connection, list, locked.number, one).await?;
        if needs_head(list.action, &one.known) {
            one.known.head =
                read_instructions(connection, locked.number, list.action.head.len()).await?;
            one.is_head_of_others = one.known.head.is_some();
        }
    }
    Ok(found)
}

/// The message from which a list goes on, and the computed ids of the list. A message may have several computed ids; if the
/// list is stored under one of them already, that one counts.
async fn read_after(
    connection: &mut PgConnection,
    list: &SyncMessages,
    conversation: i64,
    after: &MessageId,
) -> Result<Option<Found>> {
    let row = sqlx::query(
        "SELECT m.id, m.created_at, m.parent_message_id IS NOT NULL AS has_parent,
                ARRAY(SELECT a.computed FROM sync_aliases a
                      WHERE a.conversation = m.conversation AND a.message_id = m.id
                      ORDER BY a.computed LIMIT $3) AS aliases
         FROM message_rows m WHERE m.conversation = $1 AND m.id = $2",
    )
    .bind(conversation)
    .bind(after.as_str())
    .bind(STARTS)
    .fetch_optional(&mut *connection)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let known = Known { after: Some(stored(&row)?), ..Known::default() };
    let aliases: Vec<Uuid> = row.try_get("aliases")?;
    let own = Computed::of_stored(&list.common.key, after);
    // Whoever sends the whole list goes on from the alias of a message that its sender named.
    let aliases = aliases.into_iter().map(Computed);
    let starts: Vec<Computed> = match Computed::parse(after) {
        Some(_) => std::iter::once(own).chain(aliases).collect(),
        None => aliases.chain([own]).collect(),
    };
    let mut start = starts[0];
    if starts.len() > 1 && !list.listed.is_empty() {
        let first = |start: &Computed| {
            let hash = list.listed[0].fingerprint.hash;
            Computed::of_message(&list.common.key, Some(*start), hash)
        };
        let wanted: Vec<Wanted<'_>> = starts
            .iter()
            .map(|start| Wanted { conversation, computed: first(start), own: None })
            .collect();
        let found = look_up(connection, &wanted).await?;
        start = starts[found.iter().map(|(n, ..)| *n).min().unwrap_or(0)];
    }
    Ok(Some(Found::new(known, list.path(Some(start)))))
}

/// A message to look up.
struct Wanted<'a> {
    conversation: i64,
    computed: Computed,
    /// The id that its sender gave to it.
    own: Option<&'a MessageId>,
}

/// The stored messages among those that are wanted, by their number; with their body hash if they were found by their own id.
async fn look_up(
    connection: &mut PgConnection,
    wanted: &[Wanted<'_>],
) -> Result<Vec<(usize, Stored, Option<Vec<u8>>)>> {
    let numbers: Vec<usize> = (0..wanted.len()).collect();
    // LATERAL, so that the plan does not depend on table statistics: some look-ups for each.
    let rows = sqlx::query(
        "SELECT k.n, f.*
         FROM unnest($1::bigint[], $2::uuid[], $3::text[]) WITH ORDINALITY AS k (conversation, computed, own, n)
         CROSS JOIN LATERAL (
             SELECT m.id, m.created_at, m.parent_message_id IS NOT NULL AS has_parent, NULL::bytea AS own_hash
             FROM message_rows m WHERE m.conversation = k.conversation AND m.id = k.computed::text
             UNION ALL
             SELECT m.id, m.created_at, m.parent_message_id IS NOT NULL, NULL
             FROM sync_aliases a JOIN message_rows m ON m.conversation = a.conversation AND m.id = a.message_id
             WHERE a.conversation = k.conversation AND a.computed = k.computed
             UNION ALL
             SELECT m.id, m.created_at, m.parent_message_id IS NOT NULL, m.body_hash
             FROM message_rows m WHERE m.conversation = k.conversation AND m.id = k.own
             OFFSET 0) AS f",
    )
    .bind(wanted.iter().map(|it| it.conversation).bind_iter())
    .bind(wanted.iter().map(|it| it.computed.0).bind_iter())
    .bind(wanted.iter().map(|it| it.own.map(MessageId::as_str)).bind_iter())
    .fetch_all(connection)
    .await?;
    let found = |row: &PgRow| {
        Ok((*item_of(row, &numbers, "messages")?, stored(row)?, row.try_get("own_hash")?))
    };
    rows.iter().map(found).collect()
}

fn stored(row: &PgRow) -> Result<Stored> {
    Ok(Stored {
        id: id(row, "messages", "id", MessageId::new)?,
        created_at: row.try_get::<Option<_>, _>("created_at")?.map(timestamp),
        has_parent: row.try_get("has_parent")?,
    })
}

/// Looks up the messages of lists from their ends, in growing parts, until one of each list is found.
async fn read_listed(
    connection: &mut PgConnection,
    lists: &[ListToSync<'_>],
    locked: &[Locked],
    found: &mut [Result<Found, SyncRefusal>],
) -> Result<()> {
    // How many messages of each list are not looked up yet. Of a conversation that is new none is stored.
    let mut rest: Vec<usize> = lists
        .iter()
        .zip(locked)
        .zip(found.iter())
        .map(|((list, locked), found)| match found {
            Ok(_) if !locked.is_new => list.action.listed.len(),
            _ => 0,
        })
        .collect();
    let mut part = FIRST;
    while rest.iter().any(|rest| *rest > 0) {
        let mut places = Vec::new();
        let mut wanted = Vec::new();
        for (n, list) in lists.iter().enumerate() {
            let Ok(Found { path, .. }) = &found[n] else { continue };
            let begin = rest[n].saturating_sub(part);
            let listed = path.iter().zip(&list.action.listed).enumerate();
            for (place, (computed, listed)) in listed.take(rest[n]).skip(begin) {
                let (conversation, own) = (locked[n].number, listed.id.as_ref());
                wanted.push(Wanted { conversation, computed: *computed, own });
                places.push((n, place));
            }
            rest[n] = begin;
        }
        for (at, stored, own_hash) in look_up(connection, &wanted).await? {
            let (n, place) = places[at];
            let Ok(Found { known, own_hashes, .. }) = &mut found[n] else { continue };
            if let Some(hash) = own_hash {
                known.own.insert(place, Own { stored, says_the_same: false });
                own_hashes.insert(place, hash);
            } else if known.last.as_ref().is_none_or(|(last, _)| *last < place) {
                known.last = Some((place, stored));
            }
        }
        for (rest, found) in rest.iter_mut().zip(found.iter_mut()) {
            let Ok(Found { known, .. }) = found else { continue };
            if let Some((last, _)) = known.last {
                known.own.retain(|place, _| *place > last);
                *rest = 0;
            }
        }
        part *= 4;
    }
    Ok(())
}

/// Where the last message of a list that is stored was deleted, looks up those before it: where the list goes on is where the
/// last one of these stands.
async fn read_not_deleted(
    connection: &mut PgConnection,
    locked: &[Locked],
    found: &mut [Result<Found, SyncRefusal>],
) -> Result<()> {
    let (mut places, mut wanted) = (Vec::new(), Vec::new());
    for (n, one) in found.iter().enumerate() {
        let Ok(Found { known, path, .. }) = one else { continue };
        let Some((last, Stored { created_at: None, .. })) = known.last else { continue };
        for computed in &path[last.saturating_sub(FIRST)..last] {
            let conversation = locked[n].number;
            wanted.push(Wanted { conversation, computed: *computed, own: None });
            places.push(n);
        }
    }
    if wanted.is_empty() {
        return Ok(());
    }
    let mut stored = look_up(connection, &wanted).await?;
    stored.sort_by_key(|(at, ..)| *at);
    for (at, stored, _) in stored {
        if let Ok(Found { known, .. }) = &mut found[places[at]]
            && stored.created_at.is_some()
        {
            known.not_deleted = Some(stored);
        }
    }
    Ok(())
}

/// Reads the newest message of each conversation, and the hash of the head that was stored last.
async fn read_newest(
    connection: &mut PgConnection,
    locked: &[Locked],
    found: &mut [Result<Found, SyncRefusal>],
) -> Result<()> {
    let numbers: Vec<usize> = (0..locked.len()).collect();
    let rows = sqlx::query(
        "SELECT k.n, m.id, m.created_at, m.parent_message_id IS NOT NULL AS has_parent, h.hash
         FROM unnest($1::bigint[]) WITH ORDINALITY AS k (conversation, n)
         LEFT JOIN LATERAL (SELECT id, created_at, parent_message_id FROM message_rows
                            WHERE conversation = k.conversation AND created_at IS NOT NULL
                            ORDER BY created_at DESC, id DESC LIMIT 1) AS m ON true
         LEFT JOIN LATERAL (SELECT hash FROM sync_heads WHERE conversation = k.conversation) AS h ON true",
    )
    .bind(locked.iter().map(|it| it.number).bind_iter())
    .fetch_all(connection)
    .await?;
    for row in &rows {
        let Ok(Found { known, .. }) = &mut found[*item_of(row, &numbers, "messages")?] else {
            continue;
        };
        if row.try_get::<Option<&str>, _>("id")?.is_some() {
            known.newest = Some(stored(row)?);
        }
        if let Some(hash) = row.try_get::<Option<&[u8]>, _>("hash")? {
            let fault = |_| corrupt("sync_heads", "hash is not 32 bytes long".into());
            known.head = Some(SyncHash(hash.try_into().map_err(fault)?));
        }
    }
    Ok(())
}

/// Compares the messages of a list that are stored under their own ids with what is stored. A deleted message, and one of
/// which a deletion took a part, say what they said: their body hash is that of what was sent.
async fn compare_own(
    connection: &mut PgConnection,
    list: &ListToSync<'_>,
    conversation: i64,
    Found { known, own_hashes, .. }: &mut Found,
) -> Result<()> {
    if known.own.is_empty() {
        return Ok(());
    }
    let listed = &list.action.listed;
    let new = |(place, own): (&usize, &Own)| New {
        position: listed[*place].position,
        id: own.stored.id.clone(),
        created_at: list.action.common.happened_at,
        is_time_estimated: false,
        parent: None,
    };
    let wanted: Vec<New> = known.own.iter().map(new).collect();
    let sent = listed_messages(list.body, list.action, &wanted).map_err(|position| {
        let fault = format!("the body of the action has no message at position {position}");
        corrupt("messages", fault)
    })?;
    for ((place, own), sent) in known.own.iter_mut().zip(&sent) {
        let is_same = own_hashes.get(place).is_some_and(|hash| *hash == sent.body_hash().0);
        own.says_the_same = is_same || own.stored.created_at.is_none();
    }
    let others: Vec<MessageId> = known
        .own
        .values()
        .filter(|own| !own.says_the_same)
        .map(|own| own.stored.id.clone())
        .collect();
    if others.is_empty() {
        return Ok(());
    }
    let ids: Vec<&str> = others.iter().map(MessageId::as_str).collect();
    let said = fingerprints(connection, conversation, &ids).await?;
    for (place, own) in &mut known.own {
        let stored = said.get(&own.stored.id);
        own.says_the_same |=
            stored.is_some_and(|(said, _)| said.hash == listed[*place].fingerprint.hash);
    }
    Ok(())
}

/// What these messages are compared by, and their roles. One after the other: together they may be large.
async fn fingerprints(
    connection: &mut PgConnection,
    conversation: i64,
    ids: &[&str],
) -> Result<BTreeMap<MessageId, (Fingerprint, Role)>> {
    let query = format!(
        "SELECT {MESSAGE_COLUMNS} FROM message_rows m
         WHERE m.conversation = $1 AND m.id = ANY ($2) AND m.created_at IS NOT NULL"
    );
    let mut rows = sqlx::query(AssertSqlSafe(query)).bind(conversation).bind(ids).fetch(connection);
    let mut said = BTreeMap::new();
    while let Some(row) = rows.try_next().await? {
        let message: Message = message(&row)?;
        said.insert(message.id.clone(), (Fingerprint::of(&message), message.role));
    }
    Ok(said)
}

/// Whether the head of a list may be stored, and is not known to have been stored by a list.
fn needs_head(list: &SyncMessages, known: &Known) -> bool {
    let is_stored = known.last.as_ref().is_some_and(|(last, _)| last + 1 == list.listed.len());
    let may_be_stored = !list.head.is_empty() && list.system != SystemMessages::Ignore;
    may_be_stored && !is_stored && known.head.is_none() && known.newest.is_some()
}

/// The hash of the newest system and developer messages, of which there are so many in the head of a list.
async fn read_instructions(
    connection: &mut PgConnection,
    conversation: i64,
    count: usize,
) -> Result<Option<SyncHash>> {
    let ids: Vec<(String,)> = sqlx::query_as(
        "SELECT id FROM message_rows
         WHERE conversation = $1 AND created_at IS NOT NULL AND role IN ('system', 'developer')
         ORDER BY created_at DESC, id DESC LIMIT $2",
    )
    .bind(conversation)
    .bind(i64::try_from(count).unwrap_or(i64::MAX))
    .fetch_all(&mut *connection)
    .await?;
    let ids: Vec<&str> = ids.iter().rev().map(|(id,)| id.as_str()).collect();
    let said = fingerprints(connection, conversation, &ids).await?;
    let hashes = ids.iter().filter_map(|wanted| {
        let (_, (fingerprint, _)) = said.iter().find(|(id, _)| id.as_str() == *wanted)?;
        Some(fingerprint.hash)
    });
    Ok(SyncHash::of_all(hashes))
}

/// Reads the line of a conversation.
pub(super) async fn read_line(connection: &mut PgConnection, conversation: i64) -> Result<Line> {
    let rows = sqlx::query(
        "SELECT id, created_at, parent_message_id, parent_message_id IS NOT NULL AS has_parent
         FROM message_rows WHERE conversation = $1 AND created_at IS NOT NULL
         ORDER BY created_at DESC, id DESC LIMIT $2",
    )
    .bind(conversation)
    .bind(ROWS_OF_LINE)
    .fetch_all(&mut *connection)
    .await?;
    let mut on_line = Vec::new();
    let mut rest = rows.iter();
    let mut next = rest.next();
    let mut is_cut = i64::try_from(rows.len()).is_ok_and(|rows| rows == ROWS_OF_LINE);
    while let Some(row) = next.filter(|_| on_line.len() < LINE) {
        on_line.push(stored(row)?);
        next = match row.try_get::<Option<&str>, _>("parent_message_id")? {
            None => rest.next(),
            Some(parent) => {
                let mut found = None;
                for row in rest.by_ref() {
                    if row.try_get::<&str, _>("id")? == parent {
                        found = Some(row);
                        break;
                    }
                }
                is_cut |= found.is_none();
                found
            }
        };
    }
    let ids: Vec<&str> = on_line.iter().map(|stored| stored.id.as_str()).collect();
    let said = fingerprints(connection, conversation, &ids).await?;
    let is_whole = next.is_none() && !is_cut;
    let message = |stored: Stored| {
        let (fingerprint, role) = *said.get(&stored.id)?;
        let is_instruction = matches!(role, Role::System | Role::Developer);
        Some(LineMessage { stored, fingerprint, is_instruction })
    };
    Ok(Line { messages: on_line.into_iter().filter_map(message).collect(), is_whole })
}

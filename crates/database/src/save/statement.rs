//! The two statements of a save, with their arguments.
//!
//! `statement.sql` handles every case. `settled.sql` is smaller and only inserts messages into
//! conversations that need no change.
//!
//! Conversations are sent as one set of arrays. Messages are sent as another set, which refers to the
//! conversations by position: a batch has fewer conversations than messages, and their ids are long. A
//! column without any value in the batch is sent as one null instead of an array.

use chrono::{DateTime, Utc};
use domain::ids::ConversationKey;
use domain::message::{Details, Json, Message};
use domain::time::Timestamp;
use failpoints::Guard;
use sqlx::postgres::{PgArguments, PgBindIterExt as _, PgHasArrayType};
use sqlx::query::Query;
use sqlx::{Encode, PgConnection, Postgres, Row, Type};
use uuid::Uuid;

use crate::Result;
use crate::rows::{BindKeys as _, FORMAT_PLAIN, SaveRow, corrupt};
use crate::tombstones::{Subject, Tombstones, user};
use crate::writers::WriterRow;

/// The precision of `touched_at`, in seconds: new messages update their conversation's row at most this
/// often. The idle sweep adds it to the idle time.
pub const TOUCH_SECONDS: u32 = 60;

/// Whether Redis is usable, as far as the save transaction needs to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HotWrites {
    /// The hot copies are updated after the commit.
    Follow,
    /// Redis is known to be down: the commit invalidates the hot copies of these conversations.
    KnownDown,
}

const SAVE: &str = include_str!("statement.sql");
const SAVE_SETTLED: &str = include_str!("settled.sql");

/// What a save changed in `conversations`.
#[derive(Default)]
pub(crate) struct Sent<'a> {
    /// How many closing or archived ones were reopened.
    pub(crate) reopened: usize,
    /// Those that were inserted or updated.
    pub(crate) touched: Vec<&'a ConversationKey>,
    /// Whether there are any tombstones.
    pub(super) tombstones: bool,
}

/// Saves the rows; `None` if nothing was stored.
pub(super) async fn save<'a>(
    connection: &mut PgConnection,
    rows: &[&SaveRow<'a>],
    tombstones: &Tombstones<'_>,
    hot: HotWrites,
    random: &(dyn Fn() -> i64 + Sync),
    saved_by: Option<WriterRow>,
) -> Result<Option<Sent<'a>>> {
    let groups: Vec<&[&SaveRow<'a>]> = rows.chunk_by(|a, b| a.key == b.key).collect();
    let query = bind_conversations(sqlx::query(SAVE), &groups, tombstones, random);
    let query = bind_users(query, rows, tombstones)
        .bind(f64::from(TOUCH_SECONDS))
        .bind(hot == HotWrites::KnownDown);
    let query = bind_saved_by(bind_messages(query, &groups, rows).bind(FORMAT_PLAIN), saved_by);
    let query = bind_details(query, rows);
    let Some(row) = query.fetch_optional(connection).await? else { return Ok(None) };
    let reopened: i64 = row.try_get("reopened")?;
    let places: Option<Vec<i64>> = row.try_get("touched")?;
    let key = |place: i64| {
        let group = groups.get(usize::try_from(place - 1).ok()?)?;
        group.first().map(|row| row.key)
    };
    let touched = places.into_iter().flatten().map(key).collect::<Option<_>>();
    Ok(Some(Sent {
        reopened: usize::try_from(reopened).unwrap_or_default(),
        touched: touched.ok_or_else(|| {
            corrupt("conversations", "the result has a row that was not requested".into())
        })?,
        tombstones: row.try_get("tombstones")?,
    }))
}

/// Saves the rows if their conversations need no change; `false` if nothing was stored.
pub(super) async fn save_settled(
    connection: &mut PgConnection,
    rows: &[&SaveRow<'_>],
    saved_by: Option<WriterRow>,
) -> Result<bool> {
    let groups: Vec<Group<'_>> = rows.chunk_by(|a, b| a.key == b.key).collect();
    let query = sqlx::query(SAVE_SETTLED).bind_keys(first_rows(&groups).map(|row| row.key));
    let query = bind_newest_values(query, &groups).bind(f64::from(TOUCH_SECONDS));
    let query = bind_saved_by(bind_messages(query, &groups, rows).bind(FORMAT_PLAIN), saved_by);
    let query = bind_details(query, rows);
    Ok(query.execute(connection).await?.rows_affected() > 0)
}

fn bind_saved_by(query: Statement, saved_by: Option<WriterRow>) -> Statement {
    query.bind(saved_by.map(|row| row.id)).bind(saved_by.map(|row| row.started_at))
}

type Statement = Query<'static, Postgres, PgArguments>;

/// The rows of one conversation.
type Group<'a> = &'a [&'a SaveRow<'a>];

/// The first row of each conversation.
fn first_rows<'a>(groups: &[Group<'a>]) -> impl Iterator<Item = &'a SaveRow<'a>> + Clone {
    groups.iter().filter_map(|group| group.first().copied())
}

fn bind_conversations(
    query: Statement,
    groups: &[Group<'_>],
    tombstones: &Tombstones<'_>,
    random: &(dyn Fn() -> i64 + Sync),
) -> Statement {
    let query = query
        .bind_keys(first_rows(groups).map(|row| row.key))
        .bind(first_rows(groups).map(|row| row.session.as_str()).bind_iter());
    let query = bind_sparse(query, first_rows(groups).map(|row| row.tenant_tier));
    let query = bind_newest_values(query, groups)
        .bind(groups.iter().map(|group| times(group).min().map(utc)).bind_iter())
        .bind(groups.iter().map(|group| times(group).max().map(utc)).bind_iter());
    let known = first_rows(groups).map(|row| tombstones.of_conversation(row).map(utc));
    let erased = first_rows(groups).map(|row| tombstones.of(row).map(utc));
    bind_sparse(bind_sparse(query, known), erased)
        .bind(first_rows(groups).map(|_| random()).bind_iter())
}

fn bind_newest_values(query: Statement, groups: &[Group<'_>]) -> Statement {
    let query = bind_sparse(query, groups.iter().map(|group| newest_value(group, agent)));
    let query = bind_sparse(query, groups.iter().map(|group| newest_value(group, user_name)));
    bind_sparse(query, groups.iter().map(|group| newest_value(group, model)))
}

fn bind_users(query: Statement, rows: &[&SaveRow<'_>], tombstones: &Tombstones<'_>) -> Statement {
    let mut users: Vec<Subject<'_>> = Vec::with_capacity(rows.len());
    // A conversation usually has one user, so repetitions are adjacent. Other repetitions do no harm.
    for user in rows.iter().filter_map(|row| user(row)) {
        if users.last() != Some(&user) {
            users.push(user);
        }
    }
    let query = query
        .bind(users.iter().map(|user| user.0).bind_iter())
        .bind(users.iter().map(|user| user.1).bind_iter());
    bind_sparse(query, users.iter().map(|user| tombstones.of_user(*user).map(utc)))
}

fn bind_messages(query: Statement, groups: &[Group<'_>], rows: &[&SaveRow<'_>]) -> Statement {
    let places = (1_i32..).zip(groups).flat_map(|(place, group)| group.iter().map(move |_| place));
    let messages = || rows.iter().map(|row| row.message);
    let query = query.bind(places.bind_iter());
    let query = if failpoints::holds(Guard::StoredMessageRecognised) {
        query.bind(messages().map(|it| it.id.as_str()).bind_iter())
    } else {
        query.bind(messages().map(|it| format!("{}{}", it.id, Uuid::new_v4())).collect::<Vec<_>>())
    };
    let query = query
        .bind(messages().map(|it| it.role.as_str()).bind_iter())
        .bind(messages().map(|it| it.content.text()).bind_iter());
    let query = bind_sparse(query, messages().map(|it| it.content.parts().map(Json::as_str)));
    let query = bind_sparse(query, messages().map(|it| it.tool_calls.as_ref().map(Json::as_str)));
    let query = bind_sparse(query, messages().map(|it| it.tool_call_id.as_deref()));
    let query = bind_sparse(query, messages().map(|it| it.tokens_estimate));
    let query = bind_sparse(query, messages().map(user_name));
    let query = bind_sparse(query, messages().map(agent));
    let query = bind_sparse(query, messages().map(model));
    let query = bind_sparse(query, messages().map(|it| it.processing_time_ms))
        .bind(rows.iter().map(|row| utc(row.created_at)).bind_iter())
        .bind(messages().map(|it| utc(it.received_at)).bind_iter())
        .bind(rows.iter().map(|row| &row.body_hash.0[..]).bind_iter());
    bind_sparse(query, messages().map(|it| it.metadata.as_ref().map(Json::as_str)))
}

/// Few messages have any, so they are two arguments. The item is one of its own: it may be large, and PostgreSQL reads an
/// object again for each of its members.
fn bind_details(query: Statement, rows: &[&SaveRow<'_>]) -> Statement {
    let details = || rows.iter().map(|row| row.message.details.as_deref());
    let query = bind_sparse(query, details().map(|it| Some(it?.item.as_ref()?.as_str())));
    bind_sparse(query, rows.iter().map(|row| details_object(row)))
}

/// An object with what few messages have.
fn details_object(row: &SaveRow<'_>) -> Option<String> {
    let details = row.message.details.as_deref().and_then(Details::without_item);
    if !row.is_time_estimated {
        return details;
    }
    Some(match details.as_deref().and_then(|it| it.strip_suffix('}')) {
        Some(members) => format!("{members},\"time_estimated\":true}}"),
        None => "{\"time_estimated\":true}".to_owned(),
    })
}

/// Binds a column that is often empty: one null if no row has a value.
fn bind_sparse<T>(query: Statement, column: impl Iterator<Item = Option<T>> + Clone) -> Statement
where
    T: for<'q> Encode<'q, Postgres> + Type<Postgres> + PgHasArrayType,
{
    if column.clone().all(|value| value.is_none()) {
        query.bind(None::<Vec<T>>)
    } else {
        query.bind(column.bind_iter())
    }
}

fn times(group: Group<'_>) -> impl Iterator<Item = Timestamp> {
    group.iter().map(|row| row.created_at)
}

/// The value of the newest message that has one.
fn newest_value<'a>(group: Group<'a>, of: fn(&'a Message) -> Option<&'a str>) -> Option<&'a str> {
    let values = group.iter().filter_map(|row| {
        let message = row.message;
        Some(((row.created_at, message.id.as_str()), of(message)?))
    });
    values.max_by_key(|(position, _)| *position).map(|(_, value)| value)
}

fn agent(message: &Message) -> Option<&str> {
    message.agent_id.as_ref().map(AsRef::as_ref)
}

fn user_name(message: &Message) -> Option<&str> {
    message.user_id.as_ref().map(AsRef::as_ref)
}

fn model(message: &Message) -> Option<&str> {
    message.model_name.as_deref()
}

fn utc(time: Timestamp) -> DateTime<Utc> {
    DateTime::from(time)
}

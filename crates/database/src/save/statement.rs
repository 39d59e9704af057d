//! The statements of a save, with their arguments.
//!
//! One does everything. A smaller one adds messages to conversations that stay as they are.
//!
//! Conversations are sent as one set of arrays and messages as another that refers to them by their
//! places: a batch has fewer conversations than messages, and their names are long. A column in which
//! the whole batch says nothing is one null instead of an array.

use chrono::{DateTime, Utc};
use domain::ids::ConversationKey;
use domain::message::{Json, Message};
use domain::time::Timestamp;
use sqlx::postgres::{PgArguments, PgBindIterExt as _, PgHasArrayType};
use sqlx::query::Query;
use sqlx::{Encode, PgConnection, Postgres, Row, Type};

use super::{HotWrites, TOUCH_SECONDS};
use crate::Result;
use crate::rows::{FORMAT_PLAIN, SaveRow, corrupt};
use crate::tombstones::{Subject, Tombstones, user};

const SAVE: &str = include_str!("statement.sql");
const SAVE_SETTLED: &str = include_str!("settled.sql");

/// What a save did with conversations.
#[derive(Default)]
pub(super) struct Sent<'a> {
    /// How many came back from closing or the archive.
    pub(super) reopened: usize,
    /// Those that were made or changed.
    pub(super) touched: Vec<&'a ConversationKey>,
    /// Whether anything was ever erased.
    pub(super) tombstones: bool,
}

/// Saves the rows; `None` when nothing was stored.
pub(super) async fn save<'a>(
    connection: &mut PgConnection,
    rows: &[&SaveRow<'a>],
    tombstones: &Tombstones<'_>,
    hot: HotWrites,
    random: &(dyn Fn() -> i64 + Sync),
    saved_by: Option<i32>,
) -> Result<Option<Sent<'a>>> {
    let groups: Vec<&[&SaveRow<'a>]> = rows.chunk_by(|a, b| a.key == b.key).collect();
    let query = bind_conversations(sqlx::query(SAVE), &groups, tombstones, random);
    let query = bind_users(query, rows, tombstones)
        .bind(f64::from(TOUCH_SECONDS))
        .bind(hot == HotWrites::KnownDown);
    let query = bind_messages(query, &groups, rows).bind(FORMAT_PLAIN).bind(saved_by);
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
        touched: touched
            .ok_or_else(|| corrupt("conversations", "one that nobody asked for".into()))?,
        tombstones: row.try_get("tombstones")?,
    }))
}

/// Saves the rows if their conversations need no change. `false` when nothing was stored.
pub(super) async fn save_settled(
    connection: &mut PgConnection,
    rows: &[&SaveRow<'_>],
    saved_by: Option<i32>,
) -> Result<bool> {
    let groups: Vec<Group<'_>> = rows.chunk_by(|a, b| a.key == b.key).collect();
    let query = bind_names(sqlx::query(SAVE_SETTLED), &groups);
    let query = bind_newest_values(query, &groups).bind(f64::from(TOUCH_SECONDS));
    let query = bind_messages(query, &groups, rows).bind(FORMAT_PLAIN).bind(saved_by);
    Ok(query.execute(connection).await?.rows_affected() > 0)
}

type Statement = Query<'static, Postgres, PgArguments>;

/// The rows of one conversation.
type Group<'a> = &'a [&'a SaveRow<'a>];

fn firsts<'a>(groups: &[Group<'a>]) -> impl Iterator<Item = &'a SaveRow<'a>> + Clone {
    groups.iter().filter_map(|group| group.first().copied())
}

fn bind_conversations(
    query: Statement,
    groups: &[Group<'_>],
    tombstones: &Tombstones<'_>,
    random: &(dyn Fn() -> i64 + Sync),
) -> Statement {
    let query =
        bind_names(query, groups).bind(firsts(groups).map(|row| row.session.as_str()).bind_iter());
    let query = bind_sparse(query, firsts(groups).map(|row| row.tenant_tier));
    let query = bind_newest_values(query, groups)
        .bind(groups.iter().map(|group| times(group).min().map(utc)).bind_iter())
        .bind(groups.iter().map(|group| times(group).max().map(utc)).bind_iter());
    let known = firsts(groups).map(|row| tombstones.of_conversation(row).map(utc));
    let erased = firsts(groups).map(|row| tombstones.of(row).map(utc));
    bind_sparse(bind_sparse(query, known), erased)
        .bind(firsts(groups).map(|_| random()).bind_iter())
}

fn bind_names(query: Statement, groups: &[Group<'_>]) -> Statement {
    query
        .bind(firsts(groups).map(|row| row.key.tenant.as_str()).bind_iter())
        .bind(firsts(groups).map(|row| row.key.conversation.as_str()).bind_iter())
}

fn bind_newest_values(query: Statement, groups: &[Group<'_>]) -> Statement {
    let query = bind_sparse(query, groups.iter().map(|group| newest_value(group, agent)));
    let query = bind_sparse(query, groups.iter().map(|group| newest_value(group, user_name)));
    bind_sparse(query, groups.iter().map(|group| newest_value(group, model)))
}

fn bind_users(query: Statement, rows: &[&SaveRow<'_>], tombstones: &Tombstones<'_>) -> Statement {
    let mut users: Vec<Subject<'_>> = Vec::with_capacity(rows.len());
    // A conversation has one user, so repetitions stand together; the others do no harm.
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
    let query = query
        .bind(places.bind_iter())
        .bind(messages().map(|it| it.id.as_str()).bind_iter())
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
        .bind(messages().map(|it| utc(it.created_at)).bind_iter())
        .bind(messages().map(|it| utc(it.received_at)).bind_iter())
        .bind(rows.iter().map(|row| &row.body_hash.0[..]).bind_iter());
    bind_sparse(query, messages().map(|it| it.metadata.as_ref().map(Json::as_str)))
}

/// A column in which most batches say little: null as a whole where it has no value.
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
    group.iter().map(|row| row.message.created_at)
}

/// What the newest message that says anything says.
fn newest_value<'a>(group: Group<'a>, of: fn(&'a Message) -> Option<&'a str>) -> Option<&'a str> {
    let said = group.iter().filter_map(|row| {
        let message = row.message;
        Some(((message.created_at, message.id.as_str()), of(message)?))
    });
    said.max_by_key(|(place, _)| *place).map(|(_, word)| word)
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

//! The words of archived conversations: which are to be written, their texts, and the blocks that are written.
//!
//! A row of `words_due` is inserted by the transaction that archives a conversation, so none is forgotten: a process that
//! stops before it wrote the last block leaves the row, and its lease ends. Words are written after the close, in
//! transactions of their own.
//!
//! Texts are read without a lock: while a conversation is archived, its messages do not change, and each change gives it
//! another `finalised_at`. A block is written only while `finalised_at` is that under which its text was read. It then
//! holds the conversation's row `FOR KEY SHARE`, which excludes another archiving but no save.

use std::time::Duration;

use chrono::{DateTime, Utc};
use domain::ids::{ConversationKey, MessageId};
use sqlx::postgres::{PgArguments, PgBindIterExt as _, PgRow};
use sqlx::query::Query;
use sqlx::{Postgres, Row as _};

use crate::rows::{BindKeys as _, corrupt, id, item_of, key};
use crate::{Database, Result};

const TABLE: &str = "words_due";

/// A conversation whose words are to be written, as it was archived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WordsDue {
    /// The conversation.
    pub key: ConversationKey,
    finalised_at: DateTime<Utc>,
}

/// The text of a message.
#[derive(Debug, Clone)]
pub struct TextOfMessage {
    /// The position of its conversation among those that were asked for.
    pub conversation: usize,
    /// Where it stands in its conversation.
    pub at: TextPosition,
    /// Its content.
    pub text: String,
}

/// The place of a text in its conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextPosition {
    created_at: DateTime<Utc>,
    id: MessageId,
}

/// A part of the words of a conversation.
#[derive(Debug, Clone)]
pub struct WordBlock {
    /// The position of the conversation among those that are written.
    pub conversation: usize,
    /// The number of the block, from 0.
    pub number: i32,
    /// Its words, with one space between two.
    pub words: String,
}

/// A conversation of which the last block is written.
#[derive(Debug, Clone, Copy)]
pub struct WordsDone {
    /// Its position among those that are written.
    pub conversation: usize,
    /// How many blocks it has.
    pub blocks: i32,
}

impl WordsDue {
    pub(crate) fn of(row: &PgRow) -> Result<Self> {
        let key = key(row.try_get("tenant_id")?, row.try_get("conversation_id")?)?;
        Ok(Self { key, finalised_at: row.try_get("finalised_at")? })
    }
}

impl Database {
    /// Claims conversations whose words are to be written: those that were archived first, at most `limit`. No other
    /// process gets them until the lease ends.
    pub async fn claim_words(&self, limit: u32, lease: Duration) -> Result<Vec<WordsDue>> {
        let query = sqlx::query(CLAIM).bind(i64::from(limit)).bind(lease.as_secs_f64());
        self.rows(query).await?.iter().map(WordsDue::of).collect()
    }

    /// Texts of these conversations, in their order and then in that of their messages: at most `limit` messages and
    /// `max_bytes` of text, but at least one message if there is one. Of the first conversation only those `after` that
    /// place. Returns them, and whether there may be more. One that is no longer archived as it was has none.
    pub async fn texts(
        &self,
        due: &[WordsDue],
        after: Option<&TextPosition>,
        limit: u32,
        max_bytes: usize,
    ) -> Result<(Vec<TextOfMessage>, bool)> {
        let first = |n: usize| after.filter(|_| n == 0);
        let query = sqlx::query(TEXTS)
            .bind_keys(due.iter().map(|it| &it.key))
            .bind(due.iter().map(|it| it.finalised_at).bind_iter())
            .bind((0..due.len()).map(|n| first(n).map(|it| it.created_at)).bind_iter())
            .bind((0..due.len()).map(|n| first(n).map(|it| it.id.as_str())).bind_iter())
            .bind(i64::from(limit))
            .bind(i64::try_from(max_bytes).unwrap_or(i64::MAX));
        let rows = self.rows(query).await?;
        let found: i64 = rows.first().map_or(Ok(0), |row| row.try_get("found"))?;
        let more = found == i64::from(limit) || found > rows.len() as i64;
        let text = |row: &PgRow| {
            let n: i64 = row.try_get("n")?;
            item_of(row, due, TABLE)?;
            Ok(TextOfMessage {
                conversation: usize::try_from(n - 1).map_err(|_| corrupt(TABLE, "n".to_owned()))?,
                at: TextPosition {
                    created_at: row.try_get("created_at")?,
                    id: id(row, "messages", "id", MessageId::new)?,
                },
                text: row.try_get("content")?,
            })
        };
        Ok((rows.iter().map(text).collect::<Result<_>>()?, more))
    }

    /// Writes blocks of the conversations `due`, and deletes from `words_due` those that are done; renews the lease of the
    /// others. Nothing is written of a conversation that is no longer archived as it was; it is due again when it is
    /// archived again.
    pub async fn write_words(
        &self,
        due: &[WordsDue],
        blocks: &[WordBlock],
        done: &[WordsDone],
        lease: Duration,
    ) -> Result<()> {
        let query = bind_blocks(sqlx::query(WRITE), due, blocks, done).bind(lease.as_secs_f64());
        self.execute(query).await.map(drop)
    }

    /// How long the words of an archived conversation have been due at most; zero if none are.
    pub async fn words_lag(&self) -> Result<Duration> {
        let query = sqlx::query_as(LAG);
        let (lag,): (f64,) = self.value(query).await?;
        Ok(Duration::try_from_secs_f64(lag).unwrap_or_default())
    }
}

/// By place in the table: else a long list of what is due would be joined with itself.
pub(crate) const CLAIM: &str = "
    UPDATE words_due SET lease_until = clock_timestamp() + make_interval(secs => $2)
    WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM words_due WHERE lease_until IS NULL OR lease_until <= statement_timestamp()
        ORDER BY finalised_at, tenant_id, conversation_id LIMIT $1 FOR UPDATE SKIP LOCKED))
    RETURNING finalised_at, tenant_id, conversation_id";

pub(crate) const TEXTS: &str = "
    SELECT n, created_at, id, content, found
    FROM (SELECT listed.*, row_number() OVER in_order AS place, count(*) OVER () AS found,
                 sum(octet_length(content)) OVER in_order AS bytes
          FROM (SELECT k.n, m.*
                FROM unnest($1::text[], $2::text[], $3::timestamptz[], $4::timestamptz[], $5::text[])
                     WITH ORDINALITY AS k (tenant_id, id, finalised_at, after_at, after_id, n)
                JOIN conversations c ON c.tenant_id = k.tenant_id AND c.id = k.id
                     AND c.status = 'archived' AND c.finalised_at = k.finalised_at
                CROSS JOIN LATERAL (
                    SELECT m.created_at, m.id, m.content FROM message_rows m
                    WHERE m.conversation = c.number AND m.created_at >= coalesce(k.after_at, '-infinity')
                      AND (m.created_at, m.id)
                          > (coalesce(k.after_at, '-infinity'), coalesce(k.after_id, '') COLLATE \"C\")
                    ORDER BY m.created_at, m.id LIMIT $6) AS m
                ORDER BY k.n, m.created_at, m.id LIMIT $6) AS listed
          WINDOW in_order AS (ORDER BY n, created_at, id)) AS m
    WHERE place = 1 OR bytes <= $7
    ORDER BY place";

pub(crate) const LAG: &str = "
    SELECT coalesce((SELECT extract(epoch FROM statement_timestamp() - finalised_at)::float8
                     FROM words_due ORDER BY finalised_at LIMIT 1), 0)";

/// The parameters of [`blocks`].
pub(crate) fn bind_blocks<'q>(
    query: Query<'q, Postgres, PgArguments>,
    due: &[WordsDue],
    blocks: &[WordBlock],
    done: &[WordsDone],
) -> Query<'q, Postgres, PgArguments> {
    // The positions in SQL count from 1.
    let place = |conversation: usize| i64::try_from(conversation + 1).unwrap_or_default();
    query
        .bind_keys(due.iter().map(|it| &it.key))
        .bind(due.iter().map(|it| it.finalised_at).bind_iter())
        .bind(blocks.iter().map(|it| place(it.conversation)).bind_iter())
        .bind(blocks.iter().map(|it| it.number).bind_iter())
        .bind(blocks.iter().map(|it| it.words.as_str()).bind_iter())
        .bind(done.iter().map(|it| place(it.conversation)).bind_iter())
        .bind(done.iter().map(|it| it.blocks).bind_iter())
}

/// A statement over blocks as they are stored: `blocks`, of the conversations `archived`, which the first part selects from
/// `due`; and `done`, with the number of blocks of those that have no more.
macro_rules! blocks {
    ($archived:literal, $then:literal) => {
        concat!(
            "WITH due AS MATERIALIZED (
                SELECT * FROM unnest($1::text[], $2::text[], $3::timestamptz[]) WITH ORDINALITY
                              AS k (tenant_id, id, finalised_at, n)),
            archived AS MATERIALIZED (SELECT k.n, c.tenant_id, c.id, c.created_at, c.finalised_at ",
            $archived,
            "),
            blocks AS (
                SELECT c.*, b.block,
                       string_to_array(b.words, ' ') || ARRAY[
                           verbatim_word_mark('month', c.tenant_id, c.created_at),
                           verbatim_word_mark('day', c.tenant_id, c.created_at),
                           verbatim_word_mark('hour', c.tenant_id, c.created_at),
                           verbatim_word_mark('minute', c.tenant_id, c.created_at)] COLLATE \"C\" AS words
                FROM unnest($4::bigint[], $5::int[], $6::text[]) AS b (n, block, words) JOIN archived c USING (n)),
            done AS MATERIALIZED (SELECT * FROM unnest($7::bigint[], $8::int[]) AS d (n, blocks)), ",
            $then
        )
    };
}
pub(crate) use blocks;

/// The conversations are locked in key order. Blocks that an earlier close had and this one has not are deleted; those
/// with the same numbers are replaced.
pub(crate) const WRITE: &str = blocks!(
    "FROM due k JOIN conversations c ON c.tenant_id = k.tenant_id AND c.id = k.id
     WHERE c.status = 'archived' AND c.finalised_at = k.finalised_at
     ORDER BY c.tenant_id, c.id FOR KEY SHARE OF c",
    "written AS (
        INSERT INTO conversation_words (tenant_id, conversation_id, block, created_at, finalised_at, words)
        SELECT tenant_id, id, block, created_at, finalised_at, words FROM blocks ORDER BY tenant_id, id, block
        ON CONFLICT (tenant_id, conversation_id, block) DO UPDATE SET
            created_at = excluded.created_at, finalised_at = excluded.finalised_at, words = excluded.words),
    shortened AS (
        DELETE FROM conversation_words w USING done d JOIN archived c USING (n)
        WHERE w.tenant_id = c.tenant_id AND w.conversation_id = c.id AND w.block >= d.blocks),
    renewed AS (
        UPDATE words_due w SET lease_until = clock_timestamp() + make_interval(secs => $9)
        FROM due k LEFT JOIN done d USING (n)
        WHERE w.finalised_at = k.finalised_at AND w.tenant_id = k.tenant_id AND w.conversation_id = k.id
          AND d.n IS NULL)
    DELETE FROM words_due w USING due k JOIN done d USING (n)
    WHERE w.finalised_at = k.finalised_at AND w.tenant_id = k.tenant_id AND w.conversation_id = k.id"
);

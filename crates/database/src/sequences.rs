//! Sequences that lag behind their tables.
//!
//! A logical restore of single tables, or of data alone, leaves the sequences at an old value. The next numbers
//! are then taken already, so every new conversation violates a unique constraint. The sequences are compared
//! with their tables at the start of each worker, by `verbatim setup`, and after such a violation.

use std::fmt;

use serde::Serialize;
use sqlx::PgConnection;

use crate::rows::from_row;
use crate::{Error, Result};

/// A sequence that lagged behind its table and was advanced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AdvancedSequence {
    /// Its name.
    pub sequence: String,
    /// The last number that it had given.
    pub from: i64,
    /// The highest number in the tables, which it continues from.
    pub to: i64,
}

from_row! { AdvancedSequence: sequence, from, to }

impl fmt::Display for AdvancedSequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sequence, from, to } = self;
        write!(f, "sequence {sequence} advanced from {from} to {to}")
    }
}

/// The unique constraints of columns that take their values from a sequence.
const CONSTRAINTS: [&str; 3] = ["conversations_number_key", "writers_pkey", "audit_log_pkey"];

/// Advances the sequences that would next return a number that is taken. `message_rows` counts, too: a new
/// conversation must not get the number, and so the messages, of another one.
///
/// Two processes at once do no harm: each sets a sequence to a number that was taken when it looked. At worst a
/// number is given twice once more, and the next violation leads here again.
const ADVANCE: &str = "
    WITH sequences (sequence, highest) AS (
        VALUES ('conversations_number_seq', greatest(
                    (SELECT max(number) FROM conversations),
                    (SELECT max(conversation) FROM message_rows),
                    (SELECT max(conversation) FROM message_tokens))),
               ('writers_id_seq', (SELECT max(id)::bigint FROM writers)),
               ('audit_log_id_seq', (SELECT max(id) FROM audit_log))),
    behind AS (
        SELECT s.sequence, s.highest, coalesce(pg_sequence_last_value(s.sequence::regclass), 0) AS last
        FROM sequences s
        WHERE s.highest > coalesce(pg_sequence_last_value(s.sequence::regclass), 0))
    SELECT sequence, last AS \"from\", setval(sequence::regclass, highest) AS \"to\" FROM behind";

/// Advances the sequences that lag behind their tables; returns them.
pub(crate) async fn advance(connection: &mut PgConnection) -> Result<Vec<AdvancedSequence>> {
    Ok(sqlx::query_as(ADVANCE).fetch_all(connection).await?)
}

/// Whether a number that a sequence returned was taken.
pub(crate) fn is_cause_of(error: &Error) -> bool {
    let Error::Database(sqlx::Error::Database(error)) = error else { return false };
    error.constraint().is_some_and(|constraint| CONSTRAINTS.contains(&constraint))
}

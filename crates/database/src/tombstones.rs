//! Erased conversations and users. A message that was sent before the erasure is dropped.

use std::collections::HashMap;

use domain::time::Timestamp;
use sqlx::postgres::PgBindIterExt as _;
use sqlx::{PgConnection, Row};

use crate::Result;
use crate::rows::{SaveRow, item_of, timestamp};

/// A tenant, and the id of one of its conversations or users.
pub(crate) type Subject<'a> = (&'a str, &'a str);

/// The known erasures that concern a batch.
#[derive(Debug, Default)]
pub(crate) struct Tombstones<'a> {
    conversations: HashMap<Subject<'a>, Timestamp>,
    users: HashMap<Subject<'a>, Timestamp>,
}

impl<'a> Tombstones<'a> {
    /// Reads the erasures of the conversations and users of these rows.
    pub(crate) async fn read(connection: &mut PgConnection, rows: &[SaveRow<'a>]) -> Result<Self> {
        let conversations = rows.iter().map(conversation).collect();
        Ok(Self {
            conversations: find(connection, "conversation", conversations).await?,
            users: find(connection, "user", rows.iter().filter_map(user).collect()).await?,
        })
    }

    pub(crate) fn of_conversation(&self, row: &SaveRow<'_>) -> Option<Timestamp> {
        self.conversations.get(&conversation(row)).copied()
    }

    pub(crate) fn of_user(&self, user: Subject<'_>) -> Option<Timestamp> {
        self.users.get(&user).copied()
    }

    /// When the conversation or the user of a row was last erased.
    pub(crate) fn of(&self, row: &SaveRow<'_>) -> Option<Timestamp> {
        self.of_conversation(row).max(user(row).and_then(|user| self.of_user(user)))
    }

    /// Whether the row's message was sent before an erasure that covers it.
    pub(crate) fn forbid(&self, row: &SaveRow<'_>) -> bool {
        self.of(row).is_some_and(|erased_at| row.message.created_at <= erased_at)
    }
}

pub(crate) fn user<'a>(row: &SaveRow<'a>) -> Option<Subject<'a>> {
    let user = row.message.user_id.as_ref()?;
    Some((row.key.tenant.as_str(), user.as_str()))
}

fn conversation<'a>(row: &SaveRow<'a>) -> Subject<'a> {
    (row.key.tenant.as_str(), row.key.conversation.as_str())
}

async fn find<'a>(
    connection: &mut PgConnection,
    kind: &'static str,
    mut subjects: Vec<Subject<'a>>,
) -> Result<HashMap<Subject<'a>, Timestamp>> {
    subjects.sort_unstable();
    subjects.dedup();
    sqlx::query(
        "SELECT k.n, t.erased_at
         FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS k (tenant_id, subject, n)
         JOIN tombstones t ON t.tenant_id = k.tenant_id AND t.subject = k.subject AND t.kind = $3",
    )
    .bind(subjects.iter().map(|(tenant, _)| *tenant).bind_iter())
    .bind(subjects.iter().map(|(_, subject)| *subject).bind_iter())
    .bind(kind)
    .fetch_all(connection)
    .await?
    .iter()
    .map(|row| {
        let subject = item_of(row, &subjects, "tombstones")?;
        Ok((*subject, timestamp(row.try_get("erased_at")?)))
    })
    .collect()
}

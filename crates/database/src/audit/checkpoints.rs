//! Checkpoints: the last entry of every chain that grew since the checkpoint before. They are a chain themselves.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::chain::hash;
use crate::rows::from_row;
use crate::{Database, Error, Result};

/// How often a checkpoint is made.
pub const CHECKPOINT_EVERY: Duration = Duration::from_secs(60);

/// The most chains in one checkpoint, first those whose last checkpoint is the oldest; the others follow in the next.
const MOST_CHAINS: i64 = 10_000;

/// A checkpoint, for whoever keeps it outside of the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Its number, from 1 on.
    pub n: i64,
    /// How many chains grew.
    pub chains: usize,
    /// Its hash, in hexadecimal digits.
    pub hash: String,
}

/// A checkpoint as it is stored.
pub(super) struct StoredCheckpoint {
    pub(super) n: i64,
    pub(super) at: DateTime<Utc>,
    /// As text: its bytes are hashed.
    pub(super) chains: String,
    pub(super) hash: Vec<u8>,
}

from_row! { StoredCheckpoint: n, at, chains, hash }

/// The columns of a [`StoredCheckpoint`].
pub(super) const STORED: &str = "n, at, chains::text AS chains, hash";

impl StoredCheckpoint {
    /// Its hash after a checkpoint with the hash `previous`, which is empty for the first.
    pub(super) fn hash_after(&self, previous: &[u8]) -> Vec<u8> {
        let (n, at) = (self.n.to_string(), self.at.timestamp_micros().to_string());
        hash(previous, [Some(n.as_str()), Some(&at), Some(&self.chains)])
    }

    /// The ends of the chains.
    pub(super) fn ends(&self) -> Option<Ends> {
        serde_json::from_str(&self.chains).ok()
    }
}

impl Database {
    /// Makes a checkpoint, if an entry was written since the last one and no other process made one less than half a minute
    /// ago; returns it.
    ///
    /// # Errors
    /// PostgreSQL failed.
    pub async fn checkpoint_audit(&self) -> Result<Option<Checkpoint>> {
        let Some((made, ends)) = self.in_transaction(checkpoint).await? else { return Ok(None) };
        // A chain that is growing is left out: the next checkpoint records its end again.
        let query = sqlx::query(
            "UPDATE audit_chains c SET checked_n = r.n, checked_in = $3
             FROM unnest($1::uuid[], $2::bigint[]) AS r (chain, n)
             WHERE c.chain = r.chain AND c.checked_n < r.n
               AND c.chain IN (SELECT l.chain FROM audit_chains l WHERE l.chain = ANY ($1)
                               FOR NO KEY UPDATE SKIP LOCKED)",
        )
        .bind(ends.iter().map(|(chain, ..)| *chain).collect::<Vec<_>>())
        .bind(ends.iter().map(|(_, n, _)| *n).collect::<Vec<_>>())
        .bind(made.n);
        self.execute(query).await?;
        Ok(Some(made))
    }

    /// How old the last checkpoint is, or the first entry if there is none yet, while entries wait for the next one; zero if
    /// none wait.
    ///
    /// # Errors
    /// PostgreSQL failed.
    pub async fn audit_checkpoint_lag(&self) -> Result<Duration> {
        let query = sqlx::query_as(
            "SELECT coalesce(extract(epoch FROM clock_timestamp() - coalesce(
                        (SELECT at FROM audit_checkpoints ORDER BY n DESC LIMIT 1),
                        (SELECT at FROM audit_log WHERE id IS NOT NULL ORDER BY at, id LIMIT 1))), 0)::float8
             WHERE EXISTS (SELECT FROM audit_chains WHERE n > checked_n)",
        );
        let lag: Option<(f64,)> = self.values(query).await?.pop();
        Ok(lag.and_then(|(lag,)| Duration::try_from_secs_f64(lag).ok()).unwrap_or_default())
    }
}

/// The ends of chains: chain, number of the last entry, its hash in hexadecimal digits.
type Ends = Vec<(Uuid, i64, String)>;

/// Makes a checkpoint without a lock: no writer waits for it, and it waits for none. What is committed of a chain is
/// consistent by itself.
async fn checkpoint(connection: &mut PgConnection) -> Result<Option<(Checkpoint, Ends)>> {
    // Replicas wake at different times: half a minute is enough distance.
    let last: Option<(i64, Vec<u8>, bool)> = sqlx::query_as(
        "SELECT n, hash, at > clock_timestamp() - interval '1 second' * $1
         FROM audit_checkpoints ORDER BY n DESC LIMIT 1",
    )
    .bind(CHECKPOINT_EVERY.as_secs_f64() / 2.0)
    .fetch_optional(&mut *connection)
    .await?;
    let (n, previous) = match last {
        Some((.., true)) => return Ok(None),
        Some((n, hash, false)) => (n + 1, hash),
        None => (1, Vec::new()),
    };
    let grown: Vec<(Uuid, i64, Vec<u8>)> = sqlx::query_as(
        "SELECT chain, n, hash FROM audit_chains WHERE n > checked_n ORDER BY checked_in, chain LIMIT $1",
    )
    .bind(MOST_CHAINS)
    .fetch_all(&mut *connection)
    .await?;
    if grown.is_empty() {
        return Ok(None);
    }
    let (at,): (DateTime<Utc>,) =
        sqlx::query_as("SELECT clock_timestamp()").fetch_one(&mut *connection).await?;
    let mut ends: Ends = grown.into_iter().map(|(chain, n, hash)| (chain, n, hex(&hash))).collect();
    ends.sort();
    let chains = serde_json::to_string(&ends)
        .map_err(|error| Error::Corrupt { table: "audit_chains", fault: error.to_string() })?;
    let mut stored = StoredCheckpoint { n, at, chains, hash: Vec::new() };
    stored.hash = stored.hash_after(&previous);
    // Of two processes at once the second one waits for the first, and makes none.
    let made = sqlx::query(
        "INSERT INTO audit_checkpoints (n, at, chains, hash) VALUES ($1, $2, $3::json, $4) ON CONFLICT DO NOTHING",
    )
    .bind(n)
    .bind(at)
    .bind(&stored.chains)
    .bind(&stored.hash)
    .execute(connection)
    .await?;
    let checkpoint = Checkpoint { n, chains: ends.len(), hash: hex(&stored.hash) };
    Ok((made.rows_affected() == 1).then_some((checkpoint, ends)))
}

/// In lower-case hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

//! The least that any correct save worker must do with these servers, written plainly.
//!
//! Parse; lock the conversations, inserting those that are missing; insert the messages into the
//! product's own tables; commit; append to the hot copies; acknowledge. Batches of 500, four in
//! flight. It trusts its input, compares no duplicates, reads no tombstones, measures nothing and
//! dies of any error.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use chrono::{DateTime, Utc};
use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use lapin::message::Delivery;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use sqlx::{Connection as _, PgConnection};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until};

use crate::broker::{Acknowledged, BATCH, IN_FLIGHT, connect, consume, take_what_is_here};
use crate::masters::Masters;

/// How long a batch waits for company while others are under way, as with the worker's default.
const LINGER: Duration = Duration::from_millis(5);

/// Where the messages go.
#[derive(Debug, clap::Args)]
pub(crate) struct Stores {
    /// Redis; several, separated by commas: every master of a cluster
    #[arg(long, env = "REDIS_URL", hide_env_values = true)]
    redis_url: String,
    /// PostgreSQL
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    database_url: String,
}

#[derive(Deserialize)]
struct Action<'a> {
    tenant_id: &'a str,
    conversation_id: &'a str,
    session_id: &'a str,
    message_id: &'a str,
    timestamp: DateTime<Utc>,
    role: &'a str,
    content: &'a str,
    user_id: Option<&'a str>,
    agent_id: Option<&'a str>,
}

pub(crate) async fn run(amqp_url: &str, stores: &Stores) -> Result<()> {
    let saver = Arc::new(Saver::open(stores).await?);
    let (_connection, channel) = connect(amqp_url).await?;
    let mut stream = consume(&channel).await?;
    let mut acknowledged = Acknowledged::default();
    let mut in_flight = FuturesOrdered::new();
    let (mut batch, mut due) = (Vec::new(), Instant::now());
    loop {
        if batch.is_empty() {
            due = Instant::now() + LINGER;
        }
        take_what_is_here(&mut stream, &mut batch)?;
        let (full, room) = (batch.len() == BATCH, in_flight.len() < IN_FLIGHT);
        let waited = !batch.is_empty() && (in_flight.is_empty() || Instant::now() >= due);
        if room && (full || waited) {
            let (saver, batch) = (saver.clone(), std::mem::take(&mut batch));
            in_flight.push_back(tokio::spawn(async move { saver.save(batch).await }));
            continue;
        }
        tokio::select! {
            Some(saved) = in_flight.next() => acknowledged.up_to_last_of(&saved??).await?,
            delivery = stream.next(), if !full => {
                if batch.is_empty() {
                    due = Instant::now() + LINGER;
                }
                batch.push(delivery.context("the queue is gone")??);
            }
            () = sleep_until(due), if room && !batch.is_empty() => {}
        }
    }
}

/// A connection to PostgreSQL for each batch in flight, and one to each Redis for all.
struct Saver {
    postgresql: Mutex<Vec<PgConnection>>,
    redis: Masters,
}

impl Saver {
    async fn open(stores: &Stores) -> Result<Self> {
        let mut postgresql = Vec::new();
        for _ in 0..IN_FLIGHT {
            postgresql.push(PgConnection::connect(&stores.database_url).await?);
        }
        let redis = Masters::open(&stores.redis_url).await?;
        Ok(Self { postgresql: Mutex::new(postgresql), redis })
    }

    async fn save(&self, batch: Vec<Delivery>) -> Result<Vec<Delivery>> {
        let mut actions: Vec<Action<'_>> = Vec::with_capacity(batch.len());
        for delivery in &batch {
            actions.push(serde_json::from_slice(&delivery.data)?);
        }
        actions.sort_unstable_by_key(|a| (a.tenant_id, a.conversation_id, a.message_id));
        let mut connection =
            self.postgresql.lock().await.pop().context("a connection for each batch")?;
        store(&mut connection, &actions).await?;
        self.postgresql.lock().await.push(connection);
        self.append(&actions).await?;
        Ok(batch)
    }

    async fn append(&self, actions: &[Action<'_>]) -> Result<()> {
        let mut pipelines = self.redis.pipelines();
        let same = |a: &Action<'_>, b: &Action<'_>| {
            (a.tenant_id, a.conversation_id) == (b.tenant_id, b.conversation_id)
        };
        for conversation in actions.chunk_by(same) {
            let Action { tenant_id, conversation_id, .. } = conversation[0];
            let tag = format!("{tenant_id}/{conversation_id}");
            let pipeline = &mut pipelines[self.redis.of(&tag)];
            let add = pipeline.cmd("ZADD").arg(format!("messages:{{{tag}}}"));
            for action in conversation {
                let member = format!(
                    "{}\0\u{1}{{\"r\":\"{}\",\"c\":{}}}",
                    action.message_id,
                    action.role,
                    serde_json::to_string(action.content)?
                );
                add.arg(action.timestamp.timestamp_micros()).arg(member);
            }
            add.ignore();
        }
        self.redis.run(&pipelines).await
    }
}

async fn store(connection: &mut PgConnection, actions: &[Action<'_>]) -> Result<()> {
    let mut firsts: Vec<&Action<'_>> = actions.iter().collect();
    firsts.dedup_by_key(|a| (a.tenant_id, a.conversation_id));
    let mut transaction = connection.begin().await?;
    loop {
        let locked = sqlx::query(
            "SELECT c.id FROM unnest($1::text[], $2::text[]) AS k (tenant_id, id)
             JOIN conversations c ON c.tenant_id = k.tenant_id AND c.id = k.id
             ORDER BY c.tenant_id, c.id FOR KEY SHARE OF c",
        )
        .bind(firsts.iter().map(|a| a.tenant_id).collect::<Vec<_>>())
        .bind(firsts.iter().map(|a| a.conversation_id).collect::<Vec<_>>())
        .fetch_all(&mut *transaction)
        .await?;
        if locked.len() == firsts.len() {
            break;
        }
        sqlx::query(
            "INSERT INTO conversations (tenant_id, id, session_id, agent_id, user_id, created_at,
                                        last_message_at, hot_generation)
             SELECT t, c, s, a, u, at, at, 1
             FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[],
                         $6::timestamptz[]) AS r (t, c, s, a, u, at)
             ON CONFLICT DO NOTHING",
        )
        .bind(firsts.iter().map(|a| a.tenant_id).collect::<Vec<_>>())
        .bind(firsts.iter().map(|a| a.conversation_id).collect::<Vec<_>>())
        .bind(firsts.iter().map(|a| a.session_id).collect::<Vec<_>>())
        .bind(firsts.iter().map(|a| a.agent_id).collect::<Vec<_>>())
        .bind(firsts.iter().map(|a| a.user_id).collect::<Vec<_>>())
        .bind(firsts.iter().map(|a| a.timestamp).collect::<Vec<_>>())
        .execute(&mut *transaction)
        .await?;
    }
    let received = Utc::now();
    sqlx::query(
        "INSERT INTO messages (tenant_id, conversation_id, id, role, content, user_id, agent_id,
                               created_at, received_at, body_hash)
         SELECT t, c, id, r, content, u, a, at, $9, hash
         FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[],
                     $7::text[], $8::timestamptz[], $10::bytea[])
              AS r (t, c, id, r, content, u, a, at, hash)
         ON CONFLICT DO NOTHING",
    )
    .bind(actions.iter().map(|a| a.tenant_id).collect::<Vec<_>>())
    .bind(actions.iter().map(|a| a.conversation_id).collect::<Vec<_>>())
    .bind(actions.iter().map(|a| a.message_id).collect::<Vec<_>>())
    .bind(actions.iter().map(|a| a.role).collect::<Vec<_>>())
    .bind(actions.iter().map(|a| a.content).collect::<Vec<_>>())
    .bind(actions.iter().map(|a| a.user_id).collect::<Vec<_>>())
    .bind(actions.iter().map(|a| a.agent_id).collect::<Vec<_>>())
    .bind(actions.iter().map(|a| a.timestamp).collect::<Vec<_>>())
    .bind(received)
    .bind(actions.iter().map(|a| Sha256::digest(a.content)[..16].to_vec()).collect::<Vec<_>>())
    .execute(&mut *transaction)
    .await?;
    Ok(transaction.commit().await?)
}

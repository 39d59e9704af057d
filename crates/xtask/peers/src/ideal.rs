//! The baseline `ideal`: the least work of any correct save worker with these servers.
//!
//! It parses a batch; locks its conversations and inserts missing ones and the messages, into the product's
//! tables and in one statement; appends to the hot copies; and acknowledges. Batches of 500, four in flight.
//! It does not validate, compare duplicates, check tombstones or measure, and it ends at the first error.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use chrono::{DateTime, Utc};
use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use lapin::message::Delivery;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use sqlx::postgres::{PgArguments, PgBindIterExt as _};
use sqlx::query::Query;
use sqlx::{Connection as _, PgConnection, Postgres};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until};

use crate::broker::{Acknowledged, Deliveries, IN_FLIGHT, connect, consume, drain_ready};
use crate::masters::Masters;

/// How long an incomplete batch waits while others are in flight, as the worker's default.
const LINGER: Duration = Duration::from_millis(5);

/// The servers that store the messages.
#[derive(Debug, clap::Args)]
pub(crate) struct Servers {
    /// Redis; for a cluster, the URLs of all masters, separated by commas
    #[arg(long, env = "REDIS_URL", hide_env_values = true)]
    redis_url: String,
    /// PostgreSQL
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    database_url: String,
    #[command(flatten)]
    deliveries: Deliveries,
}

/// Several messages, with what they have in common.
#[derive(Deserialize)]
struct Several<'a> {
    tenant_id: &'a str,
    conversation_id: &'a str,
    session_id: &'a str,
    user_id: Option<&'a str>,
    agent_id: Option<&'a str>,
    #[serde(borrow)]
    messages: Vec<Element<'a>>,
}

#[derive(Deserialize)]
struct Element<'a> {
    message_id: &'a str,
    timestamp: DateTime<Utc>,
    role: &'a str,
    content: &'a str,
}

impl<'a> Several<'a> {
    fn actions(self) -> impl Iterator<Item = Action<'a>> {
        let Self { tenant_id, conversation_id, session_id, user_id, agent_id, messages } = self;
        messages.into_iter().map(move |Element { message_id, timestamp, role, content }| Action {
            tenant_id,
            conversation_id,
            session_id,
            message_id,
            timestamp,
            role,
            content,
            user_id,
            agent_id,
        })
    }
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

pub(crate) async fn run(amqp_url: &str, servers: &Servers) -> Result<()> {
    let saver = Arc::new(Saver::open(servers).await?);
    let (_connection, channel) = connect(amqp_url).await?;
    let deliveries = servers.deliveries;
    let mut stream = consume(&channel, deliveries).await?;
    let mut acknowledged = Acknowledged::of(deliveries);
    let mut in_flight = FuturesOrdered::new();
    let (mut batch, mut due) = (Vec::new(), Instant::now());
    loop {
        if batch.is_empty() {
            due = Instant::now() + LINGER;
        }
        drain_ready(&mut stream, &mut batch, deliveries)?;
        let (full, room) = (batch.len() == deliveries.of_a_batch(), in_flight.len() < IN_FLIGHT);
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
                batch.push(delivery.context("the consumer was cancelled")??);
            }
            () = sleep_until(due), if room && !batch.is_empty() => {}
        }
    }
}

/// A connection to PostgreSQL for each batch in flight, and one shared connection to each Redis.
struct Saver {
    postgresql: Mutex<Vec<PgConnection>>,
    redis: Masters,
    deliveries: Deliveries,
}

impl Saver {
    async fn open(servers: &Servers) -> Result<Self> {
        let mut postgresql = Vec::new();
        for _ in 0..IN_FLIGHT {
            postgresql.push(PgConnection::connect(&servers.database_url).await?);
        }
        let redis = Masters::open(&servers.redis_url).await?;
        Ok(Self { postgresql: Mutex::new(postgresql), redis, deliveries: servers.deliveries })
    }

    async fn save(&self, batch: Vec<Delivery>) -> Result<Vec<Delivery>> {
        let mut actions: Vec<Action<'_>> =
            Vec::with_capacity(batch.len() * self.deliveries.batch());
        for delivery in &batch {
            if self.deliveries.batch() == 1 {
                actions.push(serde_json::from_slice(&delivery.data)?);
            } else {
                actions.extend(serde_json::from_slice::<Several<'_>>(&delivery.data)?.actions());
            }
        }
        actions.sort_unstable_by_key(|a| (a.tenant_id, a.conversation_id, a.message_id));
        let mut connection =
            self.postgresql.lock().await.pop().context("no free connection to PostgreSQL")?;
        store(&mut connection, &actions).await?;
        self.postgresql.lock().await.push(connection);
        self.append(&actions).await?;
        Ok(batch)
    }

    async fn append(&self, actions: &[Action<'_>]) -> Result<()> {
        let mut pipelines = self.redis.pipelines();
        for conversation in actions.chunk_by(same_conversation) {
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

/// One statement in one transaction. It inserts nothing and returns no row if a concurrent batch has inserted
/// one of the conversations; then it is repeated.
const STORE: &str = "
    WITH requested AS MATERIALIZED (
        SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::timestamptz[])
             WITH ORDINALITY AS k (tenant_id, id, session_id, agent_id, user_id, at, n)),
    locked AS MATERIALIZED (
        SELECT k.n, c.number FROM requested k
        CROSS JOIN LATERAL (SELECT number FROM conversations c
                            WHERE c.tenant_id = k.tenant_id AND c.id = k.id FOR KEY SHARE) AS c),
    missing AS MATERIALIZED (
        SELECT k.*, nextval('conversations_number_seq') AS number FROM requested k
        WHERE (SELECT count(*) FROM locked) < cardinality($1) AND k.n NOT IN (SELECT n FROM locked)),
    inserted AS (
        INSERT INTO conversations (number, tenant_id, id, session_id, agent_id, user_id, created_at,
                                   last_message_at, hot_generation)
        SELECT number, tenant_id, id, session_id, agent_id, user_id, at, at, 1 FROM missing ORDER BY n
        ON CONFLICT DO NOTHING RETURNING number),
    ready AS MATERIALIZED (
        SELECT array_agg(number ORDER BY n) AS numbers
        FROM (SELECT n, number FROM locked UNION ALL SELECT n, number FROM missing) AS known
        HAVING count(*) = cardinality($1)
           AND (SELECT count(*) FROM inserted) = (SELECT count(*) FROM missing)),
    added AS (
        INSERT INTO message_rows (conversation, id, role, content, user_id, agent_id, created_at,
                                  received_at, body_hash)
        SELECT numbers[n], id, role, content, user_id, agent_id, created_at, $14, hash
        FROM ready, unnest($7::int[], $8::text[], $9::text[], $10::text[], $11::text[], $12::text[],
                           $13::timestamptz[], $15::bytea[])
             AS r (n, id, role, content, user_id, agent_id, created_at, hash))
    SELECT 1 FROM ready";

async fn store(connection: &mut PgConnection, actions: &[Action<'_>]) -> Result<()> {
    let received = Utc::now();
    while statement(actions, received).fetch_optional(&mut *connection).await?.is_none() {}
    Ok(())
}

fn statement(
    actions: &[Action<'_>],
    received: DateTime<Utc>,
) -> Query<'static, Postgres, PgArguments> {
    let conversations: Vec<&[Action<'_>]> = actions.chunk_by(same_conversation).collect();
    let firsts = || conversations.iter().map(|conversation| &conversation[0]);
    let places = (1_i32..).zip(&conversations).flat_map(|(n, it)| it.iter().map(move |_| n));
    let hashes: Vec<_> = actions.iter().map(|it| Sha256::digest(it.content)).collect();
    sqlx::query(STORE)
        .bind(firsts().map(|it| it.tenant_id).bind_iter())
        .bind(firsts().map(|it| it.conversation_id).bind_iter())
        .bind(firsts().map(|it| it.session_id).bind_iter())
        .bind(firsts().map(|it| it.agent_id).bind_iter())
        .bind(firsts().map(|it| it.user_id).bind_iter())
        .bind(conversations.iter().map(|it| it.iter().map(|it| it.timestamp).min()).bind_iter())
        .bind(places.bind_iter())
        .bind(actions.iter().map(|it| it.message_id).bind_iter())
        .bind(actions.iter().map(|it| it.role).bind_iter())
        .bind(actions.iter().map(|it| it.content).bind_iter())
        .bind(actions.iter().map(|it| it.user_id).bind_iter())
        .bind(actions.iter().map(|it| it.agent_id).bind_iter())
        .bind(actions.iter().map(|it| it.timestamp).bind_iter())
        .bind(received)
        .bind(hashes.iter().map(|hash| &hash[..16]).bind_iter())
}

fn same_conversation(a: &Action<'_>, b: &Action<'_>) -> bool {
    (a.tenant_id, a.conversation_id) == (b.tenant_id, b.conversation_id)
}

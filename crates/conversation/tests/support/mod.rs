//! The servers of one test, a replica, and actions to save.

#![expect(dead_code, reason = "each test file uses its own part")]
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "what fails here fails the test")]

use std::sync::Arc;
use std::time::Duration;

use broker::{Endpoints, Publisher, topology};
use conversation::{
    Background, Closer, ClosingSettings, RandomSource, Reader, Saver, Sessions, Source, Statistics,
    Transcript, record_server,
};
use database::Database;
use domain::action::{Action, SaveMessage};
use domain::decode::{DEFAULT_MAX_BODY_BYTES, DecodeContext, decode};
use domain::envelope::Envelope;
use domain::failure::{Done, Outcome};
use domain::ids::{ConversationKey, SessionId, TenantId};
use domain::message::Message;
use domain::time::Timestamp;
use hot_store::{Address, HotStore, Window};
use metrics::Metrics;
use serde_json::{Value, json};
use testkit::TestEnv;
use testkit::wait::eventually;
use uuid::Uuid;

/// Longer than anything here takes on two busy cores.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// One replica: its own connections to the servers of a test.
pub(crate) struct Replica {
    pub(crate) database: Database,
    pub(crate) hot: HotStore,
    pub(crate) metrics: Metrics,
    pub(crate) saver: Saver,
    pub(crate) reader: Reader,
    pub(crate) sessions: Sessions,
    pub(crate) statistics: Statistics,
}

impl Replica {
    /// A replica that uses the servers of the test directly.
    pub(crate) fn of(env: &TestEnv) -> Self {
        Self::at(&env.database_url, &env.redis_url)
    }

    /// A replica that uses the servers at these URLs.
    pub(crate) fn at(database_url: &str, redis_url: &str) -> Self {
        let metrics = Metrics::new();
        let database = database(database_url);
        let hot = hot(&database, redis_url, &metrics);
        Self {
            saver: Saver::new(
                database.clone(),
                hot.clone(),
                metrics.clone(),
                RandomSource::random(),
            ),
            reader: Reader::new(database.clone(), hot.clone(), metrics.clone()),
            sessions: Sessions::new(
                database.clone(),
                metrics.clone(),
                RandomSource::random(),
                Background::unthrottled(),
            ),
            statistics: Statistics::new(
                database.clone(),
                metrics.clone(),
                Background::unthrottled(),
            ),
            database,
            hot,
            metrics,
        }
    }

    /// Saves actions as one batch.
    pub(crate) async fn save(&self, actions: &[SaveMessage]) -> Vec<Outcome> {
        self.saver.save(actions).await.unwrap()
    }

    /// The newest messages, from whichever server.
    pub(crate) async fn read(&self, key: &ConversationKey, newest: usize) -> Transcript {
        let window = Window { newest, before: None };
        self.reader.read(key, &window).await.unwrap().expect("the conversation exists")
    }

    /// The messages from the hot copy, after asserting that PostgreSQL has the same.
    pub(crate) async fn read_both(&self, key: &ConversationKey, newest: usize) -> Vec<Message> {
        self.read(key, newest).await;
        let hot = self.read(key, newest).await;
        assert_eq!(hot.source, Source::HotCopy, "a second read is served by the copy");
        let page = database::Page { newest, max_bytes: usize::MAX, before: None };
        let stored = self.database.read(key, &page).await.unwrap().messages;
        assert_eq!(hot.messages, stored, "Redis and PostgreSQL agree byte for byte");
        stored
    }
}

/// A test's servers with the schema created, and one replica.
pub(crate) async fn stores() -> (TestEnv, Replica) {
    let env = TestEnv::new().await;
    database(&env.database_url).migrate().await.unwrap();
    let replica = Replica::of(&env);
    (env, replica)
}

/// A closer of the replica, with the topology declared.
pub(crate) async fn closer(env: &TestEnv, replica: &Replica, settings: ClosingSettings) -> Closer {
    let endpoints = Endpoints::parse(&env.amqp_url, "test").unwrap();
    topology::declare(&endpoints).await.unwrap();
    let publisher = Publisher::new(endpoints, replica.metrics.clone());
    Closer::new(
        replica.database.clone(),
        replica.hot.clone(),
        publisher,
        replica.metrics.clone(),
        Background::unthrottled(),
        settings,
    )
}

/// Settings without a grace period, and otherwise the defaults.
pub(crate) fn at_once() -> ClosingSettings {
    ClosingSettings { grace: Duration::ZERO, ..ClosingSettings::default() }
}

pub(crate) fn database(database_url: &str) -> Database {
    Database::open(&database::Settings {
        url: database_url.to_owned(),
        application: "test".to_owned(),
        connections: 5,
        time_out: Duration::from_secs(10),
        lock_time_out: Duration::from_secs(2),
    })
    .unwrap()
}

pub(crate) fn hot(database: &Database, redis_url: &str, metrics: &Metrics) -> HotStore {
    let settings = hot_store::Settings::new(Address::parse(redis_url).unwrap());
    HotStore::open(
        settings,
        record_server(database.clone(), metrics.clone(), RandomSource::random()),
    )
}

/// Decodes an action as a worker does.
pub(crate) fn action(body: &Value) -> Action {
    action_received(body, "2026-11-20T12:00:00Z")
}

/// Decodes an action that was received at a given time.
pub(crate) fn action_received(body: &Value, received_at: &str) -> Action {
    let context = DecodeContext {
        received_at: Timestamp::parse(received_at).unwrap(),
        max_body_bytes: DEFAULT_MAX_BODY_BYTES,
        new_id: &Uuid::new_v4,
    };
    decode(body.to_string().as_bytes(), &Envelope::default(), &context).unwrap()
}

/// A message to save: the usual fields, and whatever `extra` adds or replaces.
pub(crate) fn message(session: &str, id: &str, extra: &Value) -> SaveMessage {
    let mut body = json!({
        "action_type": "conversation.save_message", "tenant_id": "acme", "session_id": session,
        "message_id": id, "role": "user", "content": format!("content of {id}"),
        "timestamp": "2026-11-20T10:00:00Z",
    });
    let extra = extra.as_object().unwrap().clone();
    body.as_object_mut().unwrap().extend(extra);
    saving(action(&body))
}

pub(crate) fn saving(action: Action) -> SaveMessage {
    match action {
        Action::SaveMessage(save) => *save,
        other => panic!("not a message: {other:?}"),
    }
}

pub(crate) fn key(session: &str) -> ConversationKey {
    ConversationKey::of_session(TenantId::new("acme").unwrap(), &SessionId::new(session).unwrap())
}

pub(crate) fn ids(messages: &[Message]) -> Vec<&str> {
    messages.iter().map(|message| message.id.as_str()).collect()
}

pub(crate) fn applied() -> Outcome {
    Outcome::Done(Done::Applied)
}

pub(crate) fn duplicate() -> Outcome {
    Outcome::Done(Done::Duplicate)
}

/// Runs a command on the Redis that has its key, and expects a number.
pub(crate) async fn redis(env: &TestEnv, command: &[&str]) -> i64 {
    for node in env.redis().nodes() {
        let reply = node.redis(command).await.unwrap();
        if !reply.starts_with("-MOVED") {
            let number = reply.strip_prefix(':').and_then(|number| number.parse().ok());
            return number.unwrap_or_else(|| panic!("{command:?}: {reply}"));
        }
    }
    panic!("no node owns the key of {command:?}");
}

/// Runs SQL on the test's database and expects a value.
pub(crate) async fn sql(env: &TestEnv, statement: &str) -> String {
    env.psql(statement).await.unwrap().trim().to_owned()
}

/// Waits until a statement gives a value.
pub(crate) async fn until_sql(env: &TestEnv, statement: &str, wanted: &str) {
    eventually(format!("{statement} = {wanted}"), LIMIT, async || {
        let found = sql(env, statement).await;
        if found == wanted { Ok(()) } else { Err(found) }
    })
    .await;
}

/// Runs the same work on several tasks at once.
pub(crate) async fn at_the_same_time<F, Fut, T>(times: usize, work: F) -> Vec<T>
where
    F: Fn(usize) -> Fut,
    Fut: Future<Output = T> + Send + 'static,
    T: Send + 'static,
{
    let barrier = Arc::new(tokio::sync::Barrier::new(times));
    let tasks: Vec<_> = (0..times)
        .map(|n| {
            let (barrier, work) = (Arc::clone(&barrier), work(n));
            tokio::spawn(async move {
                barrier.wait().await;
                work.await
            })
        })
        .collect();
    let mut results = Vec::with_capacity(times);
    for task in tasks {
        results.push(task.await.unwrap());
    }
    results
}

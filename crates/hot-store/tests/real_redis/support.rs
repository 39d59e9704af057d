//! A test's own Redis, the store under test, and a plain client beside the store.
//!
//! The Redis is a single server, or a cluster if the tests are configured to use one.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use domain::ids::{ConversationId, ConversationKey, TenantId};
use domain::message::{Content, Message, Position};
use fixtures::stored;
use hot_store::{
    Address, CompleteFrom, CompletenessMarker, HotStore, Loaded, Numbers, ServerIdentity, Settings,
    Window,
};
use redis::{FromRedisValue, ServerErrorKind};
use testkit::environment::own_redis;
use testkit::servers::{Kind, Node, Replicas, Server, Servers};

/// A timeout that is longer than any step of these tests on two busy cores.
pub(crate) const SOON: Duration = Duration::from_secs(20);

pub(crate) const NUMBERS: Numbers = Numbers { epoch: 7, generation: -8 };

/// A private Redis and a record of server identities, which is in PostgreSQL in production.
pub(crate) struct World {
    servers: Servers,
    pub(crate) record: Arc<Record>,
}

/// The calls of `check_server` and its result.
#[derive(Default)]
pub(crate) struct Record {
    pub(crate) checks: AtomicUsize,
    pub(crate) refuses: AtomicBool,
    pub(crate) server_identities: Mutex<BTreeSet<String>>,
}

#[derive(Debug, thiserror::Error)]
#[error("the record cannot be read")]
pub(crate) struct RecordUnavailable;

impl World {
    pub(crate) async fn new() -> Self {
        Self::of(own_redis().await.expect("a private Redis"))
    }

    /// A single server, for tests that do not apply to a cluster.
    pub(crate) async fn single() -> Self {
        Self::of(Servers::start(&[Kind::Redis]).await.expect("a private Redis"))
    }

    pub(crate) async fn cluster(replicas: Replicas) -> Self {
        Self::of(Servers::start_redis_cluster(replicas).await.expect("a private Redis Cluster"))
    }

    fn of(servers: Servers) -> Self {
        Self { servers, record: Arc::default() }
    }

    pub(crate) fn server(&self) -> &Server {
        self.servers.redis()
    }

    /// The server processes that a store connects to.
    pub(crate) fn nodes(&self) -> &[Node] {
        self.server().nodes()
    }

    pub(crate) fn settings(&self) -> Settings {
        settings(&self.server().url())
    }

    pub(crate) fn store(&self) -> HotStore {
        self.store_with(self.settings())
    }

    pub(crate) fn store_with(&self, settings: Settings) -> HotStore {
        let record = self.record.clone();
        HotStore::open(settings, move |server_identity: ServerIdentity| {
            let record = record.clone();
            async move {
                record.checks.fetch_add(1, Ordering::SeqCst);
                if record.refuses.load(Ordering::SeqCst) {
                    return Err(RecordUnavailable);
                }
                record.server_identities.lock().unwrap().insert(server_identity.to_string());
                Ok(())
            }
        })
    }

    /// Runs a command on the server that has its key, without the store.
    pub(crate) async fn raw<T: FromRedisValue>(&self, command: &[&str]) -> T {
        self.raw_bytes(&command.iter().map(|arg| arg.as_bytes()).collect::<Vec<_>>()).await
    }

    pub(crate) async fn raw_bytes<T: FromRedisValue>(&self, command: &[&[u8]]) -> T {
        for node in self.nodes() {
            match on(node, command).await {
                Err(error) if error.kind() == ServerErrorKind::Moved.into() => {}
                other => return other.unwrap(),
            }
        }
        panic!("no server has the key of {command:?}");
    }

    /// Runs a command on every server.
    pub(crate) async fn raw_each<T: FromRedisValue>(&self, command: &[&str]) -> Vec<T> {
        let mut replies = Vec::new();
        for node in self.nodes() {
            replies.push(raw_on(node, command).await);
        }
        replies
    }

    /// How many keys there are.
    pub(crate) async fn keys(&self) -> usize {
        self.raw_each::<usize>(&["DBSIZE"]).await.into_iter().sum()
    }

    pub(crate) async fn configure(&self, setting: &str, value: &str) {
        self.raw_each::<()>(&["CONFIG", "SET", setting, value]).await;
    }

    pub(crate) fn checks(&self) -> usize {
        self.record.checks.load(Ordering::SeqCst)
    }

    pub(crate) fn server_identities(&self) -> usize {
        self.record.server_identities.lock().unwrap().len()
    }
}

/// Runs a command on one server.
pub(crate) async fn raw_on<T: FromRedisValue>(node: &Node, command: &[&str]) -> T {
    on(node, &command.iter().map(|arg| arg.as_bytes()).collect::<Vec<_>>()).await.unwrap()
}

async fn on<T: FromRedisValue>(node: &Node, command: &[&[u8]]) -> redis::RedisResult<T> {
    let client = redis::Client::open(node.url()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await?;
    let mut packed = redis::Cmd::new();
    packed.arg(command);
    packed.query_async(&mut connection).await
}

pub(crate) fn settings(url: &str) -> Settings {
    Settings::new(Address::parse(url).unwrap())
}

pub(crate) fn key(conversation: &str) -> ConversationKey {
    ConversationKey {
        tenant: TenantId::new("tenant:1/{x}").unwrap(),
        conversation: ConversationId::new(conversation).unwrap(),
    }
}

/// The name of a conversation's key, written out here so that a change of the format fails tests.
pub(crate) fn name(conversation: &str) -> String {
    format!("messages:{{tenant%3A1%2F%7Bx%7D/{conversation}}}")
}

/// A message of some size.
pub(crate) fn large_message(id: &str, micros: i64, bytes: usize) -> Message {
    Message { content: Content::Text("x".repeat(bytes)), ..stored(id, micros) }
}

/// `count` messages, one for each microsecond, oldest first.
pub(crate) fn messages(count: usize) -> Vec<Message> {
    (0..count).map(|i| stored(&format!("m-{i:06}"), 1_000 + i64::try_from(i).unwrap())).collect()
}

pub(crate) fn newest(newest: usize) -> Window {
    Window { newest, before: None }
}

pub(crate) fn position(id: &str, micros: i64) -> Position {
    stored(id, micros).position()
}

pub(crate) fn whole() -> CompletenessMarker {
    CompletenessMarker { numbers: NUMBERS, complete_from: CompleteFrom::Beginning }
}

/// Loads a whole conversation.
pub(crate) async fn load(store: &HotStore, conversation: &str, messages: &[Message]) {
    let load_token = store.begin_load(&key(conversation)).await.unwrap();
    let loaded = store.finish_load(load_token, &whole(), messages).await.unwrap();
    assert_eq!(loaded, Loaded::Accepted);
}

pub(crate) async fn append(store: &HotStore, conversation: &str, messages: &[Message]) {
    store
        .append_renewing(&[(key(conversation), messages.iter().collect())], |_| true)
        .await
        .unwrap();
}

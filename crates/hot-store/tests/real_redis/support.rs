//! One test's own Redis, the store that is tested, and a plain client that looks behind its back.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use domain::ids::{ConversationId, ConversationKey, MessageId, TenantId};
use domain::message::{Content, Message, Position, Role};
use domain::time::Timestamp;
use hot_store::{Address, Floor, HotStore, Loaded, Mark, Numbers, Reign, Settings, Window};
use redis::FromRedisValue;
use testkit::servers::{Kind, Server, Servers};

/// More than anything here takes, on two busy cores.
pub(crate) const SOON: Duration = Duration::from_secs(20);

pub(crate) const NUMBERS: Numbers = Numbers { epoch: 7, generation: -8 };

/// A private Redis and a record of reigns, as PostgreSQL would keep it.
pub(crate) struct World {
    servers: Servers,
    pub(crate) record: Arc<Record>,
}

/// What `admit` was asked, and what it answers.
#[derive(Default)]
pub(crate) struct Record {
    pub(crate) asked: AtomicUsize,
    pub(crate) refuses: AtomicBool,
    pub(crate) reigns: Mutex<BTreeSet<String>>,
}

#[derive(Debug, thiserror::Error)]
#[error("the record cannot be read")]
pub(crate) struct RecordIsAway;

impl World {
    pub(crate) async fn new() -> Self {
        let servers = Servers::start(&[Kind::Redis]).await.expect("a private Redis");
        Self { servers, record: Arc::default() }
    }

    pub(crate) fn server(&self) -> &Server {
        self.servers.get(Kind::Redis)
    }

    pub(crate) fn settings(&self) -> Settings {
        settings(&self.server().url())
    }

    pub(crate) fn store(&self) -> HotStore {
        self.store_with(self.settings())
    }

    pub(crate) fn store_with(&self, settings: Settings) -> HotStore {
        let record = self.record.clone();
        HotStore::open(settings, move |reign: Reign| {
            let record = record.clone();
            async move {
                record.asked.fetch_add(1, Ordering::SeqCst);
                if record.refuses.load(Ordering::SeqCst) {
                    return Err(RecordIsAway);
                }
                record.reigns.lock().unwrap().insert(reign.to_string());
                Ok(())
            }
        })
        .unwrap()
    }

    /// Runs a command on the server, beside the store.
    pub(crate) async fn raw<T: FromRedisValue>(&self, command: &[&str]) -> T {
        self.raw_bytes(&command.iter().map(|arg| arg.as_bytes()).collect::<Vec<_>>()).await
    }

    pub(crate) async fn raw_bytes<T: FromRedisValue>(&self, command: &[&[u8]]) -> T {
        let client = redis::Client::open(self.server().url()).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let mut packed = redis::Cmd::new();
        packed.arg(command);
        packed.query_async(&mut connection).await.unwrap()
    }

    pub(crate) fn asked(&self) -> usize {
        self.record.asked.load(Ordering::SeqCst)
    }

    pub(crate) fn reigns(&self) -> usize {
        self.record.reigns.lock().unwrap().len()
    }
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

/// The name of a conversation's key, spelt out here so that it cannot change unnoticed.
pub(crate) fn name(conversation: &str) -> String {
    format!("messages:{{tenant%3A1%2F%7Bx%7D/{conversation}}}")
}

pub(crate) fn message(id: &str, micros: i64) -> Message {
    Message {
        id: MessageId::new(id).unwrap(),
        role: Role::User,
        content: Content::Text(format!("words of {id}")),
        tool_calls: None,
        tool_call_id: None,
        tokens_estimate: None,
        user_id: None,
        agent_id: None,
        model_name: None,
        processing_time_ms: None,
        created_at: Timestamp::from_micros(micros).unwrap(),
        received_at: Timestamp::from_micros(micros + 1).unwrap(),
        metadata: None,
    }
}

/// A message of some size.
pub(crate) fn large_message(id: &str, micros: i64, bytes: usize) -> Message {
    Message { content: Content::Text("x".repeat(bytes)), ..message(id, micros) }
}

/// So many messages, one to a microsecond, oldest first.
pub(crate) fn messages(count: usize) -> Vec<Message> {
    (0..count).map(|i| message(&format!("m-{i:06}"), 1_000 + i64::try_from(i).unwrap())).collect()
}

pub(crate) fn ids(messages: &[Message]) -> Vec<&str> {
    messages.iter().map(|message| message.id.as_str()).collect()
}

pub(crate) fn newest(newest: usize) -> Window {
    Window { newest, before: None }
}

pub(crate) fn position(id: &str, micros: i64) -> Position {
    message(id, micros).position()
}

pub(crate) fn whole() -> Mark {
    Mark { numbers: NUMBERS, floor: Floor::Beginning }
}

/// Loads a whole conversation.
pub(crate) async fn load(store: &HotStore, conversation: &str, messages: &[Message]) {
    let intent = store.begin_load(&key(conversation)).await.unwrap();
    let loaded = store.finish_load(intent, &whole(), messages).await.unwrap();
    assert_eq!(loaded, Loaded::Accepted);
}

pub(crate) async fn append(store: &HotStore, conversation: &str, messages: &[Message]) {
    store.append(&[(key(conversation), messages.iter().collect())]).await.unwrap();
}

//! Publishers and a reader that run during the faults, and the record of what was confirmed.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use domain::ids::ConversationKey;
use fixtures::lists::turns;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::api::{ApiClient, ApiRecord, Order};
use super::plan::Plan;
use super::sessions::{
    CONCURRENT, LENGTH, OVER_HTTP, PUBLISHERS, TENANTS, is_deleted, step, tenant_of,
};
use crate::{
    Agent, AgentAction, AsAction as _, PublishedActions, Scenario, TestReader, at, closed, deleted,
    feedback, key_of, message, opened,
};

/// How long the remaining work may take after the last fault: the lease of a killed closer (30 s), and
/// a backlog.
pub(super) const DONE_LIMIT: Duration = Duration::from_secs(180);

/// One session in so many never closes: its conversation is read from Redis at the end.
const STAYS_OPEN: usize = 4;
/// Messages of one publish batch, at most.
const LARGEST_BATCH: usize = 500;
/// Between two checks whether messages are due.
const TICK: Duration = Duration::from_millis(50);
/// Between two reads.
const READ_INTERVAL: Duration = Duration::from_millis(25);
/// Between two reads of one client of the API.
const API_READ_INTERVAL: Duration = Duration::from_millis(100);
/// One read of a client of the API in so many is a list.
const LISTS: usize = 10;
/// One in so many is a conversation of another tenant.
const FOREIGN: usize = 7;
/// Content of a message, in bytes: with its other fields an action has some 500.
const CONTENT_BYTES: usize = 300;
/// Messages of a list. Each list of a conversation has one more than the one before.
const LIST: usize = 20;

/// What was confirmed, and what the reader found.
#[derive(Default)]
pub(super) struct LoadRecord {
    pub(super) published: PublishedActions,
    /// Conversations whose session has closed.
    pub(super) closed: usize,
    /// Transcripts that were out of order or had a message twice.
    pub(super) misread: Vec<String>,
    /// Conversations whose session was opened, in their order.
    opened: Vec<ConversationKey>,
    /// What the clients of the API saw.
    pub(super) api: ApiRecord,
}

/// The running publishers and readers.
pub(super) struct Load {
    record: Rc<RefCell<LoadRecord>>,
    api: Rc<RefCell<ApiRecord>>,
    publishers: JoinSet<()>,
    readers: JoinSet<()>,
    over: watch::Sender<bool>,
}

/// How actions are published.
enum Publisher {
    Amqp(Box<Agent>),
    Http(ApiClient),
}

/// How many messages each publisher sends, and over what time.
#[derive(Clone, Copy)]
struct Pace {
    messages: usize,
    lasts: Duration,
}

impl Load {
    /// Starts publishers and readers; the API is served at these addresses.
    ///
    /// # Panics
    /// When no API key can be made.
    pub(super) async fn start(scenario: &Scenario, addresses: &[SocketAddr], plan: &Plan) -> Self {
        let record = Rc::new(RefCell::new(LoadRecord::default()));
        let api = Rc::new(RefCell::new(ApiRecord::default()));
        let (over, is_over) = watch::channel(false);
        let pace = Pace { messages: plan.messages.div_ceil(PUBLISHERS), lasts: plan.lasts };
        let mut clients = Vec::new();
        for tenant in TENANTS {
            clients.push(ApiClient::new(scenario, addresses, tenant, &api).await);
        }
        let mut publishers = JoinSet::new();
        for number in 0..PUBLISHERS {
            let publisher = match number {
                OVER_HTTP => Publisher::Http(clients[1].clone()),
                _ => Publisher::Amqp(Box::new(scenario.agent())),
            };
            let (record, is_over) = (Rc::clone(&record), is_over.clone());
            publishers.spawn_local(publish(number, publisher, pace, record, is_over));
        }
        let mut readers = JoinSet::new();
        readers.spawn_local(read(scenario.reader(), Rc::clone(&record)));
        // Each reads from one replica, so that none is without requests.
        for replica in 0..addresses.len() {
            for client in &clients {
                let (record, client) = (Rc::clone(&record), client.clone());
                readers.spawn_local(read_over_http(client, replica, record));
            }
        }
        Self { record, api, publishers, readers, over }
    }

    /// Lets the publishers publish the rest of their messages at once, and returns the record.
    pub(super) async fn finish(mut self) -> LoadRecord {
        self.over.send_replace(true);
        while let Some(ended) = self.publishers.join_next().await {
            ended.expect("a publisher that publishes all");
        }
        self.readers.shutdown().await;
        LoadRecord { api: self.api.take(), ..self.record.take() }
    }
}

impl Publisher {
    /// Publishes actions repeatedly until each is confirmed. Returns them with the ids that they have.
    async fn publish(&mut self, actions: Vec<AgentAction>) -> Vec<AgentAction> {
        match self {
            Self::Amqp(agent) => {
                agent.publish_until_confirmed(&actions).await;
                actions
            }
            Self::Http(client) => client.publish(actions).await,
        }
    }
}

/// Publishes at its pace during the faults, and the rest at once when they are over.
async fn publish(
    number: usize,
    mut publisher: Publisher,
    pace: Pace,
    record: Rc<RefCell<LoadRecord>>,
    over: watch::Receiver<bool>,
) {
    let (began, mut sent) = (Instant::now(), 0);
    loop {
        let is_over = *over.borrow();
        let due = if is_over { pace.messages } else { pace.due(began.elapsed()) };
        if sent >= due {
            if is_over {
                return;
            }
            sleep(TICK).await;
            continue;
        }
        let until = due.min(sent + LARGEST_BATCH);
        // Newest first: timestamps decide the order of a conversation, not arrival.
        let actions: Vec<AgentAction> =
            (sent..until).rev().flat_map(|n| actions(number, n)).collect();
        // Every other agent publishes the messages of a conversation together.
        let actions =
            if number.is_multiple_of(2) { actions } else { AgentAction::together(actions) };
        let actions = publisher.publish(actions).await;
        record.borrow_mut().add(&actions);
        sent = until;
    }
}

impl Pace {
    /// How many messages are due by now. After `lasts` the pace stays the same.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "counts far below 2^52"
    )]
    fn due(self, elapsed: Duration) -> usize {
        (self.messages as f64 * elapsed.as_secs_f64() / self.lasts.as_secs_f64()) as usize
    }
}

impl LoadRecord {
    fn add(&mut self, actions: &[AgentAction]) {
        let of = |name| actions.iter().filter(move |action| action.body["action_type"] == name);
        self.published.add_confirmed(actions);
        self.opened.extend(of("conversation.session_opened").map(|action| key_of(&action.body)));
        self.closed += of("conversation.session_closed").count();
    }

    /// The nth of the conversations that began lately, in some order, of those that are wanted.
    fn recent(
        &self,
        n: usize,
        is_wanted: impl Fn(&ConversationKey) -> bool,
    ) -> Option<ConversationKey> {
        let newest = self.opened.iter().rev().filter(|key| is_wanted(key));
        let newest: Vec<_> = newest.take(PUBLISHERS * CONCURRENT).collect();
        newest.get(n * 7 % newest.len().max(1)).copied().cloned()
    }
}

/// The `n`th message of a publisher, after its session's opening if it is the first one, before its
/// closing if it is the last one. In the middle of a session its user rates it.
fn actions(publisher: usize, n: usize) -> Vec<AgentAction> {
    let (lap, place) = (n / CONCURRENT, n % CONCURRENT);
    let (generation, turn) = (step(n) / LENGTH, step(n) % LENGTH);
    let tenant = tenant_of(publisher);
    let session = format!("s{publisher}-{generation}-{place}");
    let moment = |tenth: i64| json!({"timestamp": at(i64::try_from(n).unwrap() * 10 + tenth)});
    let with = |tenth: i64, extra: Value| {
        let mut fields = moment(tenth);
        fields.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        fields
    };
    let id = format!("m{publisher}-{n}");
    let mut extra = moment(0);
    extra["content"] = format!("{id:<CONTENT_BYTES$}").into();
    let message = message(tenant, &session, &id, &extra);
    let event = |what: &str, body| AgentAction::event_in_turn(n, &format!("{what} {id}"), body);
    let rating = n % 5 + 1;
    let mut actions = vec![AgentAction::sent_in_turn(n, message)];
    if turn == 0 || lap == 0 {
        actions.insert(0, event("open", opened(tenant, &session, &moment(-1))));
    }
    if place == 0 {
        actions.push(list(publisher, lap));
    }
    if let Some(before) = n.checked_sub(CONCURRENT).filter(|before| is_deleted(*before)) {
        let before = format!("m{publisher}-{before}");
        actions.push(deleted(tenant, &session, &before).as_action());
    }
    if turn == LENGTH / 2 {
        let rated = with(1, json!({"satisfaction": rating}));
        actions.push(event("rate", feedback(tenant, &session, &rated)));
    }
    if turn == LENGTH - 1 && place % STAYS_OPEN != 0 {
        let mut said = json!({"reason": format!("reason {id}")});
        if place.is_multiple_of(2) {
            said["satisfaction"] = rating.into();
        }
        actions.push(event("close", closed(tenant, &session, &with(2, said))));
    }
    actions
}

/// A list of a conversation of its own, without ids: half of its messages say the same.
fn list(publisher: usize, lap: usize) -> AgentAction {
    let (generation, last) = (lap / LIST, lap % LIST);
    let session = format!("list{publisher}-{generation}");
    let content = |n: usize| {
        if n.is_multiple_of(2) { "yes".to_owned() } else { format!("{session} says {n}") }
    };
    let contents: Vec<String> = (0..=last).map(content).collect();
    let messages = turns(&contents.iter().map(String::as_str).collect::<Vec<_>>());
    let mut body = fixtures::lists::body(&session, &messages, &json!({}));
    body["tenant_id"] = tenant_of(publisher).into();
    AgentAction { body, message_id: None }
}

/// Reads recent conversations and lists from one replica, one after another.
async fn read_over_http(client: ApiClient, replica: usize, record: Rc<RefCell<LoadRecord>>) {
    for n in 0.. {
        sleep(API_READ_INTERVAL).await;
        if n % LISTS == 1 {
            client.list(replica).await;
            continue;
        }
        let is_foreign = n % FOREIGN == 0;
        let is_wanted = |key: &ConversationKey| client.owns(key) != is_foreign;
        let key = record.borrow().recent(n, is_wanted);
        let Some(key) = key else { continue };
        let order = if n.is_multiple_of(2) { Order::Ascending } else { Order::Descending };
        client.transcript(replica, &key, order).await;
    }
}

/// Reads recent conversations one after another, so that Redis holds hot copies that can become stale.
async fn read(reader: TestReader, record: Rc<RefCell<LoadRecord>>) {
    for n in 0.. {
        sleep(READ_INTERVAL).await;
        let key = record.borrow().recent(n, |_| true);
        let Some(key) = key else { continue };
        // Both stores may be unavailable: then the read fails, which is correct.
        let Ok(Some(transcript)) = reader.try_transcript(&key).await else { continue };
        let order: Vec<_> = transcript.messages.iter().map(|it| (it.created_at, &it.id)).collect();
        if !order.is_sorted_by(|a, b| a < b) {
            record
                .borrow_mut()
                .misread
                .push(format!("{key} from {:?}: {order:?}", transcript.source));
        }
    }
}

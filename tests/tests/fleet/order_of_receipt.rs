//! Messages without a `timestamp` in their body read in the order in which one consumer received them.
//!
//! Their ids are random, so a wrong time shows as swapped neighbours.

use broker::Publication;
use domain::ids::ConversationKey;
use domain::message::Message;
use serde_json::{Value, json};
use system_tests::{SAVER, Scenario, key_of};
use uuid::Uuid;

const CONVERSATIONS: usize = 25;
const MESSAGES: usize = 20_000;
/// How many messages of one conversation follow each other.
const RUN: usize = 40;
/// How many are published before the AMQP timestamp of the next ones is determined.
const CHUNK: usize = 500;

#[tokio::test]
async fn messages_without_a_timestamp_read_in_the_order_of_receipt() {
    let sequence = Sequence::new("no-timestamp").await;
    let saver = sequence.scenario.start(SAVER).await;
    sequence.publish(|_| None).await;
    sequence.reads_in_the_published_order().await;
    sequence.scenario.finish([saver]).await;
}

#[tokio::test]
async fn messages_with_an_amqp_timestamp_read_in_the_order_of_receipt() {
    let sequence = Sequence::new("amqp-timestamp").await;
    let saver = sequence.scenario.start(SAVER).await;
    let published = sequence.publish(|_| Some(seconds_since_1970())).await;
    for message in sequence.reads_in_the_published_order().await {
        let second = message.created_at.micros() / 1_000_000;
        let sent = published[number_of(&message)].expect("an AMQP timestamp");
        assert_eq!(second, i64::try_from(sent).unwrap(), "within the second of its sender");
    }
    sequence.scenario.finish([saver]).await;
}

#[tokio::test]
async fn a_backlog_with_amqp_timestamps_reads_in_the_order_of_receipt() {
    let sequence = Sequence::new("backlog").await;
    // 8 000 messages in each second, ten minutes ago.
    let first = seconds_since_1970() - 600;
    sequence.publish(|number| Some(first + number as u64 / 8_000)).await;
    let saver = sequence.scenario.start(SAVER).await;
    sequence.reads_in_the_published_order().await;
    sequence.scenario.finish([saver]).await;
}

#[tokio::test]
async fn an_amqp_timestamp_of_0_is_no_timestamp() {
    let sequence = Sequence::new("timestamp-0").await;
    let saver = sequence.scenario.start(SAVER).await;
    let began = seconds_since_1970();
    sequence.publish(|_| Some(0)).await;
    for message in sequence.reads_in_the_published_order().await {
        assert_eq!(message.created_at, message.received_at);
        assert!(message.created_at.micros() / 1_000_000 >= i64::try_from(began).unwrap());
    }
    sequence.scenario.finish([saver]).await;
}

/// Messages of several conversations, published in turn through one channel.
struct Sequence {
    scenario: Scenario,
    tenant: &'static str,
}

impl Sequence {
    async fn new(tenant: &'static str) -> Self {
        Self { scenario: Scenario::new().await, tenant }
    }

    fn body(&self, number: usize) -> Value {
        let session = format!("s{}", number / RUN % CONVERSATIONS);
        json!({
            "action_type": "conversation.save_message", "tenant_id": self.tenant, "session_id": session,
            "role": "user", "content": number.to_string(),
        })
    }

    /// Publishes all messages. `timestamp` gives the AMQP timestamp of the next messages, by the number of the
    /// first of them. Returns the timestamp of each.
    async fn publish(&self, timestamp: impl Fn(usize) -> Option<u64>) -> Vec<Option<u64>> {
        let agent = self.scenario.agent();
        let mut timestamps = Vec::with_capacity(MESSAGES);
        for first in (0..MESSAGES).step_by(CHUNK) {
            let timestamp = timestamp(first);
            let publication = |number: usize| {
                let body = self.body(number).to_string().into_bytes();
                let mut publication = Publication::action("conversation.save_message", body);
                publication.message_id = Uuid::new_v4().to_string();
                publication.timestamp = timestamp;
                publication
            };
            agent.send((first..first + CHUNK).map(publication).collect()).await;
            timestamps.extend([timestamp; CHUNK]);
        }
        timestamps
    }

    /// Waits until all messages are saved, and checks that each conversation reads in the order in which it was
    /// published. Returns all messages.
    async fn reads_in_the_published_order(&self) -> Vec<Message> {
        let saved = format!("SELECT count(*) FROM messages WHERE tenant_id = '{}'", self.tenant);
        self.scenario.until_sql(&saved, &MESSAGES.to_string()).await;
        let reader = self.scenario.reader();
        let (mut all, mut neighbours, mut swapped) = (Vec::with_capacity(MESSAGES), 0, 0);
        for conversation in 0..CONVERSATIONS {
            let key: ConversationKey = key_of(&self.body(conversation * RUN));
            let messages = reader.both(&key).await;
            neighbours += messages.len() - 1;
            let is_swapped = |pair: &&[Message]| number_of(&pair[0]) > number_of(&pair[1]);
            swapped += messages.windows(2).filter(is_swapped).count();
            all.extend(messages);
        }
        assert_eq!(all.len(), MESSAGES);
        assert_eq!(swapped, 0, "swapped of {neighbours} neighbours");
        all
    }
}

/// The number of a message in the order in which the messages were published.
fn number_of(message: &Message) -> usize {
    message.content.text().parse().unwrap_or(usize::MAX)
}

fn seconds_since_1970() -> u64 {
    service::clock::system().now().micros().unsigned_abs() / 1_000_000
}

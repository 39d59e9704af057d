//! Which direct reply-to addresses RabbitMQ can deliver to.
//!
//! A passive declaration of an address asks for its requester. RabbitMQ's documentation of direct reply-to
//! recommends it for expensive requests. Here it is asked on a connection of its own: if RabbitMQ closes that one
//! for an address that it cannot decode, no reply is lost, and the other addresses are asked for again.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use futures_util::future::join_all;
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use tokio::time::Instant;

use crate::connection::{Connection, Endpoints, Error, request_within};

/// How the addresses of direct reply-to begin. RabbitMQ appends the encoded channel of the requester.
const DIRECT_REPLY_TO: &str = "amq.rabbitmq.reply-to.";

/// How many addresses are checked at a time, each on its own channel.
const TOGETHER: usize = 32;

/// How long RabbitMQ may take for one check. It asks the channel of the requester, which may be busy.
const CHECK_LIMIT: Duration = Duration::from_secs(1);

/// How long an address is not checked again. Its node may die in this time, and RabbitMQ cannot decode it then.
const VALID_FOR: Duration = Duration::from_secs(1);

/// Checks addresses and remembers the result for a short time.
pub(super) struct Addresses {
    endpoints: Endpoints,
    connection: Option<Connection>,
    channels: Vec<lapin::Channel>,
    /// The reachable ones, and when they were checked.
    reachable: HashMap<String, Instant>,
}

impl Addresses {
    pub(super) fn new(endpoints: Endpoints) -> Self {
        Self { endpoints, connection: None, channels: Vec::new(), reachable: HashMap::new() }
    }

    /// Those of the addresses to which nothing can be sent.
    pub(super) async fn unreachable<'a>(
        &mut self,
        addresses: impl Iterator<Item = &'a str>,
    ) -> HashSet<&'a str> {
        self.reachable.retain(|_, checked| checked.elapsed() < VALID_FOR);
        let direct = addresses.filter(|address| address.starts_with(DIRECT_REPLY_TO));
        let new: HashSet<&str> = direct.filter(|it| !self.reachable.contains_key(*it)).collect();
        let new: Vec<&str> = new.into_iter().collect();
        let mut unreachable = HashSet::new();
        for group in new.chunks(TOGETHER) {
            let mut answers = self.check(group).await.unwrap_or_default();
            if answers.is_empty() {
                // RabbitMQ closed the connection for one of them.
                for address in group {
                    let alone = self.check(&[address]).await;
                    answers.push(alone.is_ok_and(|answers| answers == [true]));
                }
            }
            for (address, is_reachable) in group.iter().zip(answers) {
                if is_reachable {
                    self.reachable.insert((*address).to_owned(), Instant::now());
                } else {
                    unreachable.insert(*address);
                }
            }
        }
        unreachable
    }

    /// Whether each of the addresses has a requester. The error: the connection failed or closed.
    async fn check(&mut self, addresses: &[&str]) -> Result<Vec<bool>, Error> {
        let connection = match self.connection.take().filter(Connection::is_open) {
            Some(open) => open,
            None => self.endpoints.connect_for_requests("check reply addresses").await?,
        };
        self.channels.retain(|channel| channel.status().connected());
        while self.channels.len() < addresses.len() {
            self.channels.push(connection.channel().await?);
        }
        let asked = addresses.iter().zip(&self.channels).map(|(it, channel)| ask(it, channel));
        let answers = join_all(asked).await.into_iter().collect();
        self.connection = Some(connection);
        answers
    }
}

async fn ask(address: &str, channel: &lapin::Channel) -> Result<bool, Error> {
    let options = QueueDeclareOptions { passive: true, ..Default::default() };
    let declare = channel.queue_declare(address.into(), options, FieldTable::default());
    match request_within(CHECK_LIMIT, "check a reply address", declare).await {
        // A busy requester, and one that this user must not ask for, may be there.
        Ok(_) | Err(Error::TimedOut { .. }) => Ok(true),
        Err(error) => error.reply().map(|(code, _)| code != 404).ok_or(error),
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, StreamExt};
    use lapin::BasicProperties;
    use lapin::options::{BasicConsumeOptions, BasicGetOptions};

    use super::*;
    use crate::connection::Link;

    /// A requester, and its address as RabbitMQ encodes it.
    async fn requester(endpoints: &Endpoints) -> (Link, lapin::Consumer, String) {
        let link = Link::on(endpoints.connect("requester").await.unwrap()).await.unwrap();
        let channel = &link.channel;
        let table = FieldTable::default;
        let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
        let replies =
            channel.basic_consume("amq.rabbitmq.reply-to".into(), "".into(), options, table());
        let replies = replies.await.unwrap();
        let queue = channel.queue_declare("".into(), Default::default(), table()).await.unwrap();
        let queue = queue.name().to_string();
        let asking = BasicProperties::default().with_reply_to("amq.rabbitmq.reply-to".into());
        let publish = channel.basic_publish(
            "".into(),
            queue.as_str().into(),
            Default::default(),
            b"",
            asking,
        );
        publish.await.unwrap();
        let get = channel.basic_get(queue.as_str().into(), BasicGetOptions { no_ack: true });
        let asked = get.await.unwrap().unwrap().delivery;
        let address = asked.properties.reply_to().as_ref().unwrap().to_string();
        (link, replies, address)
    }

    #[tokio::test]
    async fn an_address_is_unreachable_if_its_requester_is_gone_or_rabbitmq_cannot_decode_it() {
        let env = testkit::TestEnv::new().await;
        let endpoints = Endpoints::parse(&env.amqp_url, "test").unwrap();
        let (_link, mut replies, here) = requester(&endpoints).await;
        let (left, _, gone) = requester(&endpoints).await;
        left.connection.close().await;
        // Many, so that several groups have some that close the connection.
        let garbage: Vec<String> = (0..100).map(|n| format!("{DIRECT_REPLY_TO}x{n}.y")).collect();
        let mut all: Vec<&str> = garbage.iter().map(String::as_str).collect();
        all.extend([&*here, &*gone, "a reply queue"]);
        let mut addresses = Addresses::new(endpoints);
        let unreachable = addresses.unreachable(all.iter().copied()).await;
        let rest: Vec<&str> = all.into_iter().filter(|it| !unreachable.contains(it)).collect();
        assert_eq!(rest, [&*here, "a reply queue"]);
        assert!(addresses.reachable.contains_key(&*here));
        assert!(replies.next().now_or_never().is_none(), "a check sends nothing");
    }
}

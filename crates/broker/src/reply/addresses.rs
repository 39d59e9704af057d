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

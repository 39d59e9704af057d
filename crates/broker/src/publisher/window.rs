//! One window of publishes, and the result of each.
//!
//! RabbitMQ returns an unroutable mandatory message and then confirms it. lapin attaches a returned message
//! to the confirm that completes next, which may belong to another publish. But a return always precedes
//! the confirm of its own publish. So when all confirms of a window are received, all its returns are
//! received too, and their message ids identify the publishes.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use lapin::options::BasicPublishOptions;
use lapin::{Channel, Confirmation};

use super::error::PublishError;
use crate::publication::{Publication, TooLong, short};

/// A message to send.
#[derive(Debug, Clone)]
pub(crate) struct Outgoing {
    pub(crate) publication: Arc<Publication>,
    /// It is not sent at or after this time.
    pub(crate) not_after: Option<Instant>,
}

/// Publishes that were sent together, in their order.
pub(crate) struct Window<'a> {
    messages: &'a [Outgoing],
    confirms: Vec<ConfirmResult>,
}

pub(crate) struct Settled {
    /// One for each publish, in their order.
    pub(crate) results: Vec<Result<(), PublishError>>,
    /// No confirm or return is pending, so the channel may be used for the next window.
    pub(crate) complete: bool,
}

#[derive(Debug, Default)]
pub(crate) struct WindowSize {
    messages: usize,
    bytes: usize,
}

/// The most messages of a window. A window of 1024 reaches 90 % of the throughput of one channel (23 000 to
/// 37 000 messages per second on two shared cores).
const WINDOW_MESSAGES: usize = 1024;
/// The most bytes of bodies in a window, about: lapin keeps a copy of each body until it is sent.
const WINDOW_BYTES: usize = 16 << 20;

#[derive(Debug, Clone, PartialEq, Eq)]
enum ConfirmResult {
    Pending,
    /// A property is too long. It was not sent.
    TooLong(TooLong),
    /// Its deadline had passed. It was not sent.
    TooLate,
    /// The channel failed before the confirm.
    Failed(String),
    /// Confirmed (`basic.ack`), with the return that lapin attached, if any. It may be of another publish.
    Ack(Option<Returned>),
    /// Refused (`basic.nack`), with the return that lapin attached, if any.
    Nack(Option<Returned>),
}

/// A returned message: its message id, if it has one.
type Returned = Option<String>;

impl<'a> Window<'a> {
    pub(crate) fn new(messages: &'a [Outgoing]) -> Self {
        Self { messages, confirms: vec![ConfirmResult::Pending; messages.len()] }
    }

    /// Sends all of them and waits for their confirms.
    pub(crate) async fn publish(mut self, channel: &Channel, limit: Duration) -> Settled {
        // At its first poll each future queues its frames. The first polls are in this order, so the
        // messages are sent in this order, all of them before a confirm is awaited.
        let mut sending: FuturesUnordered<_> = self
            .messages
            .iter()
            .enumerate()
            .map(|(n, message)| async move { (n, send(channel, message).await) })
            .collect();
        let all = async {
            while let Some((n, result)) = sending.next().await {
                self.confirms[n] = result;
            }
        };
        // Publishes without a confirm within the limit stay pending.
        drop(tokio::time::timeout(limit, all).await);
        drop(sending);
        self.settle()
    }

    fn settle(self) -> Settled {
        let returned: Vec<&Returned> =
            self.confirms.iter().filter_map(ConfirmResult::returned).collect();
        let returned_ids: HashSet<&str> = returned.iter().filter_map(|id| id.as_deref()).collect();
        let own_ids: HashSet<&str> =
            self.messages.iter().map(|it| it.publication.message_id.as_str()).collect();
        let complete = self.confirms.iter().all(ConfirmResult::is_final);
        let all_matched =
            returned.iter().all(|id| id.as_deref().is_some_and(|id| own_ids.contains(id)));
        // A return without a known id may belong to any publish. Before the last confirm is received, a
        // further return may be pending in lapin.
        let certain = returned.is_empty() || (complete && all_matched);

        let results = self.messages.iter().zip(&self.confirms).map(|(message, confirm)| {
            let publication = &message.publication;
            // Two publishes with the same id in one window both count as returned.
            if returned_ids.contains(publication.message_id.as_str()) {
                let (exchange, routing_key) =
                    (publication.exchange.clone(), publication.routing_key.clone());
                return Err(PublishError::Unroutable { exchange, routing_key });
            }
            match confirm {
                ConfirmResult::Ack(_) if !certain => Err(PublishError::Unknown(
                    "a returned message could not be matched to its publish".to_owned(),
                )),
                ConfirmResult::Ack(_) => Ok(()),
                ConfirmResult::Nack(_) => Err(PublishError::Refused),
                ConfirmResult::TooLate => Err(PublishError::TooLate),
                ConfirmResult::TooLong(error) => Err(PublishError::TooLong(error.clone())),
                ConfirmResult::Failed(error) => Err(PublishError::Unknown(error.clone())),
                ConfirmResult::Pending => {
                    Err(PublishError::Unknown("no confirm within the timeout".to_owned()))
                }
            }
        });
        Settled { results: results.collect(), complete }
    }
}

impl WindowSize {
    pub(super) fn add(&mut self, publication: &Publication) {
        self.messages += 1;
        self.bytes += publication.body.len();
    }

    pub(super) fn is_full(&self) -> bool {
        self.messages >= WINDOW_MESSAGES || self.bytes >= WINDOW_BYTES
    }
}

impl ConfirmResult {
    fn returned(&self) -> Option<&Returned> {
        match self {
            Self::Ack(returned) | Self::Nack(returned) => returned.as_ref(),
            _ => None,
        }
    }

    /// Whether no confirm or return of it can follow.
    fn is_final(&self) -> bool {
        matches!(self, Self::Ack(_) | Self::Nack(_) | Self::TooLong(_) | Self::TooLate)
    }
}

async fn send(channel: &Channel, message: &Outgoing) -> ConfirmResult {
    let Outgoing { publication, not_after } = message;
    let encoded = || {
        let exchange = short("exchange", &publication.exchange)?;
        Ok((exchange, short("routing key", &publication.routing_key)?, publication.properties()?))
    };
    let (exchange, routing_key, properties) = match encoded() {
        Ok(encoded) => encoded,
        Err(error) => return ConfirmResult::TooLong(error),
    };
    let options = BasicPublishOptions { mandatory: true, immediate: false };
    // As late as possible. What follows copies the message into the client library, whose task writes it.
    if not_after.is_some_and(|not_after| Instant::now() >= not_after) {
        return ConfirmResult::TooLate;
    }
    let sent = channel
        .basic_publish(exchange, routing_key, options, &publication.payload(), properties)
        .await;
    let confirmation = match sent {
        Ok(confirm) => confirm.await,
        Err(error) => Err(error),
    };
    let id = |returned: lapin::message::BasicReturnMessage| {
        returned.delivery.properties.message_id().as_ref().map(ToString::to_string)
    };
    match confirmation {
        Ok(Confirmation::Ack(returned)) => ConfirmResult::Ack(returned.map(id)),
        Ok(Confirmation::Nack(returned)) => ConfirmResult::Nack(returned.map(id)),
        Ok(Confirmation::NotRequested) => {
            ConfirmResult::Failed("the channel is not in confirm mode".to_owned())
        }
        Err(error) => ConfirmResult::Failed(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(ids: &[&str]) -> Vec<Outgoing> {
        let message = |id: &&str| {
            let mut publication = Publication::to_queue("queue", Vec::new());
            publication.message_id = (*id).to_owned();
            Outgoing { publication: Arc::new(publication), not_after: None }
        };
        ids.iter().map(message).collect()
    }

    fn settled(ids: &[&str], confirms: Vec<ConfirmResult>) -> Vec<&'static str> {
        let messages = messages(ids);
        let results = Window { messages: &messages, confirms }.settle().results;
        let name = |result: &Result<(), PublishError>| match result {
            Ok(()) => "ok",
            Err(PublishError::Unroutable { .. }) => "unroutable",
            Err(PublishError::Refused) => "refused",
            Err(_) => "unknown",
        };
        results.iter().map(name).collect()
    }

    fn ack_with(id: &str) -> ConfirmResult {
        ConfirmResult::Ack(Some(Some(id.to_owned())))
    }

    #[test]
    fn a_return_is_matched_to_its_publish_by_message_id() {
        let confirms = vec![ack_with("b"), ConfirmResult::Ack(None), ConfirmResult::Ack(None)];
        assert_eq!(settled(&["a", "b", "c"], confirms), ["ok", "unroutable", "ok"]);
    }

    #[test]
    fn with_an_unmatched_return_every_confirm_is_unknown() {
        let confirms = vec![ack_with("unknown"), ConfirmResult::Ack(None)];
        assert_eq!(settled(&["a", "b"], confirms), ["unknown", "unknown"]);
        let confirms = vec![ConfirmResult::Ack(Some(None)), ConfirmResult::Nack(None)];
        assert_eq!(settled(&["a", "b"], confirms), ["unknown", "refused"]);
    }

    #[test]
    fn with_a_return_and_a_missing_confirm_the_other_confirms_are_unknown() {
        let confirms = vec![ack_with("b"), ConfirmResult::Ack(None), ConfirmResult::Pending];
        assert_eq!(settled(&["a", "b", "c"], confirms), ["unknown", "unroutable", "unknown"]);
    }

    #[test]
    fn without_a_return_a_missing_confirm_affects_no_other_publish() {
        let confirms = vec![
            ConfirmResult::Ack(None),
            ConfirmResult::Pending,
            ConfirmResult::Failed("the channel closed".to_owned()),
        ];
        assert_eq!(settled(&["a", "b", "c"], confirms), ["ok", "unknown", "unknown"]);
    }

    #[test]
    fn a_window_with_a_missing_confirm_is_incomplete() {
        let messages = messages(&["a", "b"]);
        let confirms = vec![ack_with("b"), ConfirmResult::Pending];
        let settled = Window { messages: &messages, confirms }.settle();
        assert!(!settled.complete);
        assert!(settled.results.iter().all(Result::is_err));
    }

    #[test]
    fn two_publishes_with_one_id_are_both_unroutable() {
        let confirms = vec![ack_with("a"), ConfirmResult::Ack(None)];
        assert_eq!(settled(&["a", "a"], confirms), ["unroutable", "unroutable"]);
    }
}

//! One window of publishes, and who of them failed.
//!
//! RabbitMQ confirms a mandatory message that no queue took, after returning it; and lapin hands a
//! returned message to whichever confirm completes next, which may be another publish's. What is
//! reliable: a return comes before the confirm of its own publish. So when every confirm of a window
//! is in, every return of it has been handed to someone, and the message ids tell whose they were.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use lapin::options::BasicPublishOptions;
use lapin::{Channel, Confirmation};

use super::PublishError;
use crate::publication::{Publication, TooLong, short};

/// Publishes that were sent together, in their order.
pub(super) struct Window<'a> {
    publications: &'a [Arc<Publication>],
    answers: Vec<Answer>,
}

/// What is known when a window has ended.
pub(super) struct Settled {
    /// One for each publish, in their order.
    pub(super) results: Vec<Result<(), PublishError>>,
    /// The broker can say nothing more about any of them, so the channel may serve the next window.
    pub(super) complete: bool,
}

/// How much of a window is taken.
#[derive(Debug, Default)]
pub(super) struct Room {
    messages: usize,
    bytes: usize,
}

/// Publishes that travel together at most. A window of 1024 reaches 90 % of what one channel can do
/// (23 000 to 37 000 messages per second on two shared cores).
const WINDOW_MESSAGES: usize = 1024;
/// Bytes of bodies that travel together, about: lapin keeps a copy of each until it is sent.
const WINDOW_BYTES: usize = 16 << 20;

/// What came back for one publish.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer {
    /// Nothing, so far.
    Pending,
    /// It could not be sent.
    TooLong(TooLong),
    /// The channel failed first.
    Failed(String),
    /// It was confirmed, and some publish's return came along: the message id in it, if any.
    Ack(Option<Returned>),
    /// It was refused; the same.
    Nack(Option<Returned>),
}

/// A message that came back, by its id.
type Returned = Option<String>;

impl<'a> Window<'a> {
    pub(super) fn new(publications: &'a [Arc<Publication>]) -> Self {
        Self { publications, answers: vec![Answer::Pending; publications.len()] }
    }

    /// Sends all of them and waits for their confirms.
    pub(super) async fn publish(mut self, channel: &Channel, limit: Duration) -> Settled {
        // Each future is polled for the first time in this order, and then its frames are queued:
        // so they leave in this order, all of them before any confirm is awaited.
        let mut answers: FuturesUnordered<_> = self
            .publications
            .iter()
            .enumerate()
            .map(|(n, publication)| async move { (n, send(channel, publication).await) })
            .collect();
        let all = async {
            while let Some((n, answer)) = answers.next().await {
                self.answers[n] = answer;
            }
        };
        // What is unanswered when the time is up stays pending.
        drop(tokio::time::timeout(limit, all).await);
        drop(answers);
        self.settle()
    }

    fn settle(self) -> Settled {
        let returned: Vec<&Returned> = self.answers.iter().filter_map(Answer::returned).collect();
        let returned_ids: HashSet<&str> = returned.iter().filter_map(|id| id.as_deref()).collect();
        let own_ids: HashSet<&str> =
            self.publications.iter().map(|publication| publication.message_id.as_str()).collect();
        let complete = self.answers.iter().all(Answer::is_final);
        let all_matched =
            returned.iter().all(|id| id.as_deref().is_some_and(|id| own_ids.contains(id)));
        // A return whose owner is not known may be anybody's; and before the last confirm is in, a
        // return may still be waiting to be handed over.
        let certain = returned.is_empty() || (complete && all_matched);

        let results = self.publications.iter().zip(&self.answers).map(|(publication, answer)| {
            // Two publishes with one id in one window: both count as returned.
            if returned_ids.contains(publication.message_id.as_str()) {
                let (exchange, routing_key) =
                    (publication.exchange.clone(), publication.routing_key.clone());
                return Err(PublishError::Unroutable { exchange, routing_key });
            }
            match answer {
                Answer::Ack(_) if !certain => {
                    Err(PublishError::Unknown("a message was returned without its id".to_owned()))
                }
                Answer::Ack(_) => Ok(()),
                Answer::Nack(_) => Err(PublishError::Refused),
                Answer::TooLong(error) => Err(PublishError::TooLong(error.clone())),
                Answer::Failed(error) => Err(PublishError::Unknown(error.clone())),
                Answer::Pending => Err(PublishError::Unknown("no confirm in time".to_owned())),
            }
        });
        Settled { results: results.collect(), complete }
    }
}

impl Room {
    pub(super) fn take(&mut self, publication: &Publication) {
        self.messages += 1;
        self.bytes += publication.body.len();
    }

    pub(super) fn is_full(&self) -> bool {
        self.messages >= WINDOW_MESSAGES || self.bytes >= WINDOW_BYTES
    }
}

impl Answer {
    fn returned(&self) -> Option<&Returned> {
        match self {
            Self::Ack(returned) | Self::Nack(returned) => returned.as_ref(),
            _ => None,
        }
    }

    /// Whether the broker can say nothing more about it.
    fn is_final(&self) -> bool {
        matches!(self, Self::Ack(_) | Self::Nack(_) | Self::TooLong(_))
    }
}

async fn send(channel: &Channel, publication: &Publication) -> Answer {
    let encoded = || {
        let exchange = short("exchange", &publication.exchange)?;
        Ok((exchange, short("routing key", &publication.routing_key)?, publication.properties()?))
    };
    let (exchange, routing_key, properties) = match encoded() {
        Ok(encoded) => encoded,
        Err(error) => return Answer::TooLong(error),
    };
    let options = BasicPublishOptions { mandatory: true, immediate: false };
    let sent =
        channel.basic_publish(exchange, routing_key, options, &publication.body, properties).await;
    let confirmation = match sent {
        Ok(confirm) => confirm.await,
        Err(error) => Err(error),
    };
    let id = |returned: lapin::message::BasicReturnMessage| {
        returned.delivery.properties.message_id().as_ref().map(ToString::to_string)
    };
    match confirmation {
        Ok(Confirmation::Ack(returned)) => Answer::Ack(returned.map(id)),
        Ok(Confirmation::Nack(returned)) => Answer::Nack(returned.map(id)),
        Ok(Confirmation::NotRequested) => Answer::Failed("the channel does not confirm".to_owned()),
        Err(error) => Answer::Failed(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publications(ids: &[&str]) -> Vec<Arc<Publication>> {
        let publication = |id: &&str| {
            let mut publication = Publication::to_queue("queue", Vec::new());
            publication.message_id = (*id).to_owned();
            Arc::new(publication)
        };
        ids.iter().map(publication).collect()
    }

    fn settled(ids: &[&str], answers: Vec<Answer>) -> Vec<&'static str> {
        let publications = publications(ids);
        let results = Window { publications: &publications, answers }.settle().results;
        let name = |result: &Result<(), PublishError>| match result {
            Ok(()) => "ok",
            Err(PublishError::Unroutable { .. }) => "unroutable",
            Err(PublishError::Refused) => "refused",
            Err(_) => "unknown",
        };
        results.iter().map(name).collect()
    }

    fn ack_with(id: &str) -> Answer {
        Answer::Ack(Some(Some(id.to_owned())))
    }

    #[test]
    fn a_return_belongs_to_the_publish_whose_id_it_bears() {
        let answers = vec![ack_with("b"), Answer::Ack(None), Answer::Ack(None)];
        assert_eq!(settled(&["a", "b", "c"], answers), ["ok", "unroutable", "ok"]);
    }

    #[test]
    fn a_return_that_nobody_owns_puts_every_confirm_in_doubt() {
        let answers = vec![ack_with("somebody else"), Answer::Ack(None)];
        assert_eq!(settled(&["a", "b"], answers), ["unknown", "unknown"]);
        let answers = vec![Answer::Ack(Some(None)), Answer::Nack(None)];
        assert_eq!(settled(&["a", "b"], answers), ["unknown", "refused"]);
    }

    #[test]
    fn while_a_confirm_is_missing_a_return_may_still_be_on_its_way() {
        let answers = vec![ack_with("b"), Answer::Ack(None), Answer::Pending];
        assert_eq!(settled(&["a", "b", "c"], answers), ["unknown", "unroutable", "unknown"]);
    }

    #[test]
    fn without_any_return_a_missing_confirm_harms_nobody_else() {
        let answers =
            vec![Answer::Ack(None), Answer::Pending, Answer::Failed("the channel died".to_owned())];
        assert_eq!(settled(&["a", "b", "c"], answers), ["ok", "unknown", "unknown"]);
    }

    #[test]
    fn a_return_without_its_confirm_leaves_the_channel_unfit_for_another_window() {
        let publications = publications(&["a", "b"]);
        let answers = vec![ack_with("b"), Answer::Pending];
        let settled = Window { publications: &publications, answers }.settle();
        assert!(!settled.complete);
        assert!(settled.results.iter().all(Result::is_err));
    }

    #[test]
    fn two_publishes_with_one_id_share_their_return() {
        let answers = vec![ack_with("a"), Answer::Ack(None)];
        assert_eq!(settled(&["a", "a"], answers), ["unroutable", "unroutable"]);
    }
}

//! Publishing an action and waiting for the reply to it, as an agent does: by RabbitMQ's direct reply-to.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use lapin::options::{BasicConsumeOptions, ConfirmSelectOptions};
use lapin::types::FieldTable;

use crate::connection::{Endpoints, Error, Link, request};
use crate::publication::Publication;
use crate::publisher::{Outgoing, PUBLISH_TIMEOUT, PublishError, Window};

/// The queue name by which RabbitMQ delivers replies to the connection that consumes it
/// (<https://www.rabbitmq.com/docs/direct-reply-to>).
const DIRECT_REPLY_TO: &str = "amq.rabbitmq.reply-to";

/// Why a request has no reply.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// It is not certain that a queue has the action.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// The action is published. The connection was lost before the reply.
    #[error("the action is published; the connection to RabbitMQ was lost before the reply: {0}")]
    ReplyLost(String),
}

/// Publishes actions, one after the other, and waits for the reply to each.
pub struct Requester {
    link: Link,
    replies: lapin::Consumer,
}

impl Requester {
    /// Connects, and consumes replies.
    ///
    /// # Errors
    /// RabbitMQ is unavailable.
    pub async fn open(endpoints: &Endpoints) -> Result<Self, Error> {
        let link = Link::on(endpoints.connect("request").await?).await?;
        let confirm = link.channel.confirm_select(ConfirmSelectOptions::default());
        request("enable publisher confirms", confirm).await?;
        let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
        let consume = link.channel.basic_consume(
            DIRECT_REPLY_TO.into(),
            "".into(),
            options,
            FieldTable::default(),
        );
        let replies = request("consume replies", consume).await?;
        Ok(Self { link, replies })
    }

    /// Publishes an action and waits for its confirm, then for the reply to it: its body, or `None` if there is none within
    /// the limit.
    ///
    /// # Errors
    /// It is not certain that a queue has the action, or the connection was lost before the reply.
    pub async fn request(
        &mut self,
        mut action: Publication,
        limit: Duration,
    ) -> Result<Option<Vec<u8>>, RequestError> {
        action.reply_to = Some(DIRECT_REPLY_TO.to_owned());
        let correlation_id = action.message_id.clone();
        action.correlation_id = Some(correlation_id.clone());
        let messages = [Outgoing { publication: Arc::new(action), not_after: None }];
        let settled = Window::new(&messages).publish(&self.link.channel, PUBLISH_TIMEOUT).await;
        settled.results.into_iter().collect::<Result<(), PublishError>>()?;
        let deadline = Instant::now() + limit;
        loop {
            let next = tokio::time::timeout_at(deadline.into(), self.replies.next()).await;
            let reply = match next {
                Err(_) => return Ok(None),
                Ok(None) => {
                    let why = "RabbitMQ cancelled the consumer".to_owned();
                    return Err(RequestError::ReplyLost(why));
                }
                Ok(Some(Err(error))) => return Err(RequestError::ReplyLost(error.to_string())),
                Ok(Some(Ok(reply))) => reply,
            };
            let of = reply.properties.correlation_id().as_ref().map(ToString::to_string);
            // Another one is the reply to an earlier request, which came too late.
            if of.as_deref() == Some(&*correlation_id) {
                return Ok(Some(reply.data));
            }
        }
    }
}

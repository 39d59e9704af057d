//! A connection to one server process. It never reconnects: when it breaks, it is over.

use std::sync::Arc;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, ConnectionInfo, Pipeline, RedisError, Value};

use crate::error::Error;
use crate::settings::Settings;

/// A connection to one server process. Clones share it.
#[derive(Clone)]
pub(crate) struct Node {
    redis: MultiplexedConnection,
    /// How the server is called in errors.
    place: Arc<str>,
}

impl Node {
    /// Connects, TLS and authentication included.
    pub(crate) async fn connect(
        info: &ConnectionInfo,
        place: &str,
        settings: &Settings,
    ) -> Result<Self, Error> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(settings.connect_timeout))
            .set_response_timeout(Some(settings.response_timeout));
        let connect = async {
            let client = Client::open(info.clone())?;
            client.get_multiplexed_async_connection_with_config(&config).await
        };
        let redis = connect.await.map_err(|error| Error::from(error).at(place))?;
        Ok(Self { redis, place: place.into() })
    }

    /// How the server is called in errors.
    pub(crate) fn place(&self) -> &str {
        &self.place
    }

    /// Sends a pipeline in one write and returns one reply for each command. A transaction has one
    /// reply for all.
    pub(crate) async fn run(&self, pipeline: &Pipeline) -> Result<Vec<Value>, RedisError> {
        let (skipped, awaited) =
            if pipeline.is_transaction() { (pipeline.len() + 1, 1) } else { (0, pipeline.len()) };
        self.redis.clone().send_packed_commands(pipeline, skipped, awaited).await
    }

    /// Sends one command; an error that the server answers is an error here.
    pub(crate) async fn call(&self, command: &redis::Cmd) -> Result<Value, RedisError> {
        let reply = self.redis.clone().send_packed_command(command).await;
        reply.and_then(Value::extract_error)
    }

    /// [`Node::run`] for questions, each of which must be answered.
    pub(crate) async fn ask<const N: usize>(
        &self,
        questions: [&[&str]; N],
    ) -> Result<[Value; N], Error> {
        let mut pipeline = redis::pipe();
        for words in questions {
            let mut command = redis::Cmd::new();
            command.arg(words);
            pipeline.add_command(command);
        }
        let asked = async {
            let replies = self.run(&pipeline).await?;
            replies.into_iter().map(Value::extract_error).collect::<Result<Vec<_>, _>>()
        };
        let replies = asked.await.map_err(|error| Error::from(error).at(&self.place))?;
        replies.try_into().map_err(|_| Error::NotServing("it left questions unanswered".into()))
    }
}

//! A connection to one server process. It never reconnects.

use std::sync::Arc;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, ConnectionInfo, Pipeline, RedisError, Value};

use crate::error::Error;
use crate::settings::Settings;

#[derive(Clone)]
pub(crate) struct Node {
    redis: MultiplexedConnection,
    name: Arc<str>,
}

impl Node {
    /// Connects, TLS and authentication included.
    pub(crate) async fn connect(
        info: &ConnectionInfo,
        name: &str,
        settings: &Settings,
    ) -> Result<Self, Error> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(settings.connect_timeout))
            .set_response_timeout(Some(settings.response_timeout));
        let connect = async {
            let client = Client::open(info.clone())?;
            client.get_multiplexed_async_connection_with_config(&config).await
        };
        let redis = connect.await.map_err(|error| Error::from(error).at(name))?;
        Ok(Self { redis, name: name.into() })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Sends a pipeline in one write and returns one reply for each command. A transaction has one
    /// reply for all.
    pub(crate) async fn run(&self, pipeline: &Pipeline) -> Result<Vec<Value>, RedisError> {
        let (skipped, awaited) =
            if pipeline.is_transaction() { (pipeline.len() + 1, 1) } else { (0, pipeline.len()) };
        self.redis.clone().send_packed_commands(pipeline, skipped, awaited).await
    }

    /// Sends one command. An error reply is returned as an error.
    pub(crate) async fn call(&self, command: &redis::Cmd) -> Result<Value, RedisError> {
        let reply = self.redis.clone().send_packed_command(command).await;
        reply.and_then(Value::extract_error)
    }

    /// Sends commands in one write and returns their replies, if none of them is an error.
    pub(crate) async fn send<const N: usize>(
        &self,
        commands: [&[&str]; N],
    ) -> Result<[Value; N], Error> {
        let mut pipeline = redis::pipe();
        for arguments in commands {
            let mut command = redis::Cmd::new();
            command.arg(arguments);
            pipeline.add_command(command);
        }
        let replies = async {
            let replies = self.run(&pipeline).await?;
            replies.into_iter().map(Value::extract_error).collect::<Result<Vec<_>, _>>()
        };
        let replies = replies.await.map_err(|error| Error::from(error).at(&self.name))?;
        replies
            .try_into()
            .map_err(|_| Error::NotServing("it sent fewer replies than commands".into()))
    }
}

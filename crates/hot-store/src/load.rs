//! Loads a hot copy from PostgreSQL, after a reader has missed it.
//!
//! Between the read of the rows and the write of the marker, a saver may append, the key may be
//! evicted and another reader may load. So a load first empties the key and puts a *load token*
//! into it. Its rows and marker are accepted only while that token is there. Without the token, a
//! key that is evicted after a saver appended would be loaded again with a valid marker but without
//! that row.
//!
//! Many readers may miss one copy at once. One of them loads; the others get
//! [`Error::LoadUnderWay`] and read PostgreSQL only. If each load cancelled the one before, none
//! would finish.

use std::borrow::Borrow;
use std::sync::LazyLock;

use domain::ids::ConversationKey;
use domain::message::Message;
use redis::{ErrorKind, ServerErrorKind, Value};
use uuid::Uuid;

use crate::connection::Link;
use crate::error::Error;
use crate::keys;
use crate::marker::CompletenessMarker;
use crate::members::Members;
use crate::store::HotStore;

static BEGIN: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("begin_load.lua")));
static FINISH: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("finish_load.lua")));

/// The token of a load that has begun. Read the numbers and rows *after* [`HotStore::begin_load`],
/// in one snapshot.
#[derive(Debug)]
#[must_use = "a load that is not finished has emptied the copy for nothing"]
pub struct LoadToken {
    key: ConversationKey,
    member: Vec<u8>,
    /// The connection on which it was written: another connection may be another server.
    serial: u64,
}

/// The result of a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loaded {
    /// The rows and the marker are in the copy.
    Accepted,
    /// The load token is gone: the key was removed, the load took too long and another one began,
    /// or the connection changed. Nothing was written. This is no error: a later read loads again.
    Superseded,
}

struct Script {
    source: &'static str,
    hash: String,
}

impl HotStore {
    /// Empties a copy and puts a load token into it.
    ///
    /// # Errors
    /// [`Error::LoadUnderWay`] if another reader has begun a load and not finished it, for at most
    /// [`Settings::longest_load`](crate::Settings::longest_load).
    pub async fn begin_load(&self, key: &ConversationKey) -> Result<LoadToken, Error> {
        let connection = self.connections.get_for_writing().await?;
        let name = keys::messages(key);
        let mut command = BEGIN.on(&name);
        command.arg(Uuid::new_v4().as_bytes());
        command.arg(self.connections.settings().longest_load.as_millis().to_string());
        command.arg(self.expiry_seconds());
        match BEGIN.run(connection.of(&name), &command).await? {
            Value::BulkString(member) => {
                Ok(LoadToken { key: key.clone(), member, serial: connection.serial() })
            }
            _ => Err(Error::LoadUnderWay),
        }
    }

    /// Adds the rows and the marker if the load token is still there, and renews the copy's expiry.
    ///
    /// All rows are written by one script, during which Redis runs no other command (about 5 ms for
    /// 1 000 rows): the caller limits their number and size.
    ///
    /// # Errors
    /// Redis is unavailable or the reply timed out. Then it is unknown whether the rows were
    /// written; the copy is correct in both cases.
    pub async fn finish_load<M>(
        &self,
        load_token: LoadToken,
        marker: &CompletenessMarker,
        messages: &[M],
    ) -> Result<Loaded, Error>
    where
        M: Borrow<Message> + Sync,
    {
        let connection = self.connections.get_for_writing().await?;
        if connection.serial() != load_token.serial {
            return Ok(Loaded::Superseded);
        }
        let name = keys::messages(&load_token.key);
        let mut command = FINISH.on(&name);
        command.arg(load_token.member).arg(marker.encode()).arg(self.expiry_seconds());
        let mut members = Members::default();
        messages.iter().for_each(|message| members.push(message.borrow()));
        members.move_to(&mut command);
        match FINISH.run(connection.of(&name), &command).await? {
            Value::Int(1) => Ok(Loaded::Accepted),
            _ => Ok(Loaded::Superseded),
        }
    }
}

impl Script {
    fn new(source: &'static str) -> Self {
        Self { source, hash: redis::Script::new(source).get_hash().to_owned() }
    }

    fn on(&self, key: &str) -> redis::Cmd {
        let mut command = redis::cmd("EVALSHA");
        command.arg(&self.hash).arg(1).arg(key);
        command
    }

    /// Runs the command. If the server does not have the script, loads it first: servers lose
    /// scripts at a restart and at `SCRIPT FLUSH`.
    async fn run(&self, link: Link<'_>, command: &redis::Cmd) -> Result<Value, Error> {
        let reply = link.call(command).await;
        let unknown = ErrorKind::Server(ServerErrorKind::NoScript);
        if reply.as_ref().is_err_and(|error| error.kind() == unknown) {
            let mut load = redis::cmd("SCRIPT");
            load.arg("LOAD").arg(self.source);
            link.call(&load).await?;
            return Ok(link.call(command).await?);
        }
        Ok(reply?)
    }
}

//! Filling a hot copy from PostgreSQL, for a reader that missed it.
//!
//! Between reading the rows and writing the mark, a saver may append, the key may be evicted, another
//! reader may load. So a load first empties the key and leaves an *intent* in it, and its rows and
//! mark are accepted only while that intent is there. Without it, a key that vanishes after a saver
//! appended would come back with a valid mark and without that row.
//!
//! Many readers may miss one copy at once. One loads; the others are told so and read PostgreSQL
//! alone. If each took the place of the one before, none would ever finish.

use std::borrow::Borrow;
use std::sync::LazyLock;

use domain::ids::ConversationKey;
use domain::message::Message;
use redis::{ErrorKind, ServerErrorKind, Value};
use uuid::Uuid;

use crate::connection::Link;
use crate::error::Error;
use crate::marker::CompletenessMarker;
use crate::members::Members;
use crate::{HotStore, keys};

static BEGIN: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("begin_load.lua")));
static FINISH: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("finish_load.lua")));

/// A load that has begun. Read the numbers and rows *after* this, in one snapshot.
#[derive(Debug)]
#[must_use = "a load that is not finished has emptied the copy for nothing"]
pub struct LoadToken {
    key: ConversationKey,
    member: Vec<u8>,
    /// The connection on which it was left: another one may be another server.
    serial: u64,
}

/// What became of a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loaded {
    /// The rows and the mark are in the copy.
    Accepted,
    /// The intent is gone: the key vanished, the load took too long and another began, or Redis was
    /// replaced. Nothing was written, and nothing is wrong: a later read loads again.
    Superseded,
}

/// A Lua script and the name by which Redis remembers it.
struct Script {
    source: &'static str,
    hash: String,
}

impl HotStore {
    /// Empties a copy and leaves an intent in it.
    ///
    /// # Errors
    /// [`Error::LoadUnderWay`] when another reader has begun to load it and not finished, for at
    /// most [`Settings::longest_load`](crate::Settings::longest_load).
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

    /// Adds the rows and the mark, if the intent is still there, and renews the copy's expiry.
    ///
    /// All rows go in one script, during which Redis serves nobody else (some 5 ms for 1 000 rows):
    /// the caller bounds how many and how large they are.
    ///
    /// # Errors
    /// Redis is away, or was too slow. Then it is unknown whether the rows went in; either way the
    /// copy is right.
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

    /// The command that runs it on a key, still without arguments.
    fn on(&self, key: &str) -> redis::Cmd {
        let mut command = redis::cmd("EVALSHA");
        command.arg(&self.hash).arg(1).arg(key);
        command
    }

    /// Runs the command; a server that does not know the script is taught. Servers forget scripts
    /// when they restart, and on `SCRIPT FLUSH`.
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

//! Filling a hot copy from PostgreSQL, for a reader that missed it.
//!
//! Between reading the rows and writing the mark, a saver may append, the key may be evicted, another
//! reader may load. So a load first empties the key and leaves an *intent* in it, and its rows and
//! mark are accepted only while that intent is there. Without it, a key that vanishes after a saver
//! appended would come back with a valid mark and without that row.

use std::borrow::Borrow;
use std::sync::LazyLock;

use domain::ids::ConversationKey;
use domain::message::Message;
use redis::{ErrorKind, Script, ServerErrorKind, Value};
use uuid::Uuid;

use crate::append::add_member;
use crate::error::Error;
use crate::mark::{Mark, encode_intent};
use crate::{HotStore, keys};

static ACCEPT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("load.lua")));

/// A load that has begun. Read the numbers and rows *after* this, in one snapshot.
#[derive(Debug)]
#[must_use = "a load that is not finished has emptied the copy for nothing"]
pub struct Intent {
    key: ConversationKey,
    nonce: Uuid,
    /// The connection on which it was left: another one may be another server.
    serial: u64,
}

/// What became of a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loaded {
    /// The rows and the mark are in the copy.
    Accepted,
    /// The intent is gone: the key vanished, another load began, or Redis was replaced. Nothing was
    /// written, and nothing is wrong: a later read loads again.
    Superseded,
}

impl HotStore {
    /// Empties a copy and leaves an intent in it.
    pub async fn begin_load(&self, key: &ConversationKey) -> Result<Intent, Error> {
        let connection = self.connections.get_for_writing().await?;
        let nonce = Uuid::new_v4();
        let name = keys::messages(key);
        let mut pipeline = redis::pipe();
        pipeline.atomic();
        pipeline.cmd("UNLINK").arg(&name);
        pipeline.cmd("ZADD").arg(&name).arg("-inf").arg(encode_intent(nonce));
        pipeline.cmd("EXPIRE").arg(&name).arg(self.expiry_seconds());
        for reply in connection.run(&pipeline).await? {
            match reply {
                Value::Array(replies) => replies.iter().try_for_each(|r| connection.check(r))?,
                other => connection.check(&other)?,
            }
        }
        Ok(Intent { key: key.clone(), nonce, serial: connection.serial() })
    }

    /// Adds the rows and the mark, if the intent is still there, and renews the copy's expiry.
    ///
    /// All rows go in one script, during which Redis serves nobody else (some 5 ms for 1 000 rows):
    /// the caller bounds how many and how large they are. An error leaves it unknown whether they
    /// went in; either way the copy is right.
    pub async fn finish_load<M>(
        &self,
        intent: Intent,
        mark: &Mark,
        messages: &[M],
    ) -> Result<Loaded, Error>
    where
        M: Borrow<Message> + Sync,
    {
        let connection = self.connections.get_for_writing().await?;
        if connection.serial() != intent.serial {
            return Ok(Loaded::Superseded);
        }
        let mut command = redis::cmd("EVALSHA");
        command.arg(ACCEPT.get_hash()).arg(1).arg(keys::messages(&intent.key));
        command.arg(encode_intent(intent.nonce)).arg(mark.encode()).arg(self.expiry_seconds());
        let mut buffer = Vec::new();
        for message in messages {
            add_member(&mut command, message.borrow(), &mut buffer);
        }
        let mut reply = connection.call(&command).await;
        if reply.as_ref().is_err_and(is_unknown_script) {
            let mut load = redis::cmd("SCRIPT");
            load.arg("LOAD").arg(include_str!("load.lua"));
            connection.call(&load).await?;
            reply = connection.call(&command).await;
        }
        match reply? {
            Value::Int(1) => Ok(Loaded::Accepted),
            _ => Ok(Loaded::Superseded),
        }
    }
}

/// A server forgets its scripts when it restarts, and on `SCRIPT FLUSH`.
fn is_unknown_script(error: &redis::RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
}

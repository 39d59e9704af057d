//! Adding committed rows to hot copies: plain commands, pipelined, without looking.
//!
//! A row is one member, whoever appends it and however often. Nothing is read and nothing is
//! decided here, so any number of savers may append to one conversation at once. A copy that does not
//! exist begins to, without a mark, and so vouches for nothing.

use std::borrow::Borrow;

use domain::ids::ConversationKey;
use domain::message::Message;

use crate::connection::Connection;
use crate::error::{AppendError, Error};
use crate::{HotStore, encoding, keys};

/// A write is sent once it holds so many bytes. Large enough that a batch is usually one round trip;
/// small enough that Redis answers each well within the response time-out, and that the memory for
/// it is bounded.
const WRITE_BYTES: usize = 1024 * 1024;

/// Members to one ZADD: Redis serves nobody else meanwhile, some 2 ms at 5 µs each.
const ADD_MEMBERS: usize = 400;

impl HotStore {
    /// Adds committed rows to the copies of their conversations and renews the copies' expiry.
    ///
    /// The error names every conversation whose copy may now lack a row; when the connection broke
    /// that is every one, also those that had been answered: a server that dies may have forgotten
    /// them.
    pub async fn append<M>(&self, batch: &[(ConversationKey, Vec<M>)]) -> Result<(), AppendError>
    where
        M: Borrow<Message> + Sync,
    {
        let all = |cause| AppendError {
            conversations: batch.iter().map(|(key, _)| key.clone()).collect(),
            cause,
        };
        let connection = self.connections.get_for_writing().await.map_err(all)?;
        let mut write = Write::new(self.expiry_seconds());
        let mut failed = Failed::default();
        for (index, (key, messages)) in batch.iter().enumerate() {
            let key = keys::messages(key);
            for message in messages {
                write.add(index, &key, message.borrow());
                if write.bytes >= WRITE_BYTES {
                    write.send(&connection, &mut failed).await.map_err(all)?;
                }
            }
            if !messages.is_empty() {
                write.renew(index, &key);
            }
        }
        write.send(&connection, &mut failed).await.map_err(all)?;
        match failed.cause {
            None => Ok(()),
            Some(cause) => {
                failed.indices.dedup();
                let name = |index: usize| batch.get(index).map(|(key, _)| key.clone());
                let conversations = failed.indices.into_iter().filter_map(name).collect();
                Err(AppendError { conversations, cause })
            }
        }
    }

    /// The expiry in whole seconds, at least one: zero would remove the copy.
    pub(crate) fn expiry_seconds(&self) -> u64 {
        self.connections.settings().expiry.as_secs().max(1)
    }
}

/// The conversations of which a command failed, in order, perhaps repeated.
#[derive(Default)]
struct Failed {
    indices: Vec<usize>,
    cause: Option<Error>,
}

/// A pipeline that is being filled.
struct Write {
    expiry: u64,
    pipeline: redis::Pipeline,
    /// The conversation of each command.
    owners: Vec<usize>,
    /// The ZADD that is being filled, and how many members it has.
    adding: Option<(redis::Cmd, usize)>,
    bytes: usize,
    member: Vec<u8>,
}

impl Write {
    fn new(expiry: u64) -> Self {
        Self {
            expiry,
            pipeline: redis::pipe(),
            owners: Vec::new(),
            adding: None,
            bytes: 0,
            member: Vec::new(),
        }
    }

    fn add(&mut self, index: usize, key: &str, message: &Message) {
        if self.adding.as_ref().is_some_and(|(_, members)| *members == ADD_MEMBERS) {
            self.end_add(index);
        }
        let (command, members) = self.adding.get_or_insert_with(|| {
            let mut command = redis::cmd("ZADD");
            command.arg(key);
            (command, 0)
        });
        add_member(command, message, &mut self.member);
        *members += 1;
        self.bytes += self.member.len();
        if self.bytes >= WRITE_BYTES {
            self.end_add(index);
        }
    }

    /// Ends a conversation.
    fn renew(&mut self, index: usize, key: &str) {
        self.end_add(index);
        self.pipeline.cmd("EXPIRE").arg(key).arg(self.expiry);
        self.owners.push(index);
    }

    fn end_add(&mut self, index: usize) {
        if let Some((command, _)) = self.adding.take() {
            self.pipeline.add_command(command);
            self.owners.push(index);
        }
    }

    /// Sends what there is. An error means that nothing about any conversation is certain.
    async fn send(&mut self, connection: &Connection, failed: &mut Failed) -> Result<(), Error> {
        if self.owners.is_empty() {
            return Ok(());
        }
        let replies = connection.run(&self.pipeline).await?;
        for (reply, owner) in replies.iter().zip(&self.owners) {
            let Err(error) = connection.check(reply) else {
                continue;
            };
            if error.ends_the_connection() {
                return Err(error);
            }
            failed.indices.push(*owner);
            failed.cause.get_or_insert(error);
        }
        self.pipeline.clear();
        self.owners.clear();
        self.bytes = 0;
        Ok(())
    }
}

/// Adds the score and member of a message to a command. `buffer` is scratch; it holds the member
/// afterwards.
pub(crate) fn add_member(command: &mut redis::Cmd, message: &Message, buffer: &mut Vec<u8>) {
    buffer.clear();
    encoding::encode(message, buffer);
    command.arg(message.created_at.micros()).arg(buffer.as_slice());
}

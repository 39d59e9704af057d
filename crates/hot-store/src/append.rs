//! Adding committed rows to hot copies: plain commands, pipelined, without looking.
//!
//! A row is one member, whoever appends it and however often. Nothing is read and nothing is
//! decided here, so any number of savers may append to one conversation at once. A copy that does not
//! exist begins to, without a mark, and so vouches for nothing.
//!
//! Each server process gets its own conversations, all processes at once. What one of them does not
//! take says nothing about the others'.
//!
//! This runs for every message that is saved. Commands are made with all the room that they need.

use std::borrow::Borrow;

use domain::ids::ConversationKey;
use domain::message::Message;
use futures_util::future::join_all;
use redis::{Cmd, Pipeline};

use crate::connection::{Link, Share};
use crate::error::{AppendError, Error};
use crate::members::Members;
use crate::{HotStore, keys};

/// A write is sent once it holds so many bytes. Large enough that a batch is usually one round trip;
/// small enough that Redis answers each well within the response time-out, and that the memory for
/// it is bounded.
const WRITE_BYTES: usize = 1024 * 1024;

/// The digits of an expiry, at most.
const EXPIRY_BYTES: usize = 20;

/// Members to one ZADD: Redis serves nobody else meanwhile, some 2 ms at 5 µs each.
const ADD_MEMBERS: usize = 400;

impl HotStore {
    /// Adds committed rows to the copies of their conversations and renews the copies' expiry.
    ///
    /// The error names every conversation whose copy may now lack a row. When a connection broke
    /// that is every one that its server has, also those that had been answered: a server that dies
    /// may have forgotten them.
    pub async fn append<M>(&self, batch: &[(ConversationKey, Vec<M>)]) -> Result<(), AppendError>
    where
        M: Borrow<Message> + Sync,
    {
        self.append_renewing(batch, |_| true).await
    }

    /// [`Self::append`] that renews the expiry of some copies only: an expiry costs Redis nearly as
    /// much as a message does. The caller vouches for the others: that their expiry was renewed not
    /// long ago, or that somebody drops them in the end.
    pub async fn append_renewing<M>(
        &self,
        batch: &[(ConversationKey, Vec<M>)],
        renewed: impl Fn(&ConversationKey) -> bool,
    ) -> Result<(), AppendError>
    where
        M: Borrow<Message> + Sync,
    {
        let connection = self.connections.get_for_writing().await.map_err(|cause| AppendError {
            conversations: batch.iter().map(|(key, _)| key.clone()).collect(),
            cause,
        })?;
        let work = batch.iter().filter(|(_, messages)| !messages.is_empty());
        let shares = connection.shares(work.map(|entry| (keys::messages(&entry.0), entry)));
        let expiry = self.expiry_seconds();
        let appended = join_all(shares.iter().map(|share| append(share, expiry, &renewed))).await;
        let mut failed = Failed::default();
        for (share, outcome) in shares.iter().zip(appended) {
            match outcome {
                Ok(of_share) => failed.join(of_share),
                Err(cause) => failed.join(Failed {
                    conversations: share.items.iter().map(|(_, (key, _))| key).collect(),
                    cause: Some(cause),
                }),
            }
        }
        match failed.cause {
            None => Ok(()),
            Some(cause) => {
                let conversations = failed.conversations.into_iter().cloned().collect();
                Err(AppendError { conversations, cause })
            }
        }
    }

    /// The expiry in whole seconds, at least one: zero would remove the copy.
    pub(crate) fn expiry_seconds(&self) -> u64 {
        self.connections.settings().expiry.as_secs().max(1)
    }
}

/// Appends what one server has. An error means that nothing about any of it is certain.
async fn append<'a, M>(
    share: &Share<'_, &'a (ConversationKey, Vec<M>)>,
    expiry: u64,
    renewed: impl Fn(&ConversationKey) -> bool,
) -> Result<Failed<'a>, Error>
where
    M: Borrow<Message>,
{
    let mut write = Write::new(share.link, share.items.len());
    for (name, (key, messages)) in &share.items {
        for message in messages {
            write.adding.push(message.borrow());
            if write.adding.len() == ADD_MEMBERS || write.is_full() {
                write.add(key, name);
            }
            if write.is_full() {
                write.send().await?;
            }
        }
        write.add(key, name);
        if renewed(key) {
            write.renew(key, name, expiry);
        }
    }
    write.send().await?;
    Ok(write.failed)
}

/// The conversations of which a command failed.
#[derive(Default)]
struct Failed<'a> {
    conversations: Vec<&'a ConversationKey>,
    cause: Option<Error>,
}

impl<'a> Failed<'a> {
    fn join(&mut self, other: Self) {
        self.conversations.extend(other.conversations);
        self.cause = self.cause.take().or(other.cause);
    }

    fn note(&mut self, key: &'a ConversationKey, cause: Error) {
        // Commands of one conversation stand beside each other.
        if self.conversations.last() != Some(&key) {
            self.conversations.push(key);
        }
        self.cause.get_or_insert(cause);
    }
}

/// A pipeline to one server that is being filled.
struct Write<'l, 'a> {
    link: Link<'l>,
    pipeline: Pipeline,
    /// The conversation of each command.
    owners: Vec<&'a ConversationKey>,
    /// What the next ZADD is to hold.
    adding: Members,
    /// What the members in the pipeline take.
    bytes: usize,
    failed: Failed<'a>,
}

impl<'l, 'a> Write<'l, 'a> {
    fn new(link: Link<'l>, conversations: usize) -> Self {
        // For most conversations that is all: one ZADD, one EXPIRE.
        let commands = 2 * conversations;
        Self {
            link,
            pipeline: Pipeline::with_capacity(commands),
            owners: Vec::with_capacity(commands),
            adding: Members::default(),
            bytes: 0,
            failed: Failed::default(),
        }
    }

    fn is_full(&self) -> bool {
        self.bytes + self.adding.bytes() >= WRITE_BYTES
    }

    /// A ZADD of what there is to add.
    fn add(&mut self, key: &'a ConversationKey, name: &str) {
        if self.adding.len() == 0 {
            return;
        }
        self.bytes += self.adding.bytes();
        let words = 2 + 2 * self.adding.len();
        let mut command =
            Cmd::with_capacity(words, "ZADD".len() + name.len() + self.adding.space());
        command.arg("ZADD").arg(name);
        self.adding.move_to(&mut command);
        self.pipeline.add_command(command);
        self.owners.push(key);
    }

    /// Says when a copy expires. Nobody knows whether the append has just made it.
    fn renew(&mut self, key: &'a ConversationKey, name: &str, expiry: u64) {
        let mut command = Cmd::with_capacity(3, "EXPIRE".len() + name.len() + EXPIRY_BYTES);
        command.arg("EXPIRE").arg(name).arg(expiry);
        self.pipeline.add_command(command);
        self.owners.push(key);
    }

    /// Sends what there is.
    async fn send(&mut self) -> Result<(), Error> {
        if self.owners.is_empty() {
            return Ok(());
        }
        let replies = self.link.run(&self.pipeline).await?;
        for (reply, owner) in replies.iter().zip(&self.owners) {
            let Err(error) = self.link.check(reply) else {
                continue;
            };
            if error.ends_the_connection() {
                return Err(error);
            }
            self.failed.note(owner, error);
        }
        self.pipeline.clear();
        self.owners.clear();
        self.bytes = 0;
        Ok(())
    }
}

//! Appends committed rows to hot copies with plain pipelined commands, without reading first.
//!
//! - A row always becomes the same member, so appending it again changes nothing. Nothing is read
//!   and nothing is decided here, so any number of savers may append to one conversation at once.
//! - An append to a copy that does not exist creates it without a marker. Such a copy is never
//!   used, because nothing proves that it is complete.
//! - Each Redis server gets the rows of its own conversations; all servers are written to at the
//!   same time. A failure of one server does not affect the rows on the others.
//!
//! This runs for every saved message, so commands are allocated with their full size.

use std::borrow::Borrow;

use domain::ids::ConversationKey;
use domain::message::Message;
use futures_util::future::join_all;
use redis::{Cmd, Pipeline};

use crate::connection::{Link, Share};
use crate::error::{AppendError, Error};
use crate::keys;
use crate::members::Members;
use crate::store::HotStore;

/// The size in bytes at which a write is sent. Large enough that a batch is usually one round trip;
/// small enough that Redis replies well within the response timeout and that memory stays bounded.
const WRITE_BYTES: usize = 1024 * 1024;

/// The maximum number of digits of an expiry.
const EXPIRY_BYTES: usize = 20;

/// The largest number of members in one ZADD. Redis runs no other command meanwhile: about 2 ms at
/// 5 µs for each member.
const ADD_MEMBERS: usize = 400;

impl HotStore {
    /// Adds committed rows to the copies of their conversations and renews the expiry of those
    /// for which `renewed` is true.
    ///
    /// The error names every conversation whose copy may now lack a row. If a connection was lost,
    /// these are all conversations of its server, including those whose commands had succeeded: a
    /// server that crashes may lose acknowledged writes.
    ///
    /// An EXPIRE costs Redis nearly as much as a message. For a copy for which `renewed` is false
    /// the caller guarantees that its expiry was renewed recently or that the copy will be dropped.
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
        let failures: Vec<Failure<'_>> = shares
            .iter()
            .zip(appended)
            .flat_map(|(share, outcome)| {
                outcome.unwrap_or_else(|cause| {
                    share.items.iter().map(|(_, (key, _))| (key, cause.clone())).collect()
                })
            })
            .collect();
        let Some((_, cause)) = failures.first().cloned() else { return Ok(()) };
        let conversations = failures.into_iter().map(|(key, _)| key.clone()).collect();
        Err(AppendError { conversations, cause })
    }

    /// The expiry in whole seconds, at least 1: EXPIRE with 0 would remove the copy.
    pub(crate) fn expiry_seconds(&self) -> u64 {
        self.connections.settings().expiry.as_secs().max(1)
    }
}

/// Appends the rows of one server. After an error it is unknown which rows were appended.
async fn append<'a, M>(
    share: &Share<'_, &'a (ConversationKey, Vec<M>)>,
    expiry: u64,
    renewed: impl Fn(&ConversationKey) -> bool,
) -> Result<Vec<Failure<'a>>, Error>
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
    Ok(write.failures)
}

/// A conversation of which a command failed, with the first error.
type Failure<'a> = (&'a ConversationKey, Error);

struct Write<'l, 'a> {
    link: Link<'l>,
    pipeline: Pipeline,
    /// The conversation of each command.
    owners: Vec<&'a ConversationKey>,
    adding: Members,
    /// The size of the members in the pipeline.
    bytes: usize,
    failures: Vec<Failure<'a>>,
}

impl<'l, 'a> Write<'l, 'a> {
    fn new(link: Link<'l>, conversations: usize) -> Self {
        // Most conversations need one ZADD and one EXPIRE.
        let commands = 2 * conversations;
        Self {
            link,
            pipeline: Pipeline::with_capacity(commands),
            owners: Vec::with_capacity(commands),
            adding: Members::default(),
            bytes: 0,
            failures: Vec::new(),
        }
    }

    fn is_full(&self) -> bool {
        self.bytes + self.adding.bytes() >= WRITE_BYTES
    }

    fn add(&mut self, key: &'a ConversationKey, name: &str) {
        if self.adding.len() == 0 {
            return;
        }
        self.bytes += self.adding.bytes();
        let arguments = 2 + 2 * self.adding.len();
        let mut command =
            Cmd::with_capacity(arguments, "ZADD".len() + name.len() + self.adding.space());
        command.arg("ZADD").arg(name);
        self.adding.move_to(&mut command);
        self.pipeline.add_command(command);
        self.owners.push(key);
    }

    /// Adds an EXPIRE to the pipeline. It is always needed: the append may have created the copy.
    fn renew(&mut self, key: &'a ConversationKey, name: &str, expiry: u64) {
        let mut command = Cmd::with_capacity(3, "EXPIRE".len() + name.len() + EXPIRY_BYTES);
        command.arg("EXPIRE").arg(name).arg(expiry);
        self.pipeline.add_command(command);
        self.owners.push(key);
    }

    /// Sends the pipeline.
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
            // The commands of one conversation are adjacent.
            if self.failures.last().is_none_or(|(last, _)| last != owner) {
                self.failures.push((owner, error));
            }
        }
        self.pipeline.clear();
        self.owners.clear();
        self.bytes = 0;
        Ok(())
    }
}

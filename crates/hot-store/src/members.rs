//! Encodes messages into one buffer, which is then copied into a command with the scores.
//!
//! Writing to the redis-rs command directly would be slower: a message takes about fifty small
//! writes, and each write to a command costs as much as copying a hundred bytes.

use domain::message::Message;
use redis::Cmd;

use crate::encoding;

/// The maximum number of digits of a score.
const SCORE_BYTES: usize = 20;

/// Members and their scores. [`Members::move_to`] empties it and keeps its memory.
#[derive(Default)]
pub(crate) struct Members {
    buffer: Vec<u8>,
    /// The score of each member and the offset of its end.
    entries: Vec<(i64, usize)>,
}

impl Members {
    pub(crate) fn push(&mut self, message: &Message) {
        encoding::encode(message, &mut self.buffer);
        self.entries.push((message.created_at.micros(), self.buffer.len()));
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The size of the members, without their scores.
    pub(crate) fn bytes(&self) -> usize {
        self.buffer.len()
    }

    /// The size of the members in a command, with their scores.
    pub(crate) fn space(&self) -> usize {
        self.bytes() + SCORE_BYTES * self.len()
    }

    /// Adds score and member of each to a command, which should have the capacity for them.
    pub(crate) fn move_to(&mut self, command: &mut Cmd) {
        let mut begin = 0;
        for (score, end) in self.entries.drain(..) {
            command.arg(score).arg(&self.buffer[begin..end]);
            begin = end;
        }
        self.buffer.clear();
    }
}

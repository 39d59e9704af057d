//! Messages on their way into a command: encoded into one buffer, then copied once, with their scores.
//!
//! redis-rs could also be written to directly, without the buffer. But a message is some fifty small
//! writes, and each of them into a command costs what a hundred bytes cost to copy.

use domain::message::Message;
use redis::Cmd;

use crate::encoding;

/// The digits of a score, at most.
const SCORE_BYTES: usize = 20;

/// Members and their scores. Empty again after [`Members::move_to`], with the memory that it has.
#[derive(Default)]
pub(crate) struct Members {
    buffer: Vec<u8>,
    /// The score of each, and where it ends.
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

    /// What the members take, without their scores.
    pub(crate) fn bytes(&self) -> usize {
        self.buffer.len()
    }

    /// The room that they need in a command, scores included.
    pub(crate) fn space(&self) -> usize {
        self.bytes() + SCORE_BYTES * self.len()
    }

    /// Adds score and member of each to a command, which should have room for them.
    pub(crate) fn move_to(&mut self, command: &mut Cmd) {
        let mut begin = 0;
        for (score, end) in self.entries.drain(..) {
            command.arg(score).arg(&self.buffer[begin..end]);
            begin = end;
        }
        self.buffer.clear();
    }
}

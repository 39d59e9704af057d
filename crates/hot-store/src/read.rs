//! Reading the newest window of a hot copy: marks and members in one atomic look.
//!
//! What is read is bounded by the window, not by the conversation. A window before a position needs
//! the members that share that position's time, which Redis cannot cut by id; they are few, or the
//! copy is passed over.

use domain::ids::ConversationKey;
use domain::message::Message;
use redis::Value;

use crate::connection::Connection;
use crate::copy::{Extent, HotCopy, Window, in_order};
use crate::encoding::{DecodeError, decode};
use crate::error::Error;
use crate::marker::CompletenessMarker;
use crate::{HotStore, keys};

/// How many messages may share the time of a window's end. With times in microseconds more than a
/// handful is a sender without a clock; this bounds what such a one can make a reader fetch.
const SAME_TIME: usize = 256;

/// An admitted connection to read from, and no other.
pub struct Reading(Connection);

impl HotStore {
    /// The connection to read from. Whoever compares a copy with numbers asks for these afterwards: a
    /// new server voids the copies that it may have when it is admitted, and that is before this.
    pub async fn reading(&self) -> Result<Reading, Error> {
        self.connections.get().await.map(Reading)
    }

    /// [`Reading::read`], for those who know the numbers from elsewhere.
    pub async fn read(&self, key: &ConversationKey, window: &Window) -> Result<HotCopy, Error> {
        self.reading().await?.read(key, window).await
    }
}

impl Reading {
    /// Reads the marks of a copy and the messages of a window. A copy that does not exist has
    /// neither. Ask [`HotCopy::usable`] before believing anything.
    pub async fn read(&self, key: &ConversationKey, window: &Window) -> Result<HotCopy, Error> {
        let key = keys::messages(key);
        let link = self.0.of(&key);
        let mut look = redis::pipe();
        look.atomic();
        look.cmd("ZRANGE").arg(&key).arg("-inf").arg("-inf").arg("BYSCORE");
        let newest_first = look.cmd("ZRANGE").arg(&key);
        match &window.before {
            None => newest_first.arg("+inf"),
            Some(before) => newest_first.arg(format!("({}", before.created_at.micros())),
        };
        // `(-inf` leaves out the marks and intents, which have no time.
        newest_first.arg("(-inf").arg("BYSCORE").arg("REV");
        newest_first.arg("LIMIT").arg(0).arg(window.newest).arg("WITHSCORES");
        if let Some(before) = &window.before {
            let time = before.created_at.micros();
            look.cmd("ZRANGE").arg(&key).arg(time).arg(time).arg("BYSCORE");
            look.arg("LIMIT").arg(0).arg(SAME_TIME).arg("WITHSCORES");
        }
        let replies = match link.run(&look).await?.pop() {
            Some(Value::Array(replies)) => replies,
            other => {
                link.check(&other.unwrap_or(Value::Nil))?;
                return Err(Error::Command("it did not run a transaction".into()));
            }
        };
        for reply in &replies {
            if matches!(reply, Value::ServerError(error) if error.code() == "WRONGTYPE") {
                return Ok(damaged(DecodeError::NotASortedSet));
            }
            link.check(reply)?;
        }
        let mut replies = replies.into_iter();
        let (markers, older) = (replies.next(), replies.next());
        Ok(interpret(window, markers, older, replies.next()).unwrap_or_else(damaged))
    }
}

/// What the replies say about the copy. `same_time` are the members at the time of the window's end.
fn interpret(
    window: &Window,
    markers: Option<Value>,
    older: Option<Value>,
    same_time: Option<Value>,
) -> Result<HotCopy, DecodeError> {
    let markers =
        members(markers)?.iter().filter_map(|member| CompletenessMarker::decode(member)).collect();
    let mut messages = messages_of(older)?;
    let mut extent =
        if messages.len() < window.newest { Extent::Exhausted } else { Extent::CutShort };
    if let Some(before) = &window.before {
        let same_time = messages_of(same_time)?;
        if same_time.len() == SAME_TIME {
            // There may be more of them, and of those that were not read some may belong here.
            return Ok(HotCopy {
                markers,
                messages: vec![],
                extent: Extent::CutShort,
                damage: None,
            });
        }
        messages.extend(same_time.into_iter().filter(|message| message.id < before.id));
    }
    let mut messages = in_order(messages)?;
    if messages.len() >= window.newest {
        messages.drain(..messages.len() - window.newest);
        extent = Extent::Full;
    }
    Ok(HotCopy { markers, messages, extent, damage: None })
}

/// The messages of a reply with scores: member, score, member, score.
fn messages_of(reply: Option<Value>) -> Result<Vec<Message>, DecodeError> {
    let mut values = members(reply)?.into_iter();
    let mut messages = Vec::with_capacity(values.len() / 2);
    while let (Some(member), Some(score)) = (values.next(), values.next()) {
        let score = std::str::from_utf8(&score).ok().and_then(|text| text.parse().ok());
        messages.push(decode(&member, score.ok_or(DecodeError::NotASortedSet)?)?);
    }
    Ok(messages)
}

fn members(reply: Option<Value>) -> Result<Vec<Vec<u8>>, DecodeError> {
    let Some(Value::Array(values)) = reply else {
        return Err(DecodeError::NotASortedSet);
    };
    values
        .into_iter()
        .map(|value| match value {
            Value::BulkString(bytes) => Ok(bytes),
            _ => Err(DecodeError::NotASortedSet),
        })
        .collect()
}

fn damaged(damage: DecodeError) -> HotCopy {
    HotCopy { markers: vec![], messages: vec![], extent: Extent::CutShort, damage: Some(damage) }
}

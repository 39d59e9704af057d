//! Reads the newest window of a hot copy: markers and members in one transaction.
//!
//! The amount of data is limited by the window, not by the size of the conversation. A window
//! before a position also needs the members with exactly that position's time, because Redis cannot
//! select by id. They are normally few; if there are too many, the read is a miss.

use domain::ids::ConversationKey;
use domain::message::Message;
use redis::Value;

use crate::connection::Connection;
use crate::copy::{Extent, HotCopy, Window, in_order};
use crate::encoding::{DecodeError, decode};
use crate::error::Error;
use crate::keys;
use crate::marker::CompletenessMarker;
use crate::store::HotStore;

/// The largest number of messages that may have the time of a window's end. Times are in
/// microseconds, so more than a few means a sender without a precise clock; this limits what a
/// reader must fetch then.
const SAME_TIME: usize = 256;

/// A checked connection to read from. It stays the same connection for all its reads.
pub struct Reading(Connection);

impl HotStore {
    /// The connection to read from. Read the numbers from PostgreSQL *after* this call: the check
    /// of a new server changes the epoch, which invalidates the copies of that server, and the
    /// check is complete when this call returns.
    pub async fn reading(&self) -> Result<Reading, Error> {
        self.connections.get().await.map(Reading)
    }

    /// [`Reading::read`] on the current connection.
    pub async fn read(&self, key: &ConversationKey, window: &Window) -> Result<HotCopy, Error> {
        self.reading().await?.read(key, window).await
    }
}

impl Reading {
    /// Reads the markers of a copy and the messages of a window. A copy that does not exist has
    /// neither. [`HotCopy::usable`] decides whether the result may be used.
    pub async fn read(&self, key: &ConversationKey, window: &Window) -> Result<HotCopy, Error> {
        let key = keys::messages(key);
        let link = self.0.of(&key);
        let mut transaction = redis::pipe();
        transaction.atomic();
        transaction.cmd("ZRANGE").arg(&key).arg("-inf").arg("-inf").arg("BYSCORE");
        let newest_first = transaction.cmd("ZRANGE").arg(&key);
        match &window.before {
            None => newest_first.arg("+inf"),
            Some(before) => newest_first.arg(format!("({}", before.created_at.micros())),
        };
        // `(-inf` leaves out markers and load tokens, which have no time.
        newest_first.arg("(-inf").arg("BYSCORE").arg("REV");
        newest_first.arg("LIMIT").arg(0).arg(window.newest).arg("WITHSCORES");
        if let Some(before) = &window.before {
            let time = before.created_at.micros();
            transaction.cmd("ZRANGE").arg(&key).arg(time).arg(time).arg("BYSCORE");
            transaction.arg("LIMIT").arg(0).arg(SAME_TIME).arg("WITHSCORES");
        }
        let replies = match link.run(&transaction).await?.pop() {
            Some(Value::Array(replies)) => replies,
            other => {
                link.check(&other.unwrap_or(Value::Nil))?;
                return Err(Error::Command("the reply to EXEC is not an array".into()));
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

/// Makes a copy of the replies. `same_time` are the members with the time of the window's end.
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
            // There may be more of them, and some of these may belong to the window.
            let (messages, extent) = (Vec::new(), Extent::CutShort);
            return Ok(HotCopy { markers, messages, extent, damage: None });
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
    let member = |value| match value {
        Value::BulkString(bytes) => Ok(bytes),
        _ => Err(DecodeError::NotASortedSet),
    };
    values.into_iter().map(member).collect()
}

fn damaged(damage: DecodeError) -> HotCopy {
    HotCopy { markers: vec![], messages: vec![], extent: Extent::CutShort, damage: Some(damage) }
}

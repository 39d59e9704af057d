//! What RabbitMQ sent of a message that the client library cannot read, besides its body.
//!
//! It travels in front of the body: from the frames to the consumer ([`frames`](crate::frames)), where a header
//! with a secret of this process says how many bytes it has, and in a copy, where a fleet header says so. A header
//! is no place for it: it may fill a frame.

use std::sync::LazyLock;

use bytes::Bytes as Body;
use lapin::BasicProperties;
use lapin::types::AMQPValue;
use uuid::Uuid;

use crate::property_list::{self, Bytes, Fault};

/// The header that the frames of this process give to a message whose properties precede its body.
const MOVED: &str = "x-verbatim-moved";

/// The memory of a parsed value that AMQP encodes in one byte, in bytes.
const PARSED_BYTES: usize = 40;

/// Distinguishes that header from one that a sender wrote.
static SECRET: LazyLock<[u8; 16]> = LazyLock::new(|| Uuid::new_v4().into_bytes());

/// The exchange, the routing key and the properties of a message as RabbitMQ sent them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RawMessage {
    /// The exchange and the routing key, if one of them is not UTF-8.
    pub(crate) address: Option<RawAddress>,
    /// The encoded properties.
    pub(crate) properties: Vec<u8>,
}

/// The exchange and the routing key of a delivery, at most 255 bytes each (AMQP 0-9-1, 4.2.5.3).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RawAddress {
    pub(crate) exchange: Vec<u8>,
    pub(crate) routing_key: Vec<u8>,
}

impl RawMessage {
    /// What the client library cannot read.
    ///
    /// # Errors
    /// Why it cannot.
    pub(crate) fn check(&self) -> Result<(), Unreadable> {
        if let Some(address) = &self.address {
            for (what, text) in
                [("exchange", &address.exchange), ("routing key", &address.routing_key)]
            {
                std::str::from_utf8(text).map_err(|_| Unreadable::Address(what))?;
            }
        }
        property_list::check(&self.properties).map(drop).map_err(Unreadable::Properties)
    }

    /// The properties that can be read.
    pub(crate) fn readable(&self) -> BasicProperties {
        property_list::readable(&self.properties)
    }

    /// In front of a body: a flag, the address if there is one, then the properties.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![u8::from(self.address.is_some())];
        if let Some(RawAddress { exchange, routing_key }) = &self.address {
            for text in [exchange, routing_key] {
                bytes.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
                bytes.extend(&text[..text.len().min(usize::from(u8::MAX))]);
            }
        }
        bytes.extend(&self.properties);
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, Fault> {
        let mut rest = Bytes(bytes);
        let address = match rest.take(1)? {
            [0] => None,
            _ => Some(RawAddress {
                exchange: rest.short_string()?.to_vec(),
                routing_key: rest.short_string()?.to_vec(),
            }),
        };
        Ok(Self { address, properties: rest.0.to_vec() })
    }

    /// Takes the first bytes of a body.
    pub(crate) fn split_off(body: &mut Body, bytes: usize) -> Option<Self> {
        let raw = Self::decode(body.get(..bytes)?).ok()?;
        *body = body.slice(bytes..);
        Some(raw)
    }
}

/// What the frames did with a message: how many bytes precede its body, and how long its body is. A body over the
/// limit is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moved {
    pub(crate) bytes: usize,
    pub(crate) body_bytes: u64,
}

impl Moved {
    /// The encoded properties of a message with which this was done: one header.
    pub(crate) fn encode(self) -> Vec<u8> {
        const HEADERS: u16 = 1 << 13;
        let bytes = (self.bytes as u64).to_be_bytes();
        let value = [&SECRET[..], &bytes, &self.body_bytes.to_be_bytes()].concat();
        let mut header = vec![MOVED.len() as u8];
        header.extend(MOVED.as_bytes());
        header.push(b'x');
        header.extend((value.len() as u32).to_be_bytes());
        header.extend(value);
        let length = (header.len() as u32).to_be_bytes();
        [&HEADERS.to_be_bytes()[..], &length, &header].concat()
    }

    /// What this process did with a message that has these properties.
    pub(crate) fn with(properties: &BasicProperties) -> Option<Self> {
        let AMQPValue::ByteArray(value) = properties.headers().as_ref()?.inner().get(MOVED)? else {
            return None;
        };
        let mut numbers = Bytes(value.as_slice().strip_prefix(&SECRET[..])?);
        let (bytes, body_bytes) = (numbers.u64().ok()?, numbers.u64().ok()?);
        Some(Self { bytes: usize::try_from(bytes).ok()?, body_bytes })
    }

    /// The length of the body of a message, which may be left out.
    pub(crate) fn body_bytes(message: &lapin::message::Delivery) -> u64 {
        let moved = Self::with(&message.properties);
        moved.map_or(message.data.len() as u64, |moved| moved.body_bytes)
    }

    /// Whether the body of a message was left out.
    pub(crate) fn is_left_out(message: &lapin::message::Delivery) -> bool {
        Self::with(&message.properties).is_some_and(|moved| {
            moved.body_bytes > message.data.len().saturating_sub(moved.bytes) as u64
        })
    }

    /// About how much memory a received message needs, in bytes: its body, and the properties that precede it once
    /// they are parsed.
    pub(crate) fn memory(message: &lapin::message::Delivery) -> usize {
        let moved = Self::with(&message.properties).map_or(0, |moved| moved.bytes);
        message.data.len() + moved * PARSED_BYTES
    }
}

/// What of a message the client library cannot read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unreadable {
    /// The exchange or the routing key.
    #[error("the {0} is not UTF-8")]
    Address(&'static str),
    /// A property or a header.
    #[error(transparent)]
    Properties(Fault),
}

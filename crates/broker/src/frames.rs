//! The frames that RabbitMQ sends, made readable for the client library.
//!
//! The client library closes its connection, or overflows its stack, at a message that it cannot parse. RabbitMQ
//! delivers such a message again and again, with its neighbours. So no such message reaches it:
//!
//! | RabbitMQ sends | the client library gets |
//! |---|---|
//! | a property list that [`property_list::check`] refuses, or that is longer than [`MAX_PROPERTIES`] or [`MAX_VALUES`] | one header in its place; the list precedes the body ([`RawMessage`]) |
//! | an exchange or a routing key that is not UTF-8 | its text with replacements; the bytes precede the body |
//! | a body that is not to be received ([`BodyLimit`]) | no body; the header tells its length |
//! | everything else | the same bytes |
//!
//! Frames: AMQP 0-9-1, 4.2.3 (frame), 4.2.6 (content header).

use std::collections::{HashMap, HashSet};

use crate::body_limit::BodyLimit;
use crate::property_list::{self, Bytes, Fault};
use crate::raw_message::{Moved, RawAddress, RawMessage};

/// The type, the channel and the size of a frame.
const HEAD: usize = 7;
/// Behind the payload of a frame.
const END: [u8; 1] = [0xCE];
const METHOD: u8 = 1;
const CONTENT_HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;
/// The class and the method of `basic.deliver` and of `basic.get-ok`.
const DELIVER: [u8; 4] = [0, 60, 0, 60];
const GET_OK: [u8; 4] = [0, 60, 0, 71];
/// The class and the method of `basic.return`.
const BASIC_RETURN: [u8; 4] = [0, 60, 0, 50];
/// The class and the weight of a content header, before the body size.
const CLASS_AND_WEIGHT: usize = 4;
/// With the body size, before the properties.
const CONTENT_HEAD: usize = CLASS_AND_WEIGHT + 8;

/// A longer property list precedes the body. It is short of any frame: with what RabbitMQ adds of its own, a list that
/// a sender fitted into a frame may be longer than one, and the client library refuses it. And the client library
/// holds only a few bytes of properties of each unacknowledged message, the others count as its body.
const MAX_PROPERTIES: usize = 1024;
/// A property list whose headers have more values precedes the body: an encoded byte may need 40 in memory.
const MAX_VALUES: usize = 64;
/// The payload of the frames in which a property list precedes a body: that of the smallest `frame_max` (AMQP
/// 0-9-1, `frame-min-size`).
const MOVED_PAYLOAD: usize = 4096 - HEAD - END.len();
/// How many bytes are read at once.
const CHUNK: usize = 64 << 10;
/// The longest method or content header that is looked at. RabbitMQ sends none: its longest frame has 128 KiB by
/// default, and what it adds to a message is far shorter.
const MAX_FRAME: usize = 16 << 20;

/// Reads frames and gives them out, readable.
#[derive(Debug)]
pub(crate) struct Frames {
    /// What was received. `start..checked` may be given out; `checked..end` is not looked at.
    input: Vec<u8>,
    start: usize,
    checked: usize,
    end: usize,
    /// How many of the next bytes need no look: the rest of a body.
    unchecked: usize,
    /// What is given out in place of a frame, and how much of it is.
    replacement: Vec<u8>,
    replaced: usize,
    /// By channel: addresses that are not UTF-8, of deliveries whose content header follows.
    addresses: HashMap<[u8; 2], RawAddress>,
    /// Channels on which the content header of a returned message follows. We wrote that message, so it is given out as
    /// it is: the publisher finds the message by its properties.
    returned: HashSet<[u8; 2]>,
    /// Which bodies are received. The others are left out.
    limit: BodyLimit,
    /// By channel: how much of a body is still to be received and left out.
    left_out: HashMap<[u8; 2], u64>,
    /// How many of the next bytes are left out: the rest of a frame.
    dropped: usize,
    /// These are no frames: everything is given out as it is, and the client library reports it.
    foreign: bool,
}

impl Frames {
    /// Reads the frames of a connection on which these bodies are received.
    pub(crate) fn new(limit: BodyLimit) -> Self {
        Self {
            input: vec![0; CHUNK],
            start: 0,
            checked: 0,
            end: 0,
            unchecked: 0,
            replacement: Vec::new(),
            replaced: 0,
            addresses: HashMap::new(),
            returned: HashSet::new(),
            limit,
            left_out: HashMap::new(),
            dropped: 0,
            foreign: false,
        }
    }

    /// Where the next received bytes are to be written; never empty.
    pub(crate) fn space(&mut self) -> &mut [u8] {
        if self.end == self.input.len() {
            self.input.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.checked -= self.start;
            self.start = 0;
        }
        if self.end == self.input.len() {
            self.input.resize(self.end * 2, 0);
        }
        &mut self.input[self.end..]
    }

    /// This many bytes were written.
    pub(crate) fn received(&mut self, bytes: usize) {
        self.end += bytes;
    }

    /// Gives out as much as fits. 0: more must be received before.
    pub(crate) fn give(&mut self, out: &mut [u8]) -> usize {
        self.check();
        let from = match self.replacement.get(self.replaced..) {
            Some(rest @ [_, ..]) => rest,
            _ => &self.input[self.start..self.checked],
        };
        let count = from.len().min(out.len());
        out[..count].copy_from_slice(&from[..count]);
        if self.replaced < self.replacement.len() {
            self.replaced += count;
            return count;
        }
        self.start += count;
        if self.start == self.end {
            (self.start, self.checked, self.end) = (0, 0, 0);
            if self.input.len() > CHUNK {
                self.input = vec![0; CHUNK];
            }
        }
        count
    }

    /// Looks at what was received, up to a frame that is not complete or that must be replaced.
    fn check(&mut self) {
        while self.replaced == self.replacement.len() && self.checked < self.end {
            let received = &self.input[self.checked..self.end];
            if self.foreign {
                self.checked = self.end;
            } else if self.unchecked > 0 {
                let count = self.unchecked.min(received.len());
                self.checked += count;
                self.unchecked -= count;
            } else if self.dropped > 0 {
                if self.start < self.checked {
                    return;
                }
                let count = self.dropped.min(received.len());
                self.checked += count;
                self.start = self.checked;
                self.dropped -= count;
            } else {
                if !matches!(received, [METHOD | CONTENT_HEADER | BODY | HEARTBEAT, ..]) {
                    self.foreign = true;
                    continue;
                }
                let Some(frame) = Frame::first(received) else { return };
                if frame.size > MAX_FRAME && frame.kind != BODY {
                    self.foreign = true;
                    continue;
                }
                if matches!(frame.kind, BODY | HEARTBEAT) {
                    let left_out = self.left_out.get_mut(&frame.channel);
                    match left_out.filter(|rest| frame.kind == BODY && **rest > 0) {
                        Some(rest) => {
                            *rest = rest.saturating_sub((frame.size - HEAD - END.len()) as u64);
                            self.dropped = frame.size;
                        }
                        None => self.unchecked = frame.size,
                    }
                    continue;
                }
                let Some(payload) = frame.payload else { return };
                if frame.kind == METHOD && payload.starts_with(&BASIC_RETURN) {
                    self.returned.insert(frame.channel);
                } else if !self.returned.is_empty()
                    && frame.kind == CONTENT_HEADER
                    && self.returned.remove(&frame.channel)
                {
                    self.checked += frame.size;
                    continue;
                }
                let large = frame.body_bytes(payload).filter(|bytes| self.limit.is_large(*bytes));
                let is_readable = self.is_readable(&frame, payload);
                if is_readable && large.is_none() {
                    self.checked += frame.size;
                    continue;
                }
                if self.start < self.checked {
                    // First what precedes it.
                    return;
                }
                let left_out = large.filter(|bytes| !self.limit.admit(*bytes)).unwrap_or(0);
                if is_readable && left_out == 0 {
                    self.checked += frame.size;
                } else {
                    let (size, channel) = (frame.size, frame.channel);
                    let replacement = Self::replace(&mut self.addresses, &frame, payload, left_out);
                    self.replacement = replacement;
                    self.replaced = 0;
                    self.left_out.insert(channel, left_out);
                    self.checked += size;
                    self.start = self.checked;
                }
            }
        }
    }

    fn is_readable(&self, frame: &Frame<'_>, payload: &[u8]) -> bool {
        if frame.kind == METHOD {
            return Address::of(payload).is_none_or(|address| address.is_utf8());
        }
        let Some((_, properties)) = payload.split_at_checked(CONTENT_HEAD) else { return true };
        properties.len() <= MAX_PROPERTIES
            && !self.addresses.contains_key(&frame.channel)
            && property_list::check(properties).is_ok_and(|values| values <= MAX_VALUES)
    }

    /// The frames in place of one that is not given out as it is. So much of the body that follows is left out.
    fn replace(
        addresses: &mut HashMap<[u8; 2], RawAddress>,
        frame: &Frame<'_>,
        payload: &[u8],
        left_out: u64,
    ) -> Vec<u8> {
        if frame.kind == METHOD {
            let Some(address) = Address::of(payload) else { return Vec::new() };
            let method = address.readable_method();
            addresses.insert(frame.channel, address.raw());
            return encode(METHOD, frame.channel, &method);
        }
        let (head, properties) = payload.split_at(CONTENT_HEAD);
        let address = addresses.remove(&frame.channel);
        let moved = RawMessage { address, properties: properties.to_vec() }.encode();
        let body_bytes = body_bytes(head);
        let size = moved.len() as u64 + body_bytes - left_out;
        let list = Moved { bytes: moved.len(), body_bytes }.encode();
        let header = [&head[..CLASS_AND_WEIGHT], &size.to_be_bytes(), &list].concat();
        let mut frames = encode(CONTENT_HEADER, frame.channel, &header);
        for part in moved.chunks(MOVED_PAYLOAD) {
            frames.extend(encode(BODY, frame.channel, part));
        }
        frames
    }
}

/// The length of a body, from the head of its content header.
fn body_bytes(head: &[u8]) -> u64 {
    Bytes(&head[CLASS_AND_WEIGHT..]).u64().unwrap_or(0)
}

/// A frame, of which perhaps only the beginning was received.
struct Frame<'a> {
    kind: u8,
    channel: [u8; 2],
    /// With head and end.
    size: usize,
    /// Once it was received.
    payload: Option<&'a [u8]>,
}

impl<'a> Frame<'a> {
    fn first(received: &'a [u8]) -> Option<Self> {
        let ([kind, first, second, size @ ..], rest) = received.split_first_chunk::<HEAD>()?;
        let payload = u32::from_be_bytes(*size) as usize;
        let is_complete = rest.len() >= payload + END.len();
        Some(Self {
            kind: *kind,
            channel: [*first, *second],
            size: HEAD + payload + END.len(),
            payload: is_complete.then(|| &rest[..payload]),
        })
    }

    /// The length of the body that follows, if this is a content header.
    fn body_bytes(&self, payload: &[u8]) -> Option<u64> {
        let is_header = self.kind == CONTENT_HEADER && payload.len() >= CONTENT_HEAD;
        is_header.then(|| body_bytes(payload))
    }
}

fn encode(kind: u8, channel: [u8; 2], payload: &[u8]) -> Vec<u8> {
    let size = (payload.len() as u32).to_be_bytes();
    [&[kind][..], &channel, &size, payload, &END].concat()
}

/// The exchange and the routing key in a `basic.deliver` or `basic.get-ok`.
struct Address<'a> {
    before: &'a [u8],
    exchange: &'a [u8],
    routing_key: &'a [u8],
    after: &'a [u8],
}

impl<'a> Address<'a> {
    /// `None`: another method, or a malformed one.
    fn of(method: &'a [u8]) -> Option<Self> {
        let mut rest = Bytes(method);
        let parse = |rest: &mut Bytes<'a>| -> Result<Option<Self>, Fault> {
            match rest.take(4)? {
                kind if kind == DELIVER => {
                    rest.short_string()?;
                }
                kind if kind == GET_OK => {}
                _ => return Ok(None),
            }
            // The delivery tag and the flag `redelivered`.
            rest.take(9)?;
            let before = &method[..method.len() - rest.0.len()];
            let (exchange, routing_key) = (rest.short_string()?, rest.short_string()?);
            Ok(Some(Self { before, exchange, routing_key, after: rest.0 }))
        };
        parse(&mut rest).ok().flatten()
    }

    fn is_utf8(&self) -> bool {
        [self.exchange, self.routing_key].iter().all(|text| std::str::from_utf8(text).is_ok())
    }

    fn raw(&self) -> RawAddress {
        RawAddress { exchange: self.exchange.to_vec(), routing_key: self.routing_key.to_vec() }
    }

    fn readable_method(&self) -> Vec<u8> {
        let mut method = self.before.to_vec();
        for text in [self.exchange, self.routing_key] {
            let text = readable_text(text);
            method.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
            method.extend(text.as_bytes());
        }
        method.extend(self.after);
        method
    }
}

/// A text with a replacement character for what is not UTF-8, cut to the 255 bytes of a short string.
pub(crate) fn readable_text(text: &[u8]) -> String {
    let mut text = String::from_utf8_lossy(text).into_owned();
    text.truncate(text.floor_char_boundary(usize::from(u8::MAX)));
    text
}

#[cfg(test)]
mod tests {
    use lapin::protocol::basic::parse_properties;
    use proptest::prelude::*;

    use super::*;
    use crate::body_limit::LargeBodies;
    use crate::property_list::tests::list;

    const DELIVER_HEAD: &[u8] = b"\0\x3c\0\x3c\x03tag\0\0\0\0\0\0\0\x07\x01";

    fn short(text: &[u8]) -> Vec<u8> {
        [&[text.len() as u8], text].concat()
    }

    /// A delivery in frames, its body in two.
    fn delivery(channel: u8, routing_key: &[u8], properties: &[u8], body: &[u8]) -> Vec<u8> {
        let channel = [0, channel];
        let deliver = [DELIVER_HEAD, &short(b"exchange"), &short(routing_key)].concat();
        let size = (body.len() as u64).to_be_bytes();
        let header = [&[0, 60, 0, 0], &size[..], properties].concat();
        let mut frames = [
            encode(METHOD, channel, &deliver),
            encode(CONTENT_HEADER, channel, &header),
            encode(HEARTBEAT, [0, 0], &[]),
        ]
        .concat();
        let (first, second) = body.split_at(body.len() / 2);
        for part in [first, second].iter().filter(|part| !part.is_empty()) {
            frames.extend(encode(BODY, channel, part));
        }
        frames
    }

    /// Everything that is given out of what is received in parts of these sizes.
    fn given(received: &[u8], sizes: &[usize], max_body: u64) -> Vec<u8> {
        given_within(BodyLimit::up_to(max_body), received, sizes)
    }

    fn given_within(limit: BodyLimit, received: &[u8], sizes: &[usize]) -> Vec<u8> {
        let (mut frames, mut given, mut rest) = (Frames::new(limit), Vec::new(), received);
        let mut sizes = sizes.iter().copied().cycle();
        let mut out = vec![0; 4096];
        loop {
            let room = sizes.next().unwrap_or(1).clamp(1, out.len());
            match frames.give(&mut out[..room]) {
                0 if rest.is_empty() => return given,
                0 => {
                    let space = frames.space();
                    let count = sizes.next().unwrap_or(1).clamp(1, rest.len().min(space.len()));
                    space[..count].copy_from_slice(&rest[..count]);
                    rest = &rest[count..];
                    frames.received(count);
                }
                count => given.extend_from_slice(&out[..count]),
            }
        }
    }

    /// The routing key, the properties and the body of each delivery, as a client reads them.
    fn deliveries(mut given: &[u8]) -> Vec<(String, Vec<u8>, Vec<u8>)> {
        let mut found: Vec<(String, Vec<u8>, Vec<u8>)> = Vec::new();
        while !given.is_empty() {
            let frame = Frame::first(given).unwrap();
            let payload = frame.payload.unwrap();
            assert!(frame.size <= 4096 || frame.kind == BODY, "{} bytes", frame.size);
            match frame.kind {
                METHOD => {
                    let address = Address::of(payload).unwrap();
                    let key = String::from_utf8(address.routing_key.to_vec()).unwrap();
                    found.push((key, Vec::new(), Vec::new()));
                }
                CONTENT_HEADER => found.last_mut().unwrap().1 = payload[CONTENT_HEAD..].to_vec(),
                BODY => found.last_mut().unwrap().2.extend_from_slice(payload),
                _ => {}
            }
            given = &given[frame.size..];
        }
        found
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]

        #[test]
        fn every_delivery_is_given_out_readable_and_complete(
            sent in prop::collection::vec(
                (prop::collection::vec(any::<u8>(), 0..4), list(), prop::collection::vec(any::<u8>(), 0..99)),
                0..6,
            ),
            sizes in prop::collection::vec(1_usize..200, 1..9),
            max_body in 0_u64..120,
        ) {
            let received: Vec<u8> = sent
                .iter()
                .flat_map(|(key, properties, body)| delivery(1, key, properties, body))
                .collect();
            let found = deliveries(&given(&received, &sizes, max_body));
            prop_assert_eq!(found.len(), sent.len());
            for ((key, properties, body), (sent_key, sent_properties, sent_body)) in
                found.into_iter().zip(sent)
            {
                let mut body = bytes::Bytes::from(body);
                let parsed = parse_properties(properties.as_slice());
                let Ok(([], parsed)) = parsed else { panic!("{parsed:?}") };
                prop_assert_eq!(key.as_str(), readable_text(&sent_key));
                match Moved::with(&parsed) {
                    Some(moved) => {
                        let raw = RawMessage::split_off(&mut body, moved.bytes).unwrap();
                        prop_assert_eq!(moved.body_bytes, sent_body.len() as u64);
                        prop_assert_eq!(&raw.properties, &sent_properties);
                        let routing_key = raw.address.map(|address| address.routing_key);
                        prop_assert_eq!(
                            routing_key.is_some(), std::str::from_utf8(&sent_key).is_err()
                        );
                        prop_assert_eq!(routing_key.unwrap_or(sent_key.clone()), sent_key);
                    }
                    None => prop_assert_eq!(properties, sent_properties),
                }
                let is_wanted = sent_body.len() as u64 <= max_body;
                prop_assert_eq!(body, if is_wanted { sent_body } else { Vec::new() });
            }
        }

        #[test]
        fn bytes_that_are_no_frames_are_given_out_as_they_are(
            received in prop::collection::vec(any::<u8>(), 0..99), sizes in prop::collection::vec(1_usize..9, 1..9),
        ) {
            prop_assume!(!matches!(received.first(), Some(1..=3 | 8)));
            prop_assert_eq!(given(&received, &sizes, 50), received);
        }
    }

    #[test]
    fn of_large_bodies_no_more_are_received_than_fit_into_the_budget() {
        let limit = BodyLimit::few_above(10, 50, &LargeBodies::default());
        // What precedes a body that is left out: a flag, and properties without any flag.
        let left_out = 3;
        let received = |sizes: &[usize]| -> Vec<usize> {
            let sent = sizes.iter().flat_map(|size| delivery(1, b"key", &[0, 0], &vec![1; *size]));
            let given = given_within(limit.clone(), &sent.collect::<Vec<_>>(), &[9]);
            deliveries(&given).into_iter().map(|(_, _, body)| body.len()).collect()
        };
        assert_eq!(received(&[5, 60, 20, 10, 20]), [5, 60, left_out, 10, left_out]);
        drop(limit.receive(60));
        assert_eq!(received(&[20, 20, 20, 60]), [20, 20, left_out, left_out]);
    }

    #[test]
    fn a_returned_message_is_given_out_as_it_is_and_a_delivery_after_it_is_not() {
        let large = [&[0, 0][..], &[0; MAX_PROPERTIES]].concat();
        let delivered = delivery(1, b"key", &large, b"body");
        let size = Frame::first(&delivered).unwrap().size;
        let method =
            [&BASIC_RETURN[..], &[1, 56], &short(b"NO_ROUTE"), &short(b""), &short(b"key")]
                .concat();
        let returned = [&encode(METHOD, [0, 1], &method), &delivered[size..]].concat();
        let given = given(&[&returned[..], &delivered].concat(), &[13], 2);
        assert_eq!(given[..returned.len()], returned);
        assert_ne!(given[returned.len()..], delivered);
    }

    #[test]
    fn a_header_with_our_name_and_another_secret_moves_nothing() {
        let mut forged = Moved { bytes: 3, body_bytes: 4 }.encode();
        let at = forged.len() - 17;
        forged[at] ^= 1;
        let found = deliveries(&given(&delivery(1, b"key", &forged, b"body"), &[7], 99));
        let (_, properties) = parse_properties(found[0].1.as_slice()).unwrap();
        assert_eq!(Moved::with(&properties), None);
        assert_eq!(found[0].2, b"body");
    }

    #[test]
    fn channels_do_not_mix_although_their_frames_do() {
        let [first, second] = [1, 2].map(|n| delivery(n, b"\xff", &[0, 0], &[n]));
        let method = Frame::first(&first).unwrap().size;
        let mixed = [&first[..method], &second[..method], &first[method..], &second[method..]];
        let given = given(&mixed.concat(), &[11], 99);
        let headers = given.windows(4).filter(|it| **it == [0, 60, 0, 0]).count();
        assert_eq!(headers, 2);
    }
}

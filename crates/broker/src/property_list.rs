//! The properties of a message as RabbitMQ sends them, before the client library parses them.
//!
//! RabbitMQ checks little of what a sender sets: names that are not UTF-8, tables of any depth and header lists
//! that fill a frame are delivered as they were sent. The client library parses all of it on its own thread, by
//! recursion, and closes the connection or overflows its stack. So it gets only what [`check`] accepts.
//!
//! The encoding: AMQP 0-9-1, 2.3.5.2 (content headers) and 4.2 (grammar), with the types of fields that RabbitMQ
//! has (<https://www.rabbitmq.com/amqp-0-9-1-errata#section_3>).

use lapin::BasicProperties;
use lapin::protocol::basic::parse_properties;

use crate::header_owner::Owner;

/// How deep lists and tables in headers may be nested. The client library needs up to 20 KiB of stack a level, and
/// its thread has 2 MiB.
const MAX_DEPTH: usize = 32;

/// How a property is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encoding {
    ShortString,
    Table,
    Octet,
    Timestamp,
}

/// The properties in the order of their flags, the highest bit first (AMQP 0-9-1, 1.8.1).
const PROPERTIES: [(&str, Encoding); 14] = [
    ("content_type", Encoding::ShortString),
    ("content_encoding", Encoding::ShortString),
    ("headers", Encoding::Table),
    ("delivery_mode", Encoding::Octet),
    ("priority", Encoding::Octet),
    ("correlation_id", Encoding::ShortString),
    ("reply_to", Encoding::ShortString),
    ("expiration", Encoding::ShortString),
    ("message_id", Encoding::ShortString),
    ("timestamp", Encoding::Timestamp),
    ("type", Encoding::ShortString),
    ("user_id", Encoding::ShortString),
    ("app_id", Encoding::ShortString),
    ("cluster_id", Encoding::ShortString),
];
const HIGHEST_FLAG: u16 = 1 << 15;

/// What the client library cannot read in a property list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    /// A property is not UTF-8.
    #[error("the AMQP property {0} is not UTF-8")]
    Property(&'static str),
    /// The name of a header, or of a field in one, is not UTF-8.
    #[error("the name of an AMQP header, or of a field in one, is not UTF-8")]
    Name,
    /// A header is nested too deep.
    #[error("an AMQP header is nested more than {MAX_DEPTH} levels deep")]
    Depth,
    /// The bytes do not follow AMQP's grammar.
    #[error("the AMQP properties are malformed")]
    Malformed,
}

/// Whether the client library can read a property list. Returns how many values its headers have, those in lists
/// and tables included.
pub(crate) fn check(list: &[u8]) -> Result<usize, Fault> {
    let mut rest = Bytes(list);
    let mut flags = rest.u16()?;
    let mut values = 0;
    for (name, encoding) in PROPERTIES {
        if flags & HIGHEST_FLAG != 0 {
            let value = rest.property(encoding)?;
            match encoding {
                Encoding::ShortString => utf8(value, Fault::Property(name))?,
                Encoding::Table => values += check_table(value, MAX_DEPTH)?,
                Encoding::Octet | Encoding::Timestamp => {}
            }
        }
        flags <<= 1;
    }
    if rest.0.is_empty() { Ok(values) } else { Err(Fault::Malformed) }
}

/// The properties and headers of a list that can be read; the others are left out. None if the list is malformed.
pub(crate) fn readable(list: &[u8]) -> BasicProperties {
    let is_readable = |name: &[u8], value: &[u8]| {
        std::str::from_utf8(name).is_ok() && check_value(&mut Bytes(value), MAX_DEPTH).is_ok()
    };
    let is_text = |value: &[u8]| std::str::from_utf8(value).is_ok();
    let properties = filtered(list, Order::AsSent, is_text, is_readable).unwrap_or_default();
    // What is filtered is well-formed. An empty list would have no flags.
    parse_properties(properties.as_slice()).map(|(_, it)| it).unwrap_or_default()
}

/// A list without RabbitMQ's own headers, which differ between two deliveries of one message, and with its headers
/// in the order of their bytes, because RabbitMQ sorts them when it adds one. A malformed list is returned as it is.
pub(crate) fn as_sent(list: &[u8]) -> Vec<u8> {
    let of_sender = |name: &[u8], _: &[u8]| {
        std::str::from_utf8(name).map_or(true, |name| Owner::of(name) == Owner::Sender)
    };
    filtered(list, Order::Sorted, |_| true, of_sender).unwrap_or_else(|_| list.to_vec())
}

/// The order of headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    AsSent,
    Sorted,
}

/// A list with those texts and headers alone.
fn filtered(
    list: &[u8],
    order: Order,
    keep_text: impl Fn(&[u8]) -> bool,
    keep_header: impl Fn(&[u8], &[u8]) -> bool,
) -> Result<Vec<u8>, Fault> {
    let mut rest = Bytes(list);
    let flags = rest.u16()?;
    let (mut kept_flags, mut kept) = (0, Vec::with_capacity(list.len()));
    for (index, (_, encoding)) in PROPERTIES.into_iter().enumerate() {
        let flag = HIGHEST_FLAG >> index;
        if flags & flag == 0 {
            continue;
        }
        let before = rest;
        let value = rest.property(encoding)?;
        match encoding {
            Encoding::ShortString if !keep_text(value) => continue,
            Encoding::Table => {
                let headers = filtered_table(value, order, &keep_header)?;
                let Ok(bytes @ 1..) = u32::try_from(headers.len()) else { continue };
                kept.extend(bytes.to_be_bytes());
                kept.extend(headers);
            }
            _ => kept.extend_from_slice(before.until(rest)),
        }
        kept_flags |= flag;
    }
    kept.splice(..0, kept_flags.to_be_bytes());
    Ok(kept)
}

fn filtered_table(
    table: &[u8],
    order: Order,
    keep: impl Fn(&[u8], &[u8]) -> bool,
) -> Result<Vec<u8>, Fault> {
    let (mut rest, mut kept) = (Bytes(table), Vec::new());
    while !rest.0.is_empty() {
        let field = rest;
        let name = rest.short_string()?;
        let value = rest;
        rest.skip_value()?;
        if keep(name, value.until(rest)) {
            kept.push(field.until(rest));
        }
    }
    if order == Order::Sorted {
        kept.sort_unstable();
    }
    Ok(kept.concat())
}

/// Returns how many values the table has.
fn check_table(table: &[u8], depth: usize) -> Result<usize, Fault> {
    let (mut rest, mut values) = (Bytes(table), 0);
    while !rest.0.is_empty() {
        utf8(rest.short_string()?, Fault::Name)?;
        values += check_value(&mut rest, depth)?;
    }
    Ok(values)
}

/// Reads over a value. Returns how many values it has, itself included.
fn check_value(rest: &mut Bytes<'_>, depth: usize) -> Result<usize, Fault> {
    let depth = depth.checked_sub(1).ok_or(Fault::Depth)?;
    match rest.0.first() {
        Some(b'F') => {
            rest.take(1)?;
            Ok(1 + check_table(rest.long_string()?, depth)?)
        }
        Some(b'A') => {
            rest.take(1)?;
            let (mut list, mut values) = (Bytes(rest.long_string()?), 1);
            while !list.0.is_empty() {
                values += check_value(&mut list, depth)?;
            }
            Ok(values)
        }
        _ => rest.skip_value().map(|()| 1),
    }
}

fn utf8(text: &[u8], fault: Fault) -> Result<(), Fault> {
    std::str::from_utf8(text).map(drop).map_err(|_| fault)
}

/// The bytes that are left to read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bytes<'a>(pub(crate) &'a [u8]);

impl<'a> Bytes<'a> {
    pub(crate) fn take(&mut self, count: usize) -> Result<&'a [u8], Fault> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Fault::Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    /// The bytes up to those that were left later.
    fn until(self, later: Self) -> &'a [u8] {
        &self.0[..self.0.len() - later.0.len()]
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(Fault::Malformed)?;
        self.0 = rest;
        Ok(*taken)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Fault> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Fault> {
        self.array().map(u64::from_be_bytes)
    }

    pub(crate) fn short_string(&mut self) -> Result<&'a [u8], Fault> {
        let [length] = self.array()?;
        self.take(usize::from(length))
    }

    fn long_string(&mut self) -> Result<&'a [u8], Fault> {
        let length = u32::from_be_bytes(self.array()?);
        self.take(length as usize)
    }

    fn property(&mut self, encoding: Encoding) -> Result<&'a [u8], Fault> {
        match encoding {
            Encoding::ShortString => self.short_string(),
            Encoding::Table => self.long_string(),
            Encoding::Octet => self.take(1),
            Encoding::Timestamp => self.take(8),
        }
    }

    /// Reads over a value with its type; lists and tables by their length.
    fn skip_value(&mut self) -> Result<(), Fault> {
        let [kind] = self.array()?;
        let skipped = match kind {
            b'V' => Ok(&[][..]),
            b't' | b'b' | b'B' => self.take(1),
            b's' | b'u' | b'U' => self.take(2),
            b'I' | b'i' | b'f' => self.take(4),
            b'D' => self.take(5),
            b'l' | b'L' | b'd' | b'T' => self.take(8),
            b'S' | b'x' | b'F' | b'A' => self.long_string(),
            _ => Err(Fault::Malformed),
        };
        skipped.map(drop)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Bytes that often follow the grammar: types, lengths and names that fit.
    fn value(depth: u32) -> BoxedStrategy<Vec<u8>> {
        let bytes = |kind: u8, bytes: Vec<u8>| {
            [&[kind][..], &(bytes.len() as u32).to_be_bytes(), &bytes].concat()
        };
        let leaf = prop_oneof![
            Just(b"V".to_vec()),
            any::<u8>().prop_map(|it| vec![b't', it]),
            any::<[u8; 8]>().prop_map(|it| [&b"l"[..], &it].concat()),
            (prop::sample::select(&b"Sx"[..]), prop::collection::vec(any::<u8>(), 0..9))
                .prop_map(move |(kind, it)| bytes(kind, it)),
            prop::collection::vec(any::<u8>(), 0..9),
        ];
        if depth == 0 {
            return leaf.boxed();
        }
        let list = prop::collection::vec(value(depth - 1), 0..4);
        prop_oneof![
            leaf,
            list.prop_map(move |it| bytes(b'A', it.concat())),
            table(depth - 1).prop_map(move |it| bytes(b'F', it)),
        ]
        .boxed()
    }

    fn table(depth: u32) -> BoxedStrategy<Vec<u8>> {
        let name = prop_oneof![
            "[a-z]{0,5}".prop_map(String::into_bytes),
            prop::collection::vec(any::<u8>(), 0..5)
        ];
        let field = (name, value(depth))
            .prop_map(|(name, value)| [&[name.len() as u8][..], &name, &value].concat());
        prop::collection::vec(field, 0..5).prop_map(|fields| fields.concat()).boxed()
    }

    pub(crate) fn list() -> impl Strategy<Value = Vec<u8>> {
        let text = prop_oneof![
            "[a-z]{0,5}".prop_map(String::into_bytes),
            prop::collection::vec(any::<u8>(), 0..5)
        ];
        let texts = prop::collection::vec(text, PROPERTIES.len());
        let flags = prop_oneof![any::<u16>(), any::<u16>().prop_map(|flags| flags & !3)];
        let written = (flags, texts, table(3)).prop_map(|(flags, texts, table)| {
            let mut list = flags.to_be_bytes().to_vec();
            for (index, ((_, encoding), text)) in PROPERTIES.iter().zip(texts).enumerate() {
                if flags & (HIGHEST_FLAG >> index) == 0 {
                    continue;
                }
                match encoding {
                    Encoding::ShortString => {
                        list.push(text.len() as u8);
                        list.extend(text);
                    }
                    Encoding::Table => {
                        list.extend((table.len() as u32).to_be_bytes());
                        list.extend(&table);
                    }
                    Encoding::Octet => list.push(2),
                    Encoding::Timestamp => list.extend([0; 8]),
                }
            }
            list
        });
        prop_oneof![4 => written, 1 => prop::collection::vec(any::<u8>(), 0..40)]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3_000))]

        #[test]
        fn the_client_library_reads_exactly_what_is_accepted(list in list()) {
            let read = matches!(parse_properties(list.as_slice()), Ok((rest, _)) if rest.is_empty());
            prop_assert_eq!(check(&list).is_ok(), read, "{:?}", check(&list));
        }

        #[test]
        fn all_that_can_be_read_of_an_accepted_list_is_all_of_it(list in list()) {
            if check(&list).is_ok() {
                let all = parse_properties(list.as_slice()).unwrap().1;
                let headers = all.headers().clone().filter(|it| !it.inner().is_empty());
                let read = readable(&list);
                prop_assert_eq!(read.headers(), &headers);
                prop_assert_eq!(read.message_id(), all.message_id());
                prop_assert_eq!(read.timestamp(), all.timestamp());
            }
        }

        #[test]
        fn what_was_sent_does_not_depend_on_the_headers_that_rabbitmq_adds(list in list()) {
            let sent = as_sent(&list);
            if check(&list).is_ok() {
                prop_assert_eq!(&as_sent(&sent), &sent);
            }
        }
    }

    #[test]
    fn a_list_is_as_it_was_sent_although_rabbitmq_counted_a_redelivery() {
        let header = |name: &str| [&[name.len() as u8], name.as_bytes(), b"V"].concat();
        let with = |headers: &[&str]| {
            let headers: Vec<u8> = headers.iter().flat_map(|name| header(name)).collect();
            let length = (headers.len() as u32).to_be_bytes();
            [&0x2000_u16.to_be_bytes()[..], &length, &headers].concat()
        };
        assert_eq!(as_sent(&with(&["b", "a"])), as_sent(&with(&["x-delivery-count", "a", "b"])));
        assert_eq!(as_sent(&[0, 0]), as_sent(&with(&["x-death"])));
    }
}

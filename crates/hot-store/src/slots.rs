//! Which master of a cluster has which keys: slots, and the map of them that a node tells.
//!
//! Pure. A key's slot is the CRC-16 of its hash tag, as the [specification] has it. A map counts only
//! if every slot has an owner: with a part of the keys, nobody could say what is a miss and what is
//! an outage.
//!
//! [specification]: https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/

use std::collections::BTreeMap;
use std::fmt;

use redis::Value;

use crate::error::Error;

/// The number of slots, which no cluster can change.
const SLOTS: u16 = 16_384;

/// Which master owns which slots. Two nodes that see the same have equal maps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SlotMap {
    /// In order, without a hole; neighbours have different owners.
    ranges: Vec<Range>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Range {
    first: u16,
    last: u16,
    /// The id of a node, which it keeps for life.
    owner: String,
}

/// Where a node wants to be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// `None`: wherever the node is reached that was asked.
    pub(crate) host: Option<String>,
    pub(crate) port: u16,
}

impl SlotMap {
    /// Reads the reply of `CLUSTER SLOTS`: the map, and the masters in it by their ids.
    ///
    /// # Errors
    /// The reply is none, or a slot has no owner.
    pub(crate) fn read(reply: &Value) -> Result<(Self, BTreeMap<String, Endpoint>), Error> {
        let unread = || Error::NotServing("its CLUSTER SLOTS cannot be read".into());
        let Value::Array(rows) = reply else { return Err(unread()) };
        let mut found = Vec::with_capacity(rows.len());
        let mut masters = BTreeMap::new();
        for row in rows {
            let (range, master) = read_row(row).ok_or_else(unread)?;
            masters.insert(range.owner.clone(), master);
            found.push(range);
        }
        found.sort_by_key(|range| range.first);
        let mut ranges: Vec<Range> = Vec::with_capacity(found.len());
        let mut next = 0;
        for range in found {
            if range.first != next || range.last < range.first {
                return Err(uncovered(next));
            }
            next = range.last + 1;
            match ranges.last_mut() {
                Some(before) if before.owner == range.owner => before.last = range.last,
                _ => ranges.push(range),
            }
        }
        if next == SLOTS { Ok((Self { ranges }, masters)) } else { Err(uncovered(next)) }
    }

    /// The owner of each range of slots, with the last slot of the range; in order.
    pub(crate) fn owners(&self) -> impl Iterator<Item = (u16, &str)> {
        self.ranges.iter().map(|range| (range.last, range.owner.as_str()))
    }

    /// The slots of one master, for people and for comparison: `0-99+5461-10922`.
    pub(crate) fn of(&self, owner: &str) -> String {
        let own = self.ranges.iter().filter(|range| range.owner == owner);
        own.map(Range::to_string).collect::<Vec<_>>().join("+")
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// The slot of a key.
pub(crate) fn slot_of(key: &str) -> u16 {
    crc16(hash_tag(key).as_bytes()) % SLOTS
}

/// What stands between the first `{` and the first `}` after it, if that is anything; else the key.
fn hash_tag(key: &str) -> &str {
    let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}'));
    tag.map(|(tag, _)| tag).filter(|tag| !tag.is_empty()).unwrap_or(key)
}

/// CRC-16/XMODEM: polynomial 0x1021, nothing reflected, starting from zero.
fn crc16(bytes: &[u8]) -> u16 {
    const TABLE: [u16; 256] = table();
    bytes.iter().fold(0, |crc, byte| {
        let [high, _] = crc.to_be_bytes();
        (crc << 8) ^ TABLE[usize::from(high ^ byte)]
    })
}

const fn table() -> [u16; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = (byte as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
}

/// One row: first slot, last slot, the master, then its replicas. A node is host, port, id, more.
fn read_row(row: &Value) -> Option<(Range, Endpoint)> {
    let Value::Array(row) = row else { return None };
    let [Value::Int(first), Value::Int(last), Value::Array(master), ..] = row.as_slice() else {
        return None;
    };
    let [host, Value::Int(port), id, ..] = master.as_slice() else { return None };
    let host = match host {
        Value::Nil => None,
        // A node that does not know its own address says so with nothing.
        other => text(other).filter(|host| !host.is_empty()),
    };
    let [first, last] = [first, last].map(|slot| u16::try_from(*slot).ok());
    let owner = text(id)?;
    let range = Range { first: first?, last: last.filter(|last| *last < SLOTS)?, owner };
    Some((range, Endpoint { host, port: u16::try_from(*port).ok()? }))
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::BulkString(bytes) => String::from_utf8(bytes.clone()).ok(),
        Value::SimpleString(text) => Some(text.clone()),
        _ => None,
    }
}

fn uncovered(slot: u16) -> Error {
    Error::NotServing(format!("slot {slot} of the cluster has no owner, or two").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(first: i64, last: i64, host: Value, port: i64, id: &str) -> Value {
        let text = |text: &str| Value::BulkString(text.into());
        let metadata = Value::Array(vec![]);
        let master = Value::Array(vec![host, Value::Int(port), text(id), metadata]);
        let replica = Value::Array(vec![text("10.0.0.9"), Value::Int(1), text("replica")]);
        Value::Array(vec![Value::Int(first), Value::Int(last), master, replica])
    }

    fn at(host: &str) -> Value {
        Value::BulkString(host.into())
    }

    fn read(rows: Vec<Value>) -> Result<SlotMap, String> {
        SlotMap::read(&Value::Array(rows)).map(|(map, _)| map).map_err(|error| error.to_string())
    }

    #[test]
    fn slots_are_those_of_the_specification() {
        assert_eq!(crc16(b"123456789"), 0x31c3);
        for (key, slot) in
            [("somekey", 11_058), ("foo{hash_tag}", 2_515), ("bar{hash_tag}", 2_515), ("", 0)]
        {
            assert_eq!(slot_of(key), slot, "{key}");
        }
    }

    #[test]
    fn the_hash_tag_is_the_first_pair_of_braces_unless_it_is_empty() {
        for (key, tag) in [
            ("{user1000}.following", "user1000"),
            ("foo{}{bar}", "foo{}{bar}"),
            ("foo{{bar}}zap", "{bar"),
            ("foo{bar}{zap}", "bar"),
            ("foo}bar{zap", "foo}bar{zap"),
        ] {
            assert_eq!(hash_tag(key), tag, "{key}");
        }
    }

    #[test]
    fn a_map_is_read_whatever_the_order_and_the_pieces_of_its_rows() {
        let whole = vec![
            row(8_000, 16_383, at("10.0.0.2"), 6380, "b"),
            row(0, 99, at("10.0.0.1"), 6379, "a"),
            row(100, 7_999, at("10.0.0.1"), 6379, "a"),
        ];
        let (map, masters) = SlotMap::read(&Value::Array(whole)).unwrap();
        assert_eq!(map.owners().collect::<Vec<_>>(), [(7_999, "a"), (16_383, "b")]);
        assert_eq!(map.of("b"), "8000-16383");
        assert_eq!(masters.len(), 2);
        assert_eq!(masters["b"], Endpoint { host: Some("10.0.0.2".to_owned()), port: 6380 });
        let other = vec![row(0, 7_999, at("x"), 1, "a"), row(8_000, 16_383, at("y"), 2, "b")];
        assert_eq!(read(other), Ok(map), "where the nodes are is not who owns what");
    }

    #[test]
    fn a_node_without_an_address_of_its_own_is_where_it_was_reached() {
        for nowhere in [Value::Nil, at("")] {
            let rows = Value::Array(vec![row(0, 16_383, nowhere, 7, "a")]);
            let (_, masters) = SlotMap::read(&rows).unwrap();
            assert_eq!(masters["a"], Endpoint { host: None, port: 7 });
        }
    }

    #[test]
    fn the_slots_of_a_master_are_told_in_order() {
        let rows = vec![
            row(10, 16_383, at("h"), 1, "a"),
            row(5, 9, at("h"), 1, "b"),
            row(0, 4, at("h"), 1, "a"),
        ];
        assert_eq!(read(rows).unwrap().of("a"), "0-4+10-16383");
    }

    #[test]
    fn a_map_with_a_hole_an_overlap_or_an_open_end_is_refused() {
        for (rows, slot) in [
            (vec![], 0),
            (vec![row(1, 16_383, at("h"), 1, "a")], 0),
            (vec![row(0, 16_382, at("h"), 1, "a")], 16_383),
            (vec![row(0, 10, at("h"), 1, "a"), row(12, 16_383, at("h"), 1, "b")], 11),
            (vec![row(0, 10, at("h"), 1, "a"), row(10, 16_383, at("h"), 1, "b")], 11),
        ] {
            let error = read(rows).unwrap_err();
            assert_eq!(
                error,
                format!("Redis does not serve: slot {slot} of the cluster has no owner, or two")
            );
        }
    }

    #[test]
    fn a_reply_that_is_no_map_is_refused() {
        for reply in [
            Value::Nil,
            Value::Array(vec![Value::Int(1)]),
            Value::Array(vec![row(0, 16_384, at("h"), 1, "a")]),
            Value::Array(vec![row(0, 16_383, at("h"), 99_999, "a")]),
        ] {
            assert!(SlotMap::read(&reply).is_err(), "{reply:?}");
        }
    }
}

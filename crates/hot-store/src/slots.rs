//! The slots of a Redis Cluster: the slot of a key, and the map from slots to masters.
//!
//! Pure. A key's slot is the CRC-16 of its hash tag, as in the [specification]. A map is accepted
//! only if every slot has exactly one owner: otherwise a missing key could be a miss or an outage.
//!
//! [specification]: https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/

use std::collections::BTreeMap;

use redis::Value;

use crate::error::Error;

/// The number of slots, the same in every cluster.
const SLOTS: u16 = 16_384;

/// The owner of every slot. Equal assignments have equal maps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SlotMap {
    /// In order and without gaps; adjacent ranges have different owners.
    ranges: Vec<Range>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Range {
    first: u16,
    last: u16,
    /// The node id of the owner, which never changes.
    owner: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// `None`: the host of the node that sent the map.
    pub(crate) host: Option<String>,
    pub(crate) port: u16,
}

impl SlotMap {
    /// Reads the reply to `CLUSTER SLOTS`: the map, and the addresses of its masters by node id. It is an
    /// error if a slot has no owner or more than one.
    pub(crate) fn read(reply: &Value) -> Result<(Self, BTreeMap<String, Endpoint>), Error> {
        let unread = || Error::NotServing("its reply to CLUSTER SLOTS cannot be read".into());
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

    /// The slots of one master as text, such as `0-99+5461-10922`.
    pub(crate) fn of(&self, owner: &str) -> String {
        let own = self.ranges.iter().filter(|range| range.owner == owner);
        let text = |range: &Range| format!("{}-{}", range.first, range.last);
        own.map(text).collect::<Vec<_>>().join("+")
    }
}

pub(crate) fn slot_of(key: &str) -> u16 {
    crc16(hash_tag(key).as_bytes()) % SLOTS
}

/// The text between the first `{` and the next `}` if it is not empty, else the key.
fn hash_tag(key: &str) -> &str {
    let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}'));
    tag.map(|(tag, _)| tag).filter(|tag| !tag.is_empty()).unwrap_or(key)
}

/// CRC-16/XMODEM: polynomial 0x1021, not reflected, initial value 0.
fn crc16(bytes: &[u8]) -> u16 {
    let shifted = |crc: u16| if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
    bytes.iter().fold(0, |crc, byte| {
        let crc = crc ^ (u16::from(*byte) << 8);
        (0..8).fold(crc, |crc, _| shifted(crc))
    })
}

/// Reads a row: first slot, last slot, the master, then its replicas. A node is host, port, id and
/// more.
fn read_row(row: &Value) -> Option<(Range, Endpoint)> {
    let Value::Array(row) = row else { return None };
    let [Value::Int(first), Value::Int(last), Value::Array(master), ..] = row.as_slice() else {
        return None;
    };
    let [host, Value::Int(port), id, ..] = master.as_slice() else { return None };
    let host = match host {
        Value::Nil => None,
        // A node that does not know its own address sends an empty host.
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
    Error::NotServing(format!("slot {slot} of the cluster has no owner or more than one").into())
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
    fn a_map_is_read_from_rows_in_any_order_and_any_split() {
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
        assert_eq!(read(other), Ok(map), "addresses are not part of the map");
    }

    #[test]
    fn a_node_without_a_host_has_the_host_at_which_it_was_reached() {
        for nowhere in [Value::Nil, at("")] {
            let rows = Value::Array(vec![row(0, 16_383, nowhere, 7, "a")]);
            let (_, masters) = SlotMap::read(&rows).unwrap();
            assert_eq!(masters["a"], Endpoint { host: None, port: 7 });
        }
    }

    #[test]
    fn the_slots_of_a_master_are_listed_in_order() {
        let rows = vec![
            row(10, 16_383, at("h"), 1, "a"),
            row(5, 9, at("h"), 1, "b"),
            row(0, 4, at("h"), 1, "a"),
        ];
        assert_eq!(read(rows).unwrap().of("a"), "0-4+10-16383");
    }

    #[test]
    fn a_map_with_a_gap_an_overlap_or_a_missing_end_is_refused() {
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
                format!(
                    "Redis cannot be used: slot {slot} of the cluster has no owner or more than one"
                )
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

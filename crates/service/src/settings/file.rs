//! Reads the YAML configuration file. Values are kept as text: clap parses them.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use super::error::SettingsError;

/// A map of the file.
pub(super) type Map = BTreeMap<String, Entry>;

/// The value of a key. The YAML parser rejects duplicate keys.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    /// The key's line, from 1.
    pub(super) line: u64,
    pub(super) value: Node,
}

/// A value of the file.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node {
    /// No value: the key counts as absent.
    Nothing,
    /// A string, number or boolean, as text.
    Scalar(String),
    /// A list of scalars.
    List(Vec<String>),
    Map(Map),
}

pub(super) fn read(path: &Path) -> Result<Map, SettingsError> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        let path = path.display();
        SettingsError::new(format!("cannot read the configuration file {path}: {error}"))
    })?;
    parse(path, &text)
}

pub(super) fn parse(path: &Path, text: &str) -> Result<Map, SettingsError> {
    let syntax =
        |line: u64, reason| SettingsError::of(&format!("{}:{line}", path.display()), reason);
    let options = serde_saphyr::options! {
        // A snippet in an error would show neighbouring lines, which may contain passwords.
        with_snippet: false,
        // `on` and `no` are strings, as in YAML 1.2.
        strict_booleans: true,
    };
    if text.trim().is_empty() {
        return Ok(Map::new());
    }
    match serde_saphyr::from_str_with_options::<Node>(text, options) {
        Ok(Node::Map(map)) => Ok(map),
        Ok(Node::Nothing) => Ok(Map::new()),
        Ok(Node::Scalar(_) | Node::List(_)) => {
            Err(syntax(1, "the file must be a map of settings, as in `log_level: info`".to_owned()))
        }
        Err(error) => {
            let line = error.location().map_or(1, |location| location.line());
            Err(syntax(line, error.to_string()))
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value, a list of values or a section")
    }

    fn visit_unit<E: Error>(self) -> Result<Node, E> {
        Ok(Node::Nothing)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Scalar(value.to_string()))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Scalar(value.to_string()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Scalar(value.to_string()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Scalar(value.to_string()))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Scalar(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element::<Node>()? {
            match item {
                Node::Scalar(text) => list.push(text),
                Node::Nothing | Node::List(_) | Node::Map(_) => {
                    return Err(A::Error::custom("a list may contain plain values only"));
                }
            }
        }
        Ok(Node::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Node, A::Error> {
        let mut map = Map::new();
        while let Some((key, value)) = entries.next_entry::<Spanned<String>, Node>()? {
            map.insert(key.value, Entry { line: key.referenced.line(), value });
        }
        Ok(Node::Map(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Map, String> {
        parse(Path::new("fleet.yaml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn values_keep_their_text_and_their_line() {
        let map = read("log_level: info\nbatch_size: 500\n\nenabled: true\nratio: 0.5\nword: on\n")
            .expect("valid");
        let texts: Vec<_> = map
            .iter()
            .map(|(key, node)| match &node.value {
                Node::Scalar(text) => (key.as_str(), text.as_str(), node.line),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(
            texts,
            [
                ("batch_size", "500", 2),
                ("enabled", "true", 4),
                ("log_level", "info", 1),
                ("ratio", "0.5", 5),
                ("word", "on", 6),
            ]
        );
    }

    #[test]
    fn sections_and_lists_are_read() {
        let map = read("save:\n  batch_size: 5\nurls: [a, b]\nnothing:\n").expect("valid");
        assert!(matches!(&map["save"].value, Node::Map(section) if section.len() == 1));
        assert_eq!(map["urls"].value, Node::List(vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(map["nothing"].value, Node::Nothing);
    }

    #[test]
    fn a_syntax_error_names_the_line_and_shows_no_neighbouring_secret() {
        let error =
            read("database_url: postgres://u:s3cret@h/d\nbroken: [1,\n").expect_err("broken");
        assert!(error.starts_with("fleet.yaml:"), "{error}");
        assert!(!error.contains("s3cret"), "{error}");
        let error = read("a: 1\na: 2\n").expect_err("twice");
        assert!(error.starts_with("fleet.yaml:2: "), "{error}");
        let error = read("just text").expect_err("no map");
        assert!(error.contains("must be a map of settings"), "{error}");
    }

    #[test]
    fn an_empty_file_sets_nothing() {
        assert_eq!(read("").expect("empty"), Map::new());
        assert_eq!(read("# nothing yet\n").expect("comment"), Map::new());
    }
}

//! Bodies for tests: examples of every action, and bodies with every kind of fault.
//!
//! They are in the folder `fixtures` of the crate `domain`. Every file in `fixtures/actions` must be
//! listed in [`ACTIONS`]; a test of `domain` compares the two.

use std::borrow::Cow;

/// A valid body.
#[derive(Debug, Clone, Copy)]
pub struct Example {
    /// Its file's name without `.json`; it begins with the `action_type`.
    pub name: &'static str,
    /// The body.
    pub body: &'static str,
}

/// An invalid body and its expected refusal.
#[derive(Debug, Clone)]
pub struct Malformed {
    /// The fault, in words.
    pub name: &'static str,
    /// The body.
    pub body: Cow<'static, [u8]>,
    /// Why it is refused: the name of a `domain::failure::DeadLetterReason`.
    pub reason: &'static str,
    /// The field at fault, if there is one.
    pub field: Option<&'static str>,
}

macro_rules! examples {
    ($($name:literal),* $(,)?) => {
        &[$(Example {
            name: $name,
            body: include_str!(concat!("../../domain/fixtures/actions/", $name, ".json")).trim_ascii_end(),
        }),*]
    };
}

/// Examples of every action, flat and nested.
pub const ACTIONS: &[Example] = examples![
    "conversation.erase",
    "conversation.erase.nested",
    "conversation.feedback",
    "conversation.feedback.nested",
    "conversation.get_context",
    "conversation.get_context.nested",
    "conversation.get_history",
    "conversation.get_history.nested",
    "conversation.save_message",
    "conversation.save_message.empty",
    "conversation.save_message.full",
    "conversation.save_message.nested",
    "conversation.save_message.parts",
    "conversation.save_message.tool_calls",
    "conversation.save_message.tool_result",
    "conversation.save_message.unknown_fields",
    "conversation.session_closed",
    "conversation.session_closed.nested",
    "conversation.session_opened",
    "conversation.session_opened.nested",
    "state.clear",
    "state.clear.nested",
    "state.list_active",
    "state.list_active.nested",
    "state.load",
    "state.load.nested",
    "state.patch",
    "state.patch.nested",
    "state.save",
    "state.save.nested",
    "state.stats",
    "state.stats.nested",
    "state.transition",
    "state.transition.nested",
];

/// The three bodies that agents sent before the contract was written.
pub const FIRST_AGENTS: [&str; 3] =
    ["conversation.save_message", "conversation.get_context", "conversation.session_closed"];

/// The body of the example of this name.
#[must_use]
pub fn example(name: &str) -> Option<&'static str> {
    ACTIONS.iter().find(|example| example.name == name).map(|example| example.body)
}

/// Every invalid body; one of them has one byte more than `max_body_bytes`.
#[must_use]
pub fn malformed(max_body_bytes: usize) -> Vec<Malformed> {
    let mut all = as_text();
    all.extend(not_as_text(max_body_bytes));
    all
}

/// The invalid bodies in the text file. Each begins with a line `=== name`, then a line with reason
/// and field; then the body, up to the line break before the next one.
fn as_text() -> Vec<Malformed> {
    let text = include_str!("../../domain/fixtures/malformed/bodies.txt");
    let entry = |entry: &'static str| {
        let (name, rest) = entry.trim_end_matches('\n').split_once('\n')?;
        let (expected, body) = rest.split_once('\n')?;
        let (reason, field) = match expected.split_once(' ') {
            Some((reason, field)) => (reason, Some(field)),
            None => (expected, None),
        };
        Some(Malformed { name, body: body.as_bytes().into(), reason, field })
    };
    text.split("=== ").filter_map(entry).collect()
}

/// The invalid bodies that a text file cannot contain.
fn not_as_text(max_body_bytes: usize) -> Vec<Malformed> {
    const OPEN: &[u8] = br#"{"action_type":"conversation.save_message","tenant_id":"t","session_id":"s","role":"user","content":""#;
    let malformed = |name, body: &[u8]| Malformed {
        name,
        body: body.to_vec().into(),
        reason: "malformed_json",
        field: None,
    };
    let with_content = |content: &[u8]| [OPEN, content, b"\"}"].concat();
    let filler = (max_body_bytes + 1).saturating_sub(OPEN.len() + 2);
    vec![
        malformed("an empty body", b""),
        malformed("only white space", b" \t\r\n"),
        malformed("a byte order mark", &[b"\xEF\xBB\xBF", &*with_content(b"hi")].concat()),
        malformed("Latin-1", &with_content(b"ma\xF1ana")),
        malformed("half a character", &with_content(b"ma\xC3")),
        malformed("a surrogate in UTF-8", &with_content(b"\xED\xA0\x80")),
        malformed("UTF-16", &with_content(b"hi").iter().flat_map(|b| [*b, 0]).collect::<Vec<_>>()),
        malformed("a raw U+0000", &with_content(b"a\0b")),
        malformed("compressed", b"\x1F\x8B\x08\x00\x00\x00\x00\x00"),
        Malformed {
            reason: "too_large",
            ..malformed("one byte too many", &with_content(&vec![b'x'; filler]))
        },
    ]
}

//! What a message says, without the differences that callers make when they send the same message again.

use serde::de::IgnoredAny;
use sha2::{Digest as _, Sha256};

use crate::json::{Json, array_elements, canonical, canonical_without, members, string};
use crate::message::{Content, Details, Message, Role};

/// The hash of what a message says. Computed ids are made of it, and are compared for ever: its form never changes. It is
/// not stored itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SyncHash(pub [u8; 32]);

impl SyncHash {
    /// The hash of several messages together; `None` of none.
    #[must_use]
    pub fn of_all(hashes: impl IntoIterator<Item = Self>) -> Option<Self> {
        let mut hashes = hashes.into_iter().peekable();
        hashes.peek()?;
        let mut hasher = Sha256::new();
        for Self(hash) in hashes {
            hasher.update(hash);
        }
        Some(Self(hasher.finalize().into()))
    }
}

/// What two messages are compared by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint {
    /// The hash of what it says.
    pub hash: SyncHash,
    /// Whether it has a text of at least 16 characters: another message hardly says the same by chance.
    pub is_long: bool,
}

/// The fields of a message that are compared.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Compared<'a> {
    pub(crate) role: Role,
    pub(crate) content: &'a Content,
    pub(crate) tool_calls: Option<&'a Json>,
    pub(crate) item: Option<&'a Json>,
    /// An object, among whose members are the fields that [stand for content](crate::decode::INSTEAD_OF_CONTENT).
    pub(crate) beside: Option<&'a Json>,
}

/// A text of so many characters is long.
const LONG: usize = 16;

/// What is cut at the end of a text. Not all white space of Unicode, whose list may grow.
const WHITE_SPACE: [char; 6] = [' ', '\t', '\n', '\r', '\u{b}', '\u{c}'];

/// What is left out of an object, at any depth: what providers and frameworks add, and what some write and others do not.
fn is_left_out(name: &str, value: &str) -> bool {
    matches!(name, "cache_control" | "annotations" | "index") || matches!(value, "null" | "[]")
}

/// As [`is_left_out`], and how far a provider was with it.
fn is_left_out_of_item(name: &str, value: &str) -> bool {
    is_left_out(name, value) || name == "status"
}

/// As [`is_left_out`], and the ids of calls.
fn is_left_out_of_call(name: &str, value: &str) -> bool {
    is_left_out(name, value) || matches!(name, "id" | "call_id" | "tool_use_id")
}

impl Fingerprint {
    /// That of a stored message.
    #[must_use]
    pub fn of(message: &Message) -> Self {
        let compared = Compared {
            role: message.role,
            content: &message.content,
            tool_calls: message.tool_calls.as_ref(),
            item: Details::of(&message.details).item.as_ref(),
            beside: message.metadata.as_ref(),
        };
        compared.fingerprint()
    }
}

impl Compared<'_> {
    /// Hashed are the role; the texts, where neighbours are joined with line feeds; the other parts, in canonical form; the
    /// calls by name and arguments. What stands for content is hashed only where there is none.
    pub(crate) fn fingerprint(&self) -> Fingerprint {
        let mut said = Said::default();
        match self.content {
            Content::Text(text) => said.texts.push(text.clone()),
            Content::Parts { json, .. } => said.parts(json.as_str(), Place::Content),
        }
        said.end_text();
        for call in elements_of(self.tool_calls) {
            said.call(call);
        }
        self.add_beside(&mut said);
        if said.is_empty()
            && let Some(item) = self.item
        {
            said.add(b'i', &canonical_without(item.as_str(), is_left_out_of_item));
        }
        let mut hasher = Sha256::new();
        // The version of the form: without a key.
        hasher.update([0]);
        hasher.update(tagged(b'r', self.role.as_str()));
        hasher.update(&said.content);
        hasher.update(&said.calls);
        Fingerprint { hash: SyncHash(hasher.finalize().into()), is_long: said.is_long }
    }

    /// In OpenAI's Chat Completions spoken words, a function call or a refusal stand beside an empty content.
    fn add_beside(&self, said: &mut Said) {
        let fields = self.beside.and_then(|it| members(it.as_str()).ok()).unwrap_or_default();
        let field = |name: &str| value_of(&fields, name);
        let text = self.content.text();
        if let Some(audio) = field("audio").and_then(|audio| members(audio).ok()) {
            let of_audio = |name: &str| value_of(&audio, name).and_then(string);
            let is_spoken = text.is_empty() || of_audio("transcript").as_deref() == Some(text);
            // A later request names the audio, and leaves out its transcript.
            if let Some(id) = of_audio("id").filter(|_| is_spoken) {
                said.content.clear();
                said.add(b'f', &id);
            }
        }
        if !said.is_empty() {
            return;
        }
        if let Some(call) = field("function_call") {
            said.call(call);
        } else if let Some(refusal) = field("refusal").and_then(string) {
            said.texts.push(refusal.into_owned());
            said.end_text();
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Content,
    ToolResult,
}

/// What was read, in the form in which it is hashed.
#[derive(Default)]
struct Said {
    content: Vec<u8>,
    /// Texts that are still to be joined.
    texts: Vec<String>,
    /// Calls are hashed behind the content, wherever it has them.
    calls: Vec<u8>,
    is_long: bool,
}

impl Said {
    fn is_empty(&self) -> bool {
        self.content.is_empty() && self.calls.is_empty()
    }

    fn add(&mut self, tag: u8, text: &str) {
        self.content.extend(tagged(tag, text));
    }

    fn end_text(&mut self) {
        let text = std::mem::take(&mut self.texts).join("\n");
        let text = text.trim_end_matches(WHITE_SPACE);
        if !text.is_empty() {
            self.is_long |= text.chars().take(LONG).count() == LONG;
            self.add(b't', text);
        }
    }

    fn parts(&mut self, array: &str, place: Place) {
        for part in array_elements(array).unwrap_or_default() {
            match string(part) {
                Some(text) => self.texts.push(text.into_owned()),
                None => self.part(part, place),
            }
        }
    }

    fn part(&mut self, part: &str, place: Place) {
        let fields = members(part).unwrap_or_default();
        let field = |name: &str| value_of(&fields, name);
        let kind = field("type").and_then(string);
        match kind.as_deref() {
            Some("text" | "output_text" | "input_text") => self.texts.extend(text(field("text"))),
            None if field("text").is_some() => self.texts.extend(text(field("text"))),
            Some("refusal") => self.texts.extend(text(field("refusal"))),
            Some("reasoning" | "thinking" | "redacted_thinking") => {}
            Some("tool_use" | "server_tool_use" | "mcp_tool_use") => self.call(part),
            Some("tool_result") if place == Place::Content => {
                self.end_text();
                let mut result = Self::default();
                match field("content") {
                    Some(array) if array.starts_with('[') => result.parts(array, Place::ToolResult),
                    other => result.texts.extend(text(other)),
                }
                result.end_text();
                self.add(b'b', "");
                self.content.append(&mut result.content);
                self.content.append(&mut result.calls);
                self.add(b'e', "");
                self.is_long |= result.is_long;
            }
            _ => {
                self.end_text();
                self.add(b'o', &canonical_without(part, is_left_out));
            }
        }
    }

    /// A call in one of its forms: with `function` or `custom` in it, or with name and arguments at its top.
    fn call(&mut self, call: &str) {
        let fields = members(call).unwrap_or_default();
        let inner = value_of(&fields, "function").or_else(|| value_of(&fields, "custom"));
        let inner = inner.and_then(|inner| members(inner).ok()).unwrap_or(fields);
        let field = |name: &str| value_of(&inner, name);
        let Some(name) = field("name").and_then(string) else {
            let form = canonical_without(call, is_left_out_of_call);
            return self.calls.extend(tagged(b'k', &form));
        };
        let arguments = ["arguments", "args", "input"].into_iter().find_map(field).unwrap_or("{}");
        self.calls.extend(tagged(b'c', &name));
        self.calls.extend(match string(arguments) {
            None => tagged(b'a', &canonical(arguments)),
            Some(text) if text.trim_ascii().is_empty() => tagged(b'a', "{}"),
            Some(json) if serde_json::from_str::<IgnoredAny>(&json).is_ok() => {
                tagged(b'a', &canonical(&json))
            }
            Some(text) => tagged(b'x', &text),
        });
    }
}

/// A piece of what is hashed, with its tag and its length, so that no two lists of pieces have the same bytes.
fn tagged(tag: u8, text: &str) -> Vec<u8> {
    let mut piece = Vec::with_capacity(text.len() + 9);
    piece.push(tag);
    piece.extend((text.len() as u64).to_be_bytes());
    piece.extend(text.as_bytes());
    piece
}

fn elements_of(array: Option<&Json>) -> Vec<&str> {
    array.and_then(|array| array_elements(array.as_str())).unwrap_or_default()
}

/// The value of a member that is not null.
fn value_of<'a>(members: &[crate::json::Member<'a>], wanted: &str) -> Option<&'a str> {
    let (_, value) = members.iter().find(|(name, value)| name == wanted && *value != "null")?;
    Some(value)
}

/// A string, or the `value` of an object.
fn text(json: Option<&str>) -> Option<String> {
    let json = json?;
    if let Some(text) = string(json) {
        return Some(text.into_owned());
    }
    value_of(&members(json).ok()?, "value").and_then(string).map(std::borrow::Cow::into_owned)
}

//! Parameters of paths and queries: each is declared once, with its schema and its parser.
//!
//! An endpoint lists its parameters. A parameter that is not listed is refused by its name, so a mistyped filter never
//! returns more than it should. All faults of a request are reported together.

use std::collections::BTreeMap;
use std::str::FromStr as _;

use chrono::{DateTime, Datelike as _, NaiveDate, Utc};
use database::DeadLetterStatus;
use domain::failure::DeadLetterReason;
use domain::ids::MAX_ID_BYTES;
use domain::status::ConversationStatus;
use domain::time::Timestamp;
use domain::words::{MAX_SEARCH_BYTES, SearchWords};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::problem::{Fault, Problem};

/// Where a parameter stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Path,
    Query,
}

/// A parameter.
pub(crate) struct Parameter<T> {
    pub(crate) name: &'static str,
    pub(crate) place: Place,
    /// For the OpenAPI document.
    pub(crate) about: &'static str,
    pub(crate) schema: fn() -> Value,
    pub(crate) parse: fn(&str) -> Result<T, String>,
}

/// What all parameters have in common.
pub(crate) trait Declared: Sync {
    fn name(&self) -> &'static str;
    fn place(&self) -> Place;
    fn about(&self) -> &'static str;
    fn schema(&self) -> Value;
}

impl<T> Declared for Parameter<T> {
    fn name(&self) -> &'static str {
        self.name
    }
    fn place(&self) -> Place {
        self.place
    }
    fn about(&self) -> &'static str {
        self.about
    }
    fn schema(&self) -> Value {
        (self.schema)()
    }
}

/// The parameters of a request.
#[derive(Debug, Clone)]
pub(crate) struct Parameters {
    values: BTreeMap<String, String>,
    faults: Vec<Fault>,
}

impl Parameters {
    /// The parameters of a path and a query; those that are not declared are faults.
    pub(crate) fn of(
        path: impl Iterator<Item = (String, String)>,
        query: &str,
        declared: &[&dyn Declared],
    ) -> Self {
        let mut parameters = Self { values: path.collect(), faults: Vec::new() };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (Some(name), Some(value)) = (decoded(name), decoded(value)) else {
                let detail = "it is not percent-encoded UTF-8".to_owned();
                parameters.fault(name, detail);
                continue;
            };
            let is_declared =
                declared.iter().any(|it| it.place() == Place::Query && it.name() == name);
            if !is_declared {
                let names = declared.iter().filter(|it| it.place() == Place::Query);
                let names = names.map(|it| it.name()).collect::<Vec<_>>().join(", ");
                let known = match names.is_empty() {
                    true => "this endpoint has none".to_owned(),
                    false => format!("this endpoint has {names}"),
                };
                parameters.fault(&name, format!("unknown parameter; {known}"));
            } else if parameters.values.insert(name.clone(), value).is_some() {
                parameters.fault(&name, "it is given more than once".to_owned());
            }
        }
        parameters
    }

    /// The value of a parameter that may be absent. An invalid one is noted as a fault, and absent.
    pub(crate) fn optional<T>(&mut self, parameter: &Parameter<T>) -> Option<T> {
        let value = self.values.get(parameter.name)?;
        match (parameter.parse)(value) {
            Ok(value) => Some(value),
            Err(detail) => {
                self.fault(parameter.name, detail);
                None
            }
        }
    }

    /// The value as it was sent.
    pub(crate) fn raw(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    pub(crate) fn fault(&mut self, name: &str, detail: String) {
        self.faults.push(Fault { detail, parameter: Some(name.to_owned()), pointer: None });
    }

    /// Fails if there was a fault.
    pub(crate) fn checked(&mut self) -> Result<(), Problem> {
        match self.faults.is_empty() {
            true => Ok(()),
            false => Err(Problem::invalid(std::mem::take(&mut self.faults))),
        }
    }
}

/// The text of a part of a query: `+` is a space.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes().iter();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || char::from(*rest.next()?).to_digit(16);
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            byte => *byte,
        });
    }
    String::from_utf8(bytes).ok()
}

const fn query<T>(
    name: &'static str,
    about: &'static str,
    schema: fn() -> Value,
    parse: fn(&str) -> Result<T, String>,
) -> Parameter<T> {
    Parameter { name, place: Place::Query, about, schema, parse }
}

const fn path(name: &'static str, about: &'static str) -> Parameter<String> {
    Parameter { name, place: Place::Path, about, schema: id_schema, parse: id }
}

pub(crate) const TENANT_ID: Parameter<String> = path("tenant_id", "The tenant");
pub(crate) const CONVERSATION_ID: Parameter<String> = path("conversation_id", "The conversation");
pub(crate) const AGENT: Parameter<String> = path("agent_id", "The agent");

pub(crate) const TENANT: Parameter<String> = query(
    "tenant_id",
    "The tenant. Required with the key of an operator; with another key it may be left out",
    id_schema,
    id,
);
pub(crate) const TENANT_OR_EVERY: Parameter<String> = query(
    "tenant_id",
    "The tenant. Without it the key of an operator sees the dead letters of every tenant, and those that name none",
    id_schema,
    id,
);
pub(crate) const STATUS: Parameter<ConversationStatus> = query(
    "status",
    "Only conversations in this status",
    || json!({ "type": "string", "enum": ConversationStatus::ALL.map(ConversationStatus::as_str) }),
    |text| {
        ConversationStatus::parse(text).ok_or_else(|| {
            let all = ConversationStatus::ALL.map(ConversationStatus::as_str);
            format!("it must be one of {}", all.join(", "))
        })
    },
);
pub(crate) const AGENT_ID: Parameter<String> =
    query("agent_id", "Only conversations with this agent", id_schema, id);
pub(crate) const USER_ID: Parameter<String> =
    query("user_id", "Only conversations with this user", id_schema, id);
pub(crate) const MODEL: Parameter<String> =
    query("model", "Only conversations with this model", text_schema, text);
pub(crate) const FROM: Parameter<DateTime<Utc>> =
    query("from", "Only conversations that began at this time or later", time_schema, time);
pub(crate) const TO: Parameter<DateTime<Utc>> =
    query("to", "Only conversations that began before this time", time_schema, time);
pub(crate) const TEXT: Parameter<SearchWords> = query(
    "text",
    "Only archived conversations with all of these words, in any order: at most 16 different ones",
    || json!({ "type": "string", "minLength": 1, "maxLength": MAX_SEARCH_BYTES }),
    |text| SearchWords::parse(text).map_err(|fault| fault.to_string()),
);
pub(crate) const FIRST_DAY: Parameter<NaiveDate> =
    query("from", "The first day, in UTC. Default: 29 days before the last one", day_schema, day);
pub(crate) const LAST_DAY: Parameter<NaiveDate> =
    query("to", "The last day, in UTC. Default: today", day_schema, day);
pub(crate) const CURSOR: Parameter<String> = query(
    "cursor",
    "Where the page begins: `next` of the page before. It belongs to the tenant, the filter and the order",
    || json!({ "type": "string", "maxLength": 2048 }),
    |text| match text.len() {
        ..=2048 => Ok(text.to_owned()),
        _ => Err("it has more than 2048 bytes".to_owned()),
    },
);
pub(crate) const CONVERSATIONS: Parameter<u32> = query(
    "limit",
    "The most conversations of a page",
    || json!({ "type": "integer", "minimum": 1, "maximum": 200, "default": 50 }),
    |text| whole(text, 200),
);
pub(crate) const MESSAGES: Parameter<u32> = query(
    "limit",
    "The most messages of a page",
    || json!({ "type": "integer", "minimum": 1, "maximum": 1000, "default": 100 }),
    |text| whole(text, 1_000),
);
pub(crate) const DEAD_LETTER_ID: Parameter<Uuid> = Parameter {
    name: "dead_letter_id",
    place: Place::Path,
    about: "The dead letter",
    schema: || json!({ "type": "string", "format": "uuid" }),
    parse: |text| Uuid::try_parse(text).map_err(|_| "it is no UUID".to_owned()),
};
pub(crate) const DEAD_LETTER_STATUS: Parameter<Statuses> = query(
    "status",
    "Only dead letters in this status; `any`: in every status",
    || json!({ "type": "string", "enum": ["open", "replayed", "discarded", "any"], "default": "open" }),
    |text| match (text, DeadLetterStatus::parse(text)) {
        ("any", _) => Ok(Statuses::Any),
        (_, Some(status)) => Ok(Statuses::One(status)),
        _ => Err("it must be one of open, replayed, discarded, any".to_owned()),
    },
);
pub(crate) const QUEUE: Parameter<String> =
    query("queue", "Only dead letters of this work queue", text_schema, text);
pub(crate) const REASON: Parameter<DeadLetterReason> = query(
    "reason",
    "Only dead letters with this reason",
    || json!({ "type": "string", "enum": DeadLetterReason::NAMES }),
    |text| {
        let names = DeadLetterReason::NAMES.join(", ");
        DeadLetterReason::parse(text).ok_or_else(|| format!("it must be one of {names}"))
    },
);
pub(crate) const ACTION_TYPE: Parameter<String> =
    query("action_type", "Only dead letters of this type of action", text_schema, text);
pub(crate) const DEAD_LETTERS: Parameter<u32> = query(
    "limit",
    "The most dead letters of a page",
    || json!({ "type": "integer", "minimum": 1, "maximum": 200, "default": 50 }),
    |text| whole(text, 200),
);
pub(crate) const DRY_RUN: Parameter<()> = query(
    "dry_run",
    "`1`: the actions are checked and not published",
    || json!({ "type": "string", "enum": ["1"] }),
    |text| if text == "1" { Ok(()) } else { Err("it must be 1, or absent".to_owned()) },
);
pub(crate) const WAIT: Parameter<Wait> = query(
    "wait",
    "`durable`: the answer comes when PostgreSQL has committed what the actions do",
    wait_schema,
    wait,
);
pub(crate) const WAIT_FOR_REPLAY: Parameter<Wait> = query(
    "wait",
    "`durable`: the answer comes when PostgreSQL has committed the message, or when the action has failed again",
    wait_schema,
    wait,
);
pub(crate) const ORDER: Parameter<Order> = query(
    "order",
    "`asc`: from the first message on; `desc`: from the last message back",
    || json!({ "type": "string", "enum": ["asc", "desc"], "default": "asc" }),
    |text| match text {
        "asc" => Ok(Order::Ascending),
        "desc" => Ok(Order::Descending),
        _ => Err("it must be asc or desc".to_owned()),
    },
);

/// Dead letters in which status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Statuses {
    /// In this one.
    One(DeadLetterStatus),
    /// In every one.
    Any,
}

/// For what an answer waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    /// For the commit.
    Durable,
}

/// In which order messages are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Order {
    #[default]
    Ascending,
    Descending,
}

fn wait_schema() -> Value {
    json!({ "type": "string", "enum": ["durable"] })
}

fn wait(text: &str) -> Result<Wait, String> {
    match text {
        "durable" => Ok(Wait::Durable),
        _ => Err("it must be durable, or absent".to_owned()),
    }
}

fn id_schema() -> Value {
    json!({ "type": "string", "minLength": 1, "maxLength": MAX_ID_BYTES })
}

fn id(text: &str) -> Result<String, String> {
    domain::ids::TenantId::new(text).map(|id| id.to_string()).map_err(|fault| format!("it {fault}"))
}

fn text_schema() -> Value {
    json!({ "type": "string", "minLength": 1, "maxLength": 1024 })
}

fn text(text: &str) -> Result<String, String> {
    match text.len() {
        0 => Err("it is empty".to_owned()),
        1..=1024 if !text.contains('\0') => Ok(text.to_owned()),
        _ => Err("it has more than 1024 bytes, or the character U+0000".to_owned()),
    }
}

fn time_schema() -> Value {
    json!({ "type": "string", "format": "date-time" })
}

fn time(text: &str) -> Result<DateTime<Utc>, String> {
    Timestamp::parse(text)
        .map(DateTime::from)
        .map_err(|fault| format!("{fault}; write a time as 2026-01-31T09:30:00Z, with + as %2B"))
}

fn day_schema() -> Value {
    json!({ "type": "string", "format": "date" })
}

fn day(text: &str) -> Result<NaiveDate, String> {
    let is_plain =
        text.len() == 10 && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
    let day = NaiveDate::from_str(text)
        .ok()
        .filter(|day| is_plain && (1970..=2199).contains(&day.year()));
    day.ok_or_else(|| "it is no day such as 2026-01-31, from 1970 to 2199".to_owned())
}

fn whole(text: &str, most: u32) -> Result<u32, String> {
    let number = text.parse().ok().filter(|number| (1..=most).contains(number));
    number.ok_or_else(|| format!("it must be a whole number from 1 to {most}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(query: &str) -> Parameters {
        Parameters::of(std::iter::empty(), query, &[&STATUS, &CONVERSATIONS, &USER_ID])
    }

    #[test]
    fn all_faults_of_a_query_are_reported_together() {
        let mut parameters =
            parameters("status=open&limit=0&state=active&user_id=a&user_id=b&x=%ff");
        assert_eq!(parameters.optional(&STATUS), None);
        assert_eq!(parameters.optional(&CONVERSATIONS), None);
        let mut named: Vec<_> =
            parameters.faults.iter().map(|it| it.parameter.clone().unwrap()).collect();
        named.sort();
        assert_eq!(named, ["limit", "state", "status", "user_id", "x"]);
        assert!(parameters.checked().is_err());
    }

    #[test]
    fn values_are_decoded() {
        let mut parameters = parameters("user_id=a%2Fb+c%C3%A9&status=active&");
        assert_eq!(parameters.optional(&USER_ID).as_deref(), Some("a/b cé"));
        assert_eq!(parameters.optional(&STATUS), Some(ConversationStatus::Active));
        assert!(parameters.checked().is_ok());
    }
}

//! Publishing actions: what an agent may publish to RabbitMQ, over HTTP.
//!
//! All actions of a request are checked as the workers check them; if one is refused, none is published. Their text is
//! passed on as it was sent: only `tenant_id` and `action_id` are added where they are missing.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use access::Scope;
use axum::http::StatusCode;
use broker::{ExpectedReply, Publication, PublishError};
use domain::action::{Action, ActionKind};
use domain::decode::{DecodeContext, decode};
use domain::envelope::Envelope;
use domain::failure::Refusal;
use domain::ids::TenantId;
use domain::json::Json;
use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::after;
use crate::audit::Audited;
use crate::endpoint::{Answer, Call};
use crate::parameters::{self as p, Wait};
use crate::problem::{Fault, Kind, Problem};
use crate::views::{ActionStatus, PublishedActionView, PublishedActionsView};

/// The most actions of a request.
const MOST_ACTIONS: usize = 1_000;

/// How long a request waits for the connection on which replies come. Without it the answer comes after the confirm.
const REPLIES_CONNECT: Duration = Duration::from_secs(2);

/// The header whose value becomes the `action_id`.
pub(crate) const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// W3C's trace context asks for 512 characters to be passed on (Trace Context, 3.3.1.5). Each action has a copy of it.
const LONGEST_TRACESTATE: usize = 512;

/// AMQP's limit of a property such as `message_id` (short string, AMQP 0-9-1, 4.2.5.3).
const LONGEST_PROPERTY: usize = 255;

/// The actions of a request, checked.
struct Request {
    tenant: TenantId,
    actions: Vec<Checked>,
    prefix: Prefix,
}

/// How pointers to an action begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Prefix {
    /// The body is the action.
    Whole,
    /// The body is an array.
    Position,
}

impl Prefix {
    fn of(self, position: usize) -> String {
        match self {
            Self::Whole => "#".to_owned(),
            Self::Position => format!("#/{position}"),
        }
    }
}

/// An action of the request, checked.
struct Checked {
    action: Action,
    body: Vec<u8>,
}

/// A reply, as far as this endpoint reads it.
#[derive(Deserialize)]
struct ReplyRead {
    data: Option<Json>,
    error: Option<ErrorRead>,
}

#[derive(Deserialize)]
struct ErrorRead {
    error_type: String,
    message: String,
}

/// The data of a reply to `conversation.save_messages`, as far as this endpoint reads it.
#[derive(Deserialize)]
struct ElementsRead {
    messages: Vec<ElementRead>,
}

#[derive(Deserialize)]
struct ElementRead {
    position: u32,
    error: Option<ErrorRead>,
}

impl ErrorRead {
    fn at(self, pointer: String) -> Fault {
        let detail = format!("{}: {}", self.error_type, self.message);
        Fault { detail, parameter: None, pointer: Some(pointer) }
    }
}

/// The messages of an action that were refused while others of it are stored.
fn refused_elements(data: &Json) -> Vec<(u32, ErrorRead)> {
    let read: Option<ElementsRead> = serde_json::from_str(data.as_str()).ok();
    let elements = read.into_iter().flat_map(|it| it.messages);
    elements.filter_map(|it| Some((it.position, it.error?))).collect()
}

pub(crate) async fn publish(mut call: Call) -> Result<Answer, Problem> {
    let dry_run = call.parameters.optional(&p::DRY_RUN).is_some();
    let wait = call.parameters.optional(&p::WAIT);
    // Only checked: `Call::tenant` reads it.
    let _named = call.parameters.optional(&p::TENANT);
    call.parameters.checked()?;
    let Request { tenant, actions, prefix } = checked(&call, wait)?;
    let audited = Audited::Counted(Some(tenant));
    let mut views: Vec<PublishedActionView> = actions.iter().enumerate().map(view).collect();
    if dry_run {
        return Answer::json(&PublishedActionsView { actions: views }, audited);
    }
    let replies: Vec<Option<ExpectedReply>> = match wait {
        Some(Wait::Durable) => {
            let limit = REPLIES_CONNECT.min(call.api.settings.durable_wait);
            let expect = actions.iter().map(|_| call.api.replies.expect(limit));
            futures_util::future::join_all(expect).await
        }
        None => actions.iter().map(|_| None).collect(),
    };
    confirmed(&call, actions, &replies).await?;
    views.iter_mut().for_each(|view| view.status = ActionStatus::Accepted);
    let is_durable = settled(&call, &mut views, replies, prefix).await?;
    let answer = Answer::json(&PublishedActionsView { actions: views }, audited)?;
    Ok(match is_durable {
        true => with_position(answer, &call).await,
        false => answer.with_status(StatusCode::ACCEPTED),
    })
}

/// The answer with a position from after the commit, where there is a read replica that may lack it.
async fn with_position(answer: Answer, call: &Call) -> Answer {
    let Some(replica) = &call.api.read_replica else { return answer };
    match replica.position().await.and_then(after::header) {
        Some(header) => answer.with_header(after::AFTER, header),
        None => answer,
    }
}

/// The actions of the request, or all that is wrong with them.
fn checked(call: &Call, wait: Option<Wait>) -> Result<Request, Problem> {
    let invalid = |pointer: &str, detail: String| {
        let pointer = Some(format!("#{pointer}"));
        Problem::invalid(vec![Fault { detail, parameter: None, pointer }])
    };
    let text = std::str::from_utf8(&call.body)
        .map_err(|error| invalid("", format!("the body is not UTF-8: {error}")))?;
    let is_array = text.trim_start().starts_with('[');
    let texts = match is_array {
        true => serde_json::from_str(text).map(|Texts(texts)| texts),
        false => serde_json::from_str(text).map(|text| vec![text]),
    };
    let texts: Vec<&RawValue> = texts.map_err(|error| invalid("", error.to_string()))?;
    if texts.is_empty() || texts.len() > MOST_ACTIONS {
        let detail = format!("the array must have 1 to {MOST_ACTIONS} actions");
        return Err(invalid("", detail));
    }
    let key = idempotency_key(call)?;
    let tenant = call.tenant()?;
    let (mut actions, mut faults, mut is_foreign) = (Vec::new(), Vec::new(), false);
    let mut missing_scope = None;
    for (position, text) in texts.iter().enumerate() {
        let prefix = if is_array { Prefix::Position } else { Prefix::Whole }.of(position);
        let own_key =
            key.as_deref().map(|key| if is_array { key_at(key, position) } else { key.to_owned() });
        match check(call, text.get(), tenant.as_str(), own_key.as_deref(), wait) {
            Ok(checked) => {
                let common = checked.action.common();
                let sent_key = common.action_id.as_ref().map(AsRef::as_ref);
                if own_key.is_some() && sent_key != own_key.as_deref() {
                    faults.push(Fault {
                        detail: "it differs from the header Idempotency-Key; send one of them"
                            .to_owned(),
                        parameter: None,
                        pointer: Some(format!("{prefix}/action_id")),
                    });
                }
                if fields_of(text.get()).is_some_and(|it| it.contains_key("callback_queue_name")) {
                    faults.push(Fault {
                        detail: "over HTTP no reply is sent to a queue; leave it out, and use ?wait=durable".to_owned(),
                        parameter: None,
                        pointer: Some(format!("{prefix}/callback_queue_name")),
                    });
                }
                is_foreign |= common.key.tenant != tenant;
                let scope = scope_of(common.kind);
                match scope {
                    Some(scope) if !call.caller.may(scope) => missing_scope = Some(scope),
                    Some(_) => {}
                    None => faults.push(Fault {
                        detail: "it only reads; this endpoint publishes what changes something"
                            .to_owned(),
                        parameter: None,
                        pointer: Some(format!("{prefix}/action_type")),
                    }),
                }
                let refused = checked.action.refused_elements();
                faults.extend(refused.map(|refusal| fault(&prefix, refusal)));
                actions.push(checked);
            }
            Err(refusal) => faults.push(fault(&prefix, &refusal)),
        }
    }
    // First, so that nothing else is learnt about another tenant.
    if is_foreign {
        call.api.note_foreign_tenant(&call.caller);
        return Err(Problem::not_found());
    }
    let users = call.api.settings.users.amqp_users.as_ref();
    if let Some(Err(refusal)) = users.map(|it| it.check(call.api.amqp_user.as_deref(), &tenant)) {
        return Err(Problem::new(Kind::Forbidden, refusal.detail));
    }
    if let Some(scope) = missing_scope {
        let detail = format!("one of the actions needs a key with the scope {}", scope.as_str());
        return Err(Problem::new(Kind::Forbidden, detail));
    }
    let prefix = if is_array { Prefix::Position } else { Prefix::Whole };
    if faults.is_empty() {
        Ok(Request { tenant, actions, prefix })
    } else {
        Err(Problem::invalid(faults))
    }
}

/// The texts of an array: of a longer one than is allowed, only one more. Four million numbers have 8 MiB; their places in
/// that text would have 64 MiB.
struct Texts<'a>(Vec<&'a RawValue>);

impl<'de> Deserialize<'de> for Texts<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(TextsVisitor)
    }
}

struct TextsVisitor;

impl<'de> Visitor<'de> for TextsVisitor {
    type Value = Texts<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of actions")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Self::Value, A::Error> {
        let mut texts = Vec::new();
        while texts.len() <= MOST_ACTIONS {
            match array.next_element()? {
                Some(text) => texts.push(text),
                None => return Ok(Texts(texts)),
            }
        }
        while let Some(IgnoredAny) = array.next_element()? {}
        Ok(Texts(texts))
    }
}

fn check(
    call: &Call,
    text: &str,
    tenant: &str,
    key: Option<&str>,
    wait: Option<Wait>,
) -> Result<Checked, Box<Refusal>> {
    // The decoder refuses it whatever it has. Its fields may be a million, which take many times their text.
    let is_too_large = text.len() > call.api.settings.max_body_bytes;
    let body = if is_too_large { text.into() } else { completed(text, tenant, key) };
    let context = DecodeContext {
        received_at: call.api.clock.now(),
        max_body_bytes: call.api.settings.max_body_bytes,
        new_id: &Uuid::now_v7,
    };
    // An action that needs a reply gets one with `wait=durable`.
    let reply_to = wait.map(|Wait::Durable| "replies of the API");
    let envelope = Envelope { reply_to, ..Envelope::default() };
    let action = decode(&body, &envelope, &context).map_err(Box::new)?;
    Ok(Checked { action, body })
}

/// The fields of an action, at the top level and below `data`, with their texts; those that are null are absent. `None`:
/// it is no object.
fn fields_of(text: &str) -> Option<BTreeMap<String, &RawValue>> {
    let mut fields: BTreeMap<String, &RawValue> = serde_json::from_str(text).ok()?;
    let nested = fields
        .get("data")
        .and_then(|it| serde_json::from_str::<BTreeMap<String, &RawValue>>(it.get()).ok());
    for (name, value) in nested.unwrap_or_default() {
        fields.entry(name).or_insert(value);
    }
    fields.retain(|_, value| value.get() != "null");
    Some(fields)
}

/// The text with `tenant_id` and `action_id` where it has none, also below `data`; else as it is. What is no object is left
/// to the decoder.
fn completed(text: &str, tenant: &str, key: Option<&str>) -> Vec<u8> {
    let fields: Option<BTreeMap<String, &RawValue>> = serde_json::from_str(text).ok();
    let (Some(fields), Some(rest)) = (fields, text.trim_start().strip_prefix('{')) else {
        return text.as_bytes().to_vec();
    };
    let missing = [("tenant_id", Some(tenant)), ("action_id", key)].into_iter();
    let missing: Vec<_> = missing.filter(|(name, _)| !fields.contains_key(*name)).collect();
    // Read only where something is missing: it may be large.
    let nested = (!missing.is_empty()).then(|| fields_of(text)).flatten().unwrap_or_default();
    let missing = missing.into_iter().filter(|(name, _)| !nested.contains_key(*name));
    let mut added: Vec<String> = missing
        .filter_map(|(name, value)| Some(format!("\"{name}\":{}", serde_json::Value::from(value?))))
        .collect();
    let is_added = !added.is_empty();
    if is_added && !fields.is_empty() {
        // A comma before the first field that was sent.
        added.push(String::new());
    }
    if !is_added {
        return text.as_bytes().to_vec();
    }
    let added = format!("{{{}", added.join(","));
    let mut body = added.into_bytes();
    body.extend_from_slice(rest.as_bytes());
    body
}

/// The idempotency key of an action of an array: a UUID of key and position, so that no key of a single action can be the
/// same.
fn key_at(key: &str, position: usize) -> String {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("{position} {key}").as_bytes()).to_string()
}

fn idempotency_key(call: &Call) -> Result<Option<String>, Problem> {
    let Some(value) = call.headers.get(IDEMPOTENCY_KEY) else { return Ok(None) };
    let text = value.to_str().ok().map(str::trim);
    let quoted = |text: &'_ str| text.len() > 1 && text.starts_with('"') && text.ends_with('"');
    let text = text.map(|text| if quoted(text) { &text[1..text.len() - 1] } else { text });
    let text = text.filter(|text| text.bytes().all(|byte| byte.is_ascii_graphic()));
    let key = text.and_then(|text| domain::ids::ActionId::new(text).ok());
    key.map(|key| Some(key.to_string())).ok_or_else(|| {
        Problem::new(
            Kind::Invalid,
            "the header Idempotency-Key must have 1 to 512 visible ASCII characters",
        )
    })
}

/// The scope that publishing an action needs; `None`: it only reads.
fn scope_of(kind: ActionKind) -> Option<Scope> {
    match kind {
        ActionKind::Erase => Some(Scope::Erase),
        _ if kind.is_request() => None,
        _ => Some(Scope::Write),
    }
}

fn fault(prefix: &str, refusal: &Refusal) -> Fault {
    let path = refusal.field.as_deref().unwrap_or_default();
    // `messages[3].role` becomes `/messages/3/role`.
    let segments = path.split(['.', '[', ']']).filter(|segment| !segment.is_empty());
    let pointer = segments.map(|it| format!("/{}", it.replace('~', "~0").replace('/', "~1")));
    let pointer = Some(format!("{prefix}{}", pointer.collect::<String>()));
    Fault { detail: refusal.detail.clone(), parameter: None, pointer }
}

fn view((position, checked): (usize, &Checked)) -> PublishedActionView {
    let common = checked.action.common();
    PublishedActionView {
        position,
        action_type: common.kind.as_str().to_owned(),
        status: ActionStatus::Valid,
        conversation_id: common.key.conversation.to_string(),
        id: common.resolved_id.to_string(),
        data: None,
    }
}

/// Whether this is a `traceparent` (Trace Context, 3.2): version, trace, parent and flags in hexadecimal digits.
fn is_traceparent(text: &str) -> bool {
    let lengths: Vec<usize> = text.split('-').map(str::len).collect();
    lengths == [2, 32, 16, 2] && text.bytes().all(|byte| byte == b'-' || byte.is_ascii_hexdigit())
}

/// Publishes them and waits for the confirms.
async fn confirmed(
    call: &Call,
    actions: Vec<Checked>,
    replies: &[Option<ExpectedReply>],
) -> Result<(), Problem> {
    let header = |name: &str| Some(call.headers.get(name)?.to_str().ok()?.to_owned());
    // What is no trace context is left out, as W3C's recommendation says.
    let traceparent = header("traceparent").filter(|it| is_traceparent(it));
    let tracestate =
        header("tracestate").filter(|it| traceparent.is_some() && it.len() <= LONGEST_TRACESTATE);
    let publications = actions.into_iter().zip(replies).map(|(Checked { action, body }, reply)| {
        let mut publication = Publication::action(action.kind().as_str(), body);
        // The id that was derived or drawn here: a redelivery, and another request with the same text, keep it.
        let id = action.common().resolved_id.as_str();
        if id.len() <= LONGEST_PROPERTY {
            publication.message_id = id.to_owned();
        }
        publication.user_id.clone_from(&call.api.amqp_user);
        publication.traceparent.clone_from(&traceparent);
        publication.tracestate.clone_from(&tracestate);
        publication.reply_to = reply.as_ref().map(|reply| reply.queue.clone());
        publication.correlation_id = reply.as_ref().map(|reply| reply.correlation_id.clone());
        Arc::new(publication)
    });
    let results = call.api.publisher.publish_all(publications.collect::<Vec<_>>()).await;
    let failed = results.into_iter().enumerate().find_map(|(n, result)| Some((n, result.err()?)));
    let Some((position, error)) = failed else { return Ok(()) };
    let detail = match &error {
        PublishError::Unroutable { .. } => {
            "no queue takes the action; the operator has to run `verbatim setup`"
        }
        PublishError::TooLong(_) => "an id of the action is too long for RabbitMQ",
        _ => {
            "RabbitMQ did not confirm every action; repeat the whole request with the same Idempotency-Key or the same \
             ids: each action takes effect once"
        }
    };
    let kind = match error {
        PublishError::TooLong(_) => Kind::Invalid,
        _ => Kind::NotPublished,
    };
    let problem = Problem::new(kind, format!("action {position}: {detail}"));
    Err(problem.retry_after(Duration::from_secs(2)).caused_by(&error))
}

/// Waits for the replies; returns whether every action has taken effect.
async fn settled(
    call: &Call,
    views: &mut [PublishedActionView],
    replies: Vec<Option<ExpectedReply>>,
    prefix: Prefix,
) -> Result<bool, Problem> {
    let limit = call.api.settings.durable_wait;
    let waiting = replies.into_iter().map(|reply| async move { reply?.within(limit).await });
    let replies = futures_util::future::join_all(waiting).await;
    let (mut is_durable, mut faults, mut is_conflict) = (true, Vec::new(), true);
    for (view, reply) in views.iter_mut().zip(replies) {
        let reply = reply.and_then(|reply| serde_json::from_slice::<ReplyRead>(&reply).ok());
        match reply {
            None => is_durable = false,
            Some(ReplyRead { error: Some(error), .. }) => {
                is_conflict &= error.error_type == "conflict";
                faults.push(error.at(prefix.of(view.position)));
            }
            Some(ReplyRead { data, .. }) => {
                // Of several messages some may be stored and others refused.
                for (element, error) in data.iter().flat_map(refused_elements) {
                    is_conflict &= error.error_type == "conflict";
                    let pointer = format!("{}/messages/{element}", prefix.of(view.position));
                    faults.push(error.at(pointer));
                }
                view.status = ActionStatus::Durable;
                view.data = data;
            }
        }
    }
    match faults.is_empty() {
        true => Ok(is_durable),
        false if is_conflict => Err(Problem::with_faults(Kind::Conflict, faults)),
        false => Err(Problem::with_faults(Kind::Refused, faults)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completed_as(text: &str, key: Option<&str>) -> String {
        String::from_utf8(completed(text, "acme", key)).unwrap()
    }

    #[test]
    fn only_what_is_missing_is_added_and_the_rest_is_passed_on_as_it_was_sent() {
        assert_eq!(
            completed_as("{ \"a\" : 1.50, \"a2\":\"\\u00e9\"}", None),
            "{\"tenant_id\":\"acme\", \"a\" : 1.50, \"a2\":\"\\u00e9\"}"
        );
        assert_eq!(
            completed_as("{\"a\":1}", Some("k\"1")),
            "{\"tenant_id\":\"acme\",\"action_id\":\"k\\\"1\",\"a\":1}"
        );
        assert_eq!(completed_as("{}", None), "{\"tenant_id\":\"acme\"}");
        assert_eq!(
            completed_as(" {} ", Some("k")),
            "{\"tenant_id\":\"acme\",\"action_id\":\"k\"} "
        );
        let whole = "{\"tenant_id\":\"x\",\"action_id\":\"y\"}";
        assert_eq!(completed_as(whole, Some("k")), whole);
        assert_eq!(
            completed_as("{\"action_id\":\"y\"}", Some("k")),
            "{\"tenant_id\":\"acme\",\"action_id\":\"y\"}"
        );
        for other in ["[]", "1", "{\"a\":", "{\"a\":1} x"] {
            assert_eq!(completed_as(other, Some("k")), other);
        }
    }

    /// The ids that were given out stay the same.
    #[test]
    fn the_key_of_an_action_of_an_array_is_fixed() {
        assert_eq!(key_at("k", 0), "e0fbb570-eca9-5696-bd7d-fc378da70fad");
        assert_ne!(key_at("k", 0), key_at("k", 1));
        assert_ne!(key_at("1 k", 0), key_at("k", 1));
    }
}

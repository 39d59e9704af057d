//! Dead letters.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use database::{
    DeadLetter, DeadLetterDetail, DeadLetterState, DeadLetterStatus, DeadLetterSummary,
};
use dead_letters::ReplayReport;
use domain::failure::DeadLetterReason;
use domain::time::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};
use uuid::Uuid;

use super::time::time;

/// What a tenant's key sees in place of an internal error, which may name servers and tables.
const INTERNAL: &str =
    "the action failed for an internal reason, which the operators of the service can see";

/// Whose errors are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Errors {
    /// To an operator: all of them.
    All,
    /// To a tenant: those of its actions.
    OfActions,
}

/// A page of dead letters.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "DeadLetterList")]
pub(crate) struct DeadLetterListView<'a> {
    /// Newest first.
    dead_letters: Vec<DeadLetterView<'a>>,
    /// `cursor` of the next page; null: there is none.
    next: Option<String>,
}

/// An action that was not carried out.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "DeadLetter")]
pub(crate) struct DeadLetterView<'a> {
    /// Its id.
    id: String,
    /// The work queue in which it failed.
    queue: &'a str,
    /// Why: the class of the error.
    reason: &'a str,
    /// The field at fault.
    field: Option<&'a str>,
    /// The error.
    error: &'a str,
    /// The tenant, if the action names one that can be read.
    tenant_id: Option<&'a str>,
    /// The action's conversation, if it names one.
    conversation_id: Option<&'a str>,
    /// The action's session.
    session_id: Option<&'a str>,
    /// The id of the message.
    message_id: Option<&'a str>,
    /// The type of the action.
    action_type: Option<&'a str>,
    /// The routing key with which it was first published.
    routing_key: &'a str,
    /// How many attempts were made.
    attempts: i32,
    /// How often it was replayed before.
    replay_count: i32,
    /// The dead letter whose replay failed again and became this one.
    replay_of: Option<String>,
    /// When it first failed.
    first_failed_at: Timestamp,
    /// When it last failed.
    last_failed_at: Timestamp,
    /// When it was stored.
    stored_at: Timestamp,
    /// How often it arrived.
    copies: i64,
    /// `open`: nobody has decided about it; `replayed`; `discarded`.
    status: &'a str,
    /// When the status changed.
    status_changed_at: Option<Timestamp>,
    /// Why it was discarded.
    status_reason: Option<&'a str>,
}

/// A dead letter with its message.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "DeadLetterDetail")]
pub(crate) struct DeadLetterDetailView<'a> {
    #[serde(flatten)]
    dead_letter: DeadLetterView<'a>,
    /// The body as it arrived; null: it is not UTF-8, see `body_base64`.
    body: Option<&'a str>,
    /// The body in Base64, if it is not UTF-8.
    body_base64: Option<String>,
    /// What a replay publishes instead of the body, if an operator edited it.
    edited_body: Option<String>,
    /// The AMQP properties that the sender set.
    properties: &'a Value,
    /// The headers that the sender set.
    headers: &'a Value,
}

/// What became of a dead letter that was replayed.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ReplayedDeadLetter")]
pub(crate) struct ReplayedView<'a> {
    /// Its id.
    id: String,
    /// `replayed`: RabbitMQ confirmed the action.
    status: &'static str,
    /// The run, as the audit log names it.
    run: String,
    /// Whether the action had failed again when the answer was made. Without `wait=durable` that is too early to say.
    failed_again: bool,
    /// The dead letter that it became, if it failed again.
    failed_again_as: Option<FailedAgainView<'a>>,
}

/// A dead letter that a replay became.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "FailedAgain")]
pub(crate) struct FailedAgainView<'a> {
    /// Its id.
    id: String,
    /// Why: the class of the error.
    reason: &'a str,
    /// The field at fault.
    field: Option<&'a str>,
}

/// Why a dead letter is discarded.
#[derive(Debug, JsonSchema)]
#[schemars(rename = "Discard", deny_unknown_fields)]
pub(crate) struct DiscardBody {
    /// The reason, for the dead letter and the audit log.
    #[schemars(length(min = 1, max = 1000))]
    pub(crate) reason: String,
}

/// A dead letter that was discarded.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "DiscardedDeadLetter")]
pub(crate) struct DiscardedView {
    /// Its id.
    id: String,
    /// `discarded`.
    status: &'static str,
}

impl DiscardBody {
    /// The body, or the JSON pointer to what is wrong and what that is.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, (String, String)> {
        let mut fields: Map<String, Value> = serde_json::from_slice(bytes).map_err(|error| {
            ("#".to_owned(), format!("it must be {{\"reason\": \"why\"}}: {error}"))
        })?;
        let fault = |detail: &str| Err(("#/reason".to_owned(), detail.to_owned()));
        let reason = match fields.remove("reason") {
            Some(Value::String(reason)) => reason,
            Some(_) => return fault("it must be a text"),
            None => return fault("it is missing; say why"),
        };
        if let Some(unknown) = fields.keys().next() {
            let pointer = format!("#/{}", unknown.replace('~', "~0").replace('/', "~1"));
            return Err((pointer, "it is unknown; send `reason` alone".to_owned()));
        }
        match reason.chars().count() {
            0 => fault("it is empty; say why"),
            1..=1_000 if reason.contains('\0') => fault("it has the character U+0000"),
            1..=1_000 => Ok(Self { reason }),
            _ => fault("it has more than 1000 characters"),
        }
    }
}

impl DiscardedView {
    pub(crate) fn new(id: Uuid) -> Self {
        Self { id: id.to_string(), status: DeadLetterStatus::Discarded.as_str() }
    }
}

impl<'a> ReplayedView<'a> {
    pub(crate) fn new(id: Uuid, report: &'a ReplayReport) -> Self {
        let again = report.failed_again_as.first();
        Self {
            id: id.to_string(),
            status: DeadLetterStatus::Replayed.as_str(),
            run: report.run.to_string(),
            failed_again: again.is_some(),
            failed_again_as: again.map(|it| FailedAgainView {
                id: it.id.to_string(),
                reason: &it.reason,
                field: it.field.as_deref(),
            }),
        }
    }
}

impl<'a> DeadLetterListView<'a> {
    pub(crate) fn new(
        dead_letters: &'a [DeadLetterSummary],
        next: Option<String>,
        errors: Errors,
    ) -> Self {
        let views =
            dead_letters.iter().map(|it| DeadLetterView::new(&it.dead_letter, &it.state, errors));
        Self { dead_letters: views.collect(), next }
    }
}

impl<'a> DeadLetterDetailView<'a> {
    pub(crate) fn new(detail: &'a DeadLetterDetail, errors: Errors) -> Self {
        let message = &detail.message;
        let body = std::str::from_utf8(&message.body).ok();
        let edited = detail.edit.edited_body.as_deref();
        Self {
            dead_letter: DeadLetterView::new(&detail.dead_letter, &detail.state, errors),
            body,
            body_base64: body.is_none().then(|| STANDARD.encode(&message.body)),
            edited_body: edited.map(|it| String::from_utf8_lossy(it).into_owned()),
            properties: &message.properties,
            headers: &message.headers,
        }
    }
}

impl<'a> DeadLetterView<'a> {
    fn new(it: &'a DeadLetter, state: &'a DeadLetterState, errors: Errors) -> Self {
        let is_internal = match DeadLetterReason::parse(&it.reason) {
            Some(DeadLetterReason::AttemptsExhausted | DeadLetterReason::DeliveryLimit) | None => {
                true
            }
            Some(_) => false,
        };
        Self {
            id: it.id.to_string(),
            queue: &it.queue,
            reason: &it.reason,
            field: it.field.as_deref(),
            error: if is_internal && errors == Errors::OfActions { INTERNAL } else { &it.error },
            tenant_id: it.tenant_id.as_deref(),
            conversation_id: it.conversation_id.as_deref(),
            session_id: it.session_id.as_deref(),
            message_id: it.message_id.as_deref(),
            action_type: it.action_type.as_deref(),
            routing_key: &it.routing_key,
            attempts: it.attempts,
            replay_count: it.replay_count,
            replay_of: it.replay_of.map(|id| id.to_string()),
            first_failed_at: time(it.first_failed_at),
            last_failed_at: time(it.last_failed_at),
            stored_at: time(state.stored_at),
            copies: state.copies,
            status: state.status.as_str(),
            status_changed_at: state.status_changed_at.map(time),
            status_reason: state.status_reason.as_deref(),
        }
    }
}

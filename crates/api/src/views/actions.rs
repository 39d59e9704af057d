//! Actions that were published.

use schemars::JsonSchema;
use serde::Serialize;

/// What became of the actions of a request.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "PublishedActions")]
pub(crate) struct PublishedActionsView {
    /// In the order of the request.
    pub(crate) actions: Vec<PublishedActionView>,
}

/// What became of an action.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "PublishedAction")]
pub(crate) struct PublishedActionView {
    /// Its position in the request, from 0.
    pub(crate) position: usize,
    /// Its type.
    pub(crate) action_type: String,
    /// What became of it.
    pub(crate) status: ActionStatus,
    /// Its conversation, as it was sent or derived from tenant and session.
    pub(crate) conversation_id: String,
    /// The id of the message or event, as it was sent or derived. The same action with the same id takes effect once.
    pub(crate) id: String,
    /// Of an action with `wait=durable`: the data of its reply, by the contract of that action.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<serde_json::Value>")]
    pub(crate) data: Option<domain::json::Json>,
}

/// How far an action came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ActionStatus {
    /// It is valid; it was not published (`dry_run=1`).
    Valid,
    /// RabbitMQ confirmed it: it will take effect, or become a dead letter.
    Accepted,
    /// It has taken effect, and PostgreSQL has committed that.
    Durable,
}

/// The body of a request: one action, or an array of them. Only for its schema.
#[derive(JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "Actions")]
#[expect(dead_code, reason = "only its schema is used: the text is passed on as it was sent")]
pub(crate) enum ActionsBody {
    /// One action.
    One(ActionBody),
    /// Several.
    Several(Vec<ActionBody>),
}

/// An action, as docs/contract describes it; further fields depend on its type.
#[derive(JsonSchema)]
#[schemars(rename = "Action")]
#[expect(dead_code, reason = "only its schema is used")]
pub(crate) struct ActionBody {
    /// Such as `conversation.save_message`.
    #[schemars(example = "conversation.session_opened")]
    action_type: String,
    /// The tenant of the key; may be left out.
    #[serde(default)]
    tenant_id: Option<String>,
    /// The connection: a WebSocket, a phone number, a thread.
    session_id: String,
    /// The rest.
    #[serde(flatten)]
    fields: std::collections::BTreeMap<String, serde_json::Value>,
}

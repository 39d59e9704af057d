//! An action that is being decoded: the fields that all actions have, and those of a message.

use super::content;
use super::context::DecodeContext;
use super::fault::FieldError;
use super::fields::Fields;
use super::identity::{self, Evidence};
use super::metadata;
use crate::action::{ActionKind, Common, ConversationSource, Identity, SaveMessage};
use crate::envelope::Envelope;
use crate::ids::{ConversationKey, MessageId};
use crate::json::Json;
use crate::message::{Content, Details, Message, Role};
use crate::sync::hash::{Compared, Fingerprint};
use crate::wire;

pub(super) struct Received<'a> {
    pub(super) kind: ActionKind,
    pub(super) fields: Fields<'a>,
    pub(super) body: &'a [u8],
    pub(super) envelope: &'a Envelope<'a>,
    pub(super) context: &'a DecodeContext<'a>,
}

/// What a message says itself.
pub(super) struct Said {
    role: Role,
    content: Content,
    instead_of_content: Option<Json>,
    pub(super) message_id: Option<MessageId>,
    tool_calls: Option<Json>,
    tool_call_id: Option<String>,
    tokens_estimate: Option<i64>,
    processing_time_ms: Option<f64>,
    details: Details,
}

impl Said {
    /// Read from the fields of a message.
    pub(super) fn read(fields: &mut Fields<'_>) -> Result<Self, FieldError> {
        let payload: wire::SaveMessage<'_> = fields.read()?;
        let tool_calls = payload.tool_calls.map(wire::JsonArray::into_json);
        let (content, instead_of_content) = match payload.content {
            Some(wire::Sent(value)) => (content::read(value, || fields.path("content"))?, None),
            None => (
                content::absent(payload.role, tool_calls.as_ref(), fields)?,
                content::instead(tool_calls.as_ref(), fields),
            ),
        };
        let details = Details {
            item: payload.item,
            usage: fitting(fields, "usage", payload.usage, |usage| usage.as_str().len())
                .map(wire::JsonObject::into_json),
            finish_reason: fitting(fields, "finish_reason", payload.finish_reason, String::len),
            response_id: fitting(fields, "response_id", payload.response_id, String::len),
            parent_message_id: fitting(
                fields,
                "parent_message_id",
                payload.parent_message_id,
                |_| 0,
            ),
            context_hash: fitting(fields, "context_hash", payload.context_hash, String::len),
        };
        Ok(Self {
            role: payload.role,
            content,
            instead_of_content,
            message_id: payload.message_id,
            tool_calls,
            tool_call_id: payload.tool_call_id,
            tokens_estimate: payload.tokens_estimate.map(wire::Integer::get),
            processing_time_ms: payload.processing_time_ms.map(wire::Amount::get),
            details,
        })
    }

    /// What it is compared by, with the fields that may stand for its content.
    pub(super) fn fingerprint(&self, beside: Option<&Json>) -> Fingerprint {
        let compared = Compared {
            role: self.role,
            content: &self.content,
            tool_calls: self.tool_calls.as_ref(),
            item: self.details.item.as_ref(),
            beside,
        };
        compared.fingerprint()
    }

    pub(super) fn role(&self) -> Role {
        self.role
    }

    /// The message, with the fields of its action.
    pub(super) fn into_message(self, mut common: Common, identity: Identity) -> SaveMessage {
        let message = Message {
            id: common.resolved_id.clone(),
            role: self.role,
            content: self.content,
            tool_calls: self.tool_calls,
            tool_call_id: self.tool_call_id,
            tokens_estimate: self.tokens_estimate,
            user_id: common.user_id.clone(),
            agent_id: common.agent_id.clone(),
            model_name: common.model_name.clone(),
            processing_time_ms: self.processing_time_ms,
            created_at: common.happened_at,
            received_at: common.received_at,
            metadata: common.metadata.take(),
            details: self.details.boxed(),
        };
        SaveMessage { common, message, identity, instead_of_content: self.instead_of_content }
    }
}

/// The value of a field, if it has its type and is not too long; else the field is an unknown one.
fn fitting<T>(
    fields: &mut Fields<'_>,
    name: &str,
    sent: Option<wire::Fitting<T>>,
    bytes: impl Fn(&T) -> usize,
) -> Option<T> {
    let value = sent?.get().filter(|value| bytes(value) <= wire::MAX_DETAIL_BYTES);
    if value.is_none() {
        fields.forget(&[name]);
    }
    value
}

impl<'a> Received<'a> {
    /// A message, with the fields of its action.
    pub(super) fn message(&mut self) -> Result<SaveMessage, FieldError> {
        let sent: wire::Common<'a> = self.fields.read()?;
        let said = Said::read(&mut self.fields)?;
        let (common, identity) = self.common(sent, said.message_id.as_ref())?;
        Ok(said.into_message(common, identity))
    }

    /// The fields of every action, and those of this one.
    pub(super) fn common_and<T: serde::Deserialize<'a>>(
        &mut self,
    ) -> Result<(Common, T), FieldError> {
        let sent: wire::Common<'a> = self.fields.read()?;
        let payload = self.fields.read()?;
        let (common, _) = self.common(sent, None)?;
        Ok((common, payload))
    }

    /// The fields of every action. Called after the payload is read: fields that are still unknown
    /// then become metadata.
    pub(super) fn common(
        &mut self,
        sent: wire::Common<'_>,
        message_id: Option<&MessageId>,
    ) -> Result<(Common, Identity), FieldError> {
        let Self { envelope, context, .. } = *self;
        // Nothing has a column for these two, so they are added to the metadata.
        if sent.task_id.is_some() || sent.origin_service.is_some() {
            self.fields.forget(&["task_id", "origin_service"]);
        }
        let own_metadata = sent.metadata.map(wire::JsonObject::into_json);
        let tenant_tier = sent
            .tenant_tier
            .or_else(|| metadata::string_entry(own_metadata.as_ref()?, "tenant_tier"));
        let (mut key, conversation_is_explicit) = match sent.conversation_id {
            Some(conversation) => (
                ConversationKey { tenant: sent.tenant_id, conversation },
                ConversationSource::Explicit,
            ),
            None => (
                ConversationKey::of_session(sent.tenant_id, &sent.session_id),
                ConversationSource::FromSession,
            ),
        };
        if let Some(resolved) = envelope.resolved {
            key.conversation = resolved.conversation.clone();
        }
        let has_identity =
            message_id.is_some() || envelope.resolved.is_some() || self.kind.is_request();
        let action_id = identity::action_id(sent.action_id, has_identity, envelope)?;
        let times = identity::times(sent.timestamp, envelope, context)?;
        let evidence = Evidence {
            message_id,
            action_id: action_id.as_ref(),
            timestamp: sent.timestamp,
            key: &key,
            body: self.body,
        };
        let (resolved_id, identity) = identity::identify(evidence, envelope, context);
        let common = Common {
            kind: self.kind,
            key,
            conversation_is_explicit,
            session: sent.session_id,
            action_id,
            resolved_id,
            happened_at: times.happened_at,
            time_source: times.source,
            received_at: times.received_at,
            user_id: sent.user_id,
            agent_id: sent.agent_id,
            model_name: sent.model_name,
            tenant_tier,
            correlation_id: envelope
                .sent_correlation_id()
                .map(str::to_owned)
                .or(sent.correlation_id),
            reply_to: envelope
                .sent_reply_to()
                .map(str::to_owned)
                .or(sent.callback_queue_name)
                .filter(|queue| !queue.is_empty()),
            metadata: metadata::extended(own_metadata, self.fields.unknown()),
        };
        Ok((common, identity))
    }
}

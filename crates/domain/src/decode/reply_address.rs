//! The reply address of an action that is refused: its sender gets the refusal, whatever is wrong with the body.

use std::borrow::Cow;

use super::sent_fields::SentFields;
use crate::envelope::Envelope;
use crate::ids::ActionId;
use crate::reply::ReplyAddress;

/// Where the sender of a body wants its reply, as far as body and envelope show it. The rules are those of
/// [`decode`](super::decode); a field that cannot be read counts as absent. `None`: no reply is wanted.
#[must_use]
pub fn reply_address(body: &[u8], envelope: &Envelope<'_>) -> Option<ReplyAddress> {
    let fields = SentFields::of(body);
    let text = |name: &str| fields.text(name).map(Cow::into_owned);
    let queue = envelope.reply_to.map(str::to_owned).or_else(|| text("callback_queue_name"))?;
    let correlation_id =
        envelope.correlation_id.map(str::to_owned).or_else(|| text("correlation_id"));
    let action_id = text("action_id").and_then(|id| ActionId::new(&id).ok());
    let action_id = action_id.or_else(|| ActionId::new(envelope.message_id?).ok());
    Some(ReplyAddress { queue, correlation_id, action_id })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(body: &str) -> Option<ReplyAddress> {
        reply_address(body.as_bytes(), &Envelope::default())
    }

    #[test]
    fn a_refused_body_still_names_its_reply_queue() {
        let expected = ReplyAddress {
            queue: "replies".to_owned(),
            correlation_id: Some("c".to_owned()),
            action_id: ActionId::new("a").ok(),
        };
        let body = r#"{"role": 7, "callback_queue_name": "replies", "correlation_id": "c", "action_id": "a"}"#;
        assert_eq!(of(body), Some(expected.clone()));
        let nested = format!(r#"{{"data": {body}, "data2": []}}"#);
        assert_eq!(of(&nested), Some(expected));
        for silent in ["", "[]", "not JSON", r#"{"callback_queue_name": 7}"#] {
            assert_eq!(of(silent), None, "{silent}");
        }
    }

    #[test]
    fn amqp_properties_win_and_suffice_when_the_body_cannot_be_read() {
        let envelope = Envelope {
            reply_to: Some("amq.rabbitmq.reply-to.g1"),
            correlation_id: Some("7"),
            message_id: Some("m"),
            ..Envelope::default()
        };
        let expected = ReplyAddress {
            queue: "amq.rabbitmq.reply-to.g1".to_owned(),
            correlation_id: Some("7".to_owned()),
            action_id: ActionId::new("m").ok(),
        };
        let other = br#"{"callback_queue_name": "other", "correlation_id": "8"}"#;
        for body in [&b"{broken"[..], b"\xff", &[b'['; 100_000], other] {
            assert_eq!(reply_address(body, &envelope), Some(expected.clone()));
        }
    }
}

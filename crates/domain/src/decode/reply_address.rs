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
    let queue = envelope
        .sent_reply_to()
        .map(str::to_owned)
        .or_else(|| text("callback_queue_name"))
        .filter(|queue| !queue.is_empty())?;
    let correlation_id =
        envelope.sent_correlation_id().map(str::to_owned).or_else(|| text("correlation_id"));
    let action_id = fields.id("action_id").and_then(|id| ActionId::new(&id).ok());
    let action_id = action_id.or_else(|| ActionId::new(envelope.sent_message_id()?).ok());
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
        let empty = r#"{"callback_queue_name": ""}"#;
        for silent in ["", "[]", "not JSON", empty, r#"{"callback_queue_name": 7}"#] {
            assert_eq!(of(silent), None, "{silent}");
        }
    }

    #[test]
    fn empty_amqp_properties_count_as_absent() {
        let envelope = Envelope {
            reply_to: Some(""),
            correlation_id: Some(""),
            message_id: Some(""),
            ..Envelope::default()
        };
        let body = br#"{"callback_queue_name": "replies", "correlation_id": "c"}"#;
        let address = reply_address(body, &envelope).unwrap();
        let expected = ("replies".to_owned(), Some("c".to_owned()), None);
        assert_eq!((address.queue, address.correlation_id, address.action_id), expected);
        assert_eq!(reply_address(b"{broken", &envelope), None);
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

//! The messages that the benchmarks publish, in the format that agents send.
//!
//! Apart from the name of the run, message `n` of a shape is always the same, so that every program gets the
//! same input.

use std::fmt::Write;

/// Number of conversations, size and ids of the messages.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Shape {
    /// Number of conversations that the messages are distributed over
    #[arg(long, default_value_t = 500)]
    pub(crate) conversations: u64,
    /// Size of a body in bytes, at least 400
    #[arg(long, default_value_t = 515)]
    pub(crate) body_bytes: usize,
    /// The name of the run, which is part of its conversation and message ids
    #[arg(long, default_value = "bench")]
    pub(crate) run: RunName,
    /// Messages in each action: more than one are `conversation.save_messages`
    #[arg(long, default_value_t = 1)]
    pub(crate) batch: u64,
}

/// The name of a run: at most 8 characters, so that a message id has 36.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RunName([u8; 8]);

impl std::str::FromStr for RunName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.len() > 8
            || !text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
        {
            return Err("must be at most 8 characters of a-z and 0-9".to_owned());
        }
        let mut name = [b'0'; 8];
        name[..text.len()].copy_from_slice(text.as_bytes());
        Ok(Self(name))
    }
}

impl std::fmt::Display for RunName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| f.write_char(char::from(*byte)))
    }
}

/// The content of a message, repeated up to its size.
const TEXT: &str = "The flat near the river has two bedrooms, a balcony and an open kitchen; the owner \
                     asks for a viewing on Thursday after five and would like to know whether the price \
                     includes the garage. ";

impl Shape {
    /// The id of message `n`: as long as a UUID, and distributed as randomly.
    pub(crate) fn message_id(&self, n: u64) -> String {
        // Multiplying by an odd constant permutes the 64-bit numbers (Fibonacci hashing).
        let scattered = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        format!("{:08x}-{}-{n:018}", scattered >> 32, self.run)
    }

    /// The body of message `n`.
    pub(crate) fn body(&self, n: u64) -> String {
        self.text("conversation.save_message", n)
    }

    /// The body of message `n` as this action.
    pub(crate) fn text(&self, action_type: &str, n: u64) -> String {
        let mut body = self.beginning(action_type, n);
        let rest = self.body_bytes.saturating_sub(body.len() + 3);
        body.push('"');
        body.extend(TEXT.chars().cycle().take(rest));
        body.push_str("\"}");
        body
    }

    /// The body of message `n` as this action, whose content is an array of zeros instead of a text.
    pub(crate) fn array(&self, action_type: &str, n: u64) -> String {
        let mut body = self.beginning(action_type, n);
        let rest = self.body_bytes.saturating_sub(body.len() + 4);
        body.push_str(if rest.is_multiple_of(2) { "[" } else { "[ " });
        body.push_str(&"0,".repeat(rest / 2));
        body.push_str("0]}");
        body
    }

    /// All before the content.
    fn beginning(&self, action_type: &str, n: u64) -> String {
        let (run, conversation) = (self.run, n % self.conversations);
        format!(
            "{{\"action_type\":\"{action_type}\",\"tenant_id\":\"tenant-{:02}\",\
             \"session_id\":\"session-{run}-{conversation:08}\",\
             \"conversation_id\":\"conversation-{run}-{conversation:08}\",\"user_id\":\"user-{conversation:08}\",\
             \"agent_id\":\"agent-{:02}\",{},\"content\":",
            conversation % 7,
            conversation % 11,
            self.own_fields(n),
        )
    }

    /// The body of action `n`: as many messages as [`batch`](Self::batch) says, with the contents that single ones have.
    pub(crate) fn action(&self, n: u64) -> String {
        if self.batch == 1 {
            return self.body(n);
        }
        let (run, conversation) = (self.run, n % self.conversations);
        let mut body = format!(
            "{{\"action_type\":\"conversation.save_messages\",\"tenant_id\":\"tenant-{:02}\",\
             \"session_id\":\"session-{run}-{conversation:08}\",\
             \"conversation_id\":\"conversation-{run}-{conversation:08}\",\"user_id\":\"user-{conversation:08}\",\
             \"agent_id\":\"agent-{:02}\",\"messages\":[",
            conversation % 7,
            conversation % 11,
        );
        let first = n / self.conversations * self.batch * self.conversations + conversation;
        for n in (0..self.batch).map(|position| first + position * self.conversations) {
            let alone = self.beginning("conversation.save_message", n).len() + 3;
            let content = TEXT.chars().cycle().take(self.body_bytes.saturating_sub(alone));
            body.push_str(&format!("{{{},\"content\":\"", self.own_fields(n)));
            body.extend(content);
            body.push_str("\"},");
        }
        body.pop();
        body.push_str("]}");
        body
    }

    /// Id, time and role of message `n`.
    fn own_fields(&self, n: u64) -> String {
        let role = if (n / self.conversations).is_multiple_of(2) { "user" } else { "assistant" };
        let (second, micros) = (n / 1_000_000 % 60, n % 1_000_000);
        format!(
            "\"message_id\":\"{}\",\"timestamp\":\"2026-11-20T10:00:{second:02}.{micros:06}Z\",\"role\":\"{role}\"",
            self.message_id(n),
        )
    }

    /// The action that closes the session of conversation `n`.
    pub(crate) fn close(&self, n: u64) -> String {
        let (run, conversation) = (self.run, n % self.conversations);
        format!(
            "{{\"action_type\":\"conversation.session_closed\",\"tenant_id\":\"tenant-{:02}\",\
             \"session_id\":\"session-{run}-{conversation:08}\",\
             \"conversation_id\":\"conversation-{run}-{conversation:08}\",\
             \"action_id\":\"close-{run}-{conversation:08}\"}}",
            conversation % 7,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_json_of_the_requested_size() {
        let shape =
            Shape { conversations: 500, body_bytes: 515, run: "r1".parse().unwrap(), batch: 1 };
        for n in [0, 1, 499, 500, 99_999_999] {
            let body = shape.body(n);
            assert_eq!(body.len(), 515);
            let json: serde_json::Value = serde_json::from_str(&body).unwrap();
            assert_eq!(json["message_id"].as_str().unwrap().len(), 36);
        }
        let batch = Shape { batch: 8, conversations: 3, ..shape };
        let mut ids = std::collections::HashSet::new();
        for n in 0..6 {
            let json: serde_json::Value = serde_json::from_str(&batch.action(n)).unwrap();
            let messages = json["messages"].as_array().unwrap();
            ids.extend(messages.iter().map(|it| it["message_id"].to_string()));
        }
        let all = (0..48).map(|n| format!("{:?}", batch.message_id(n))).collect();
        assert_eq!(ids, all, "actions have the messages that single ones have");
        for body_bytes in [514, 515] {
            let array = Shape { body_bytes, ..shape }.array("conversation.session_opened", 7);
            let json: serde_json::Value = serde_json::from_str(&array).unwrap();
            assert!(array.len() == body_bytes && json["content"].is_array());
        }
    }
}

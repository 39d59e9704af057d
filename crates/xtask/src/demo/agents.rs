//! The agents of the demo and their messages.

use std::cell::Cell;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

/// A session of an agent with a user.
pub(super) struct Session {
    pub(super) tenant: &'static str,
    pub(super) session: String,
    agent: &'static str,
    model: &'static str,
    messages: Vec<Value>,
    /// The time of the last action; each action is a few seconds after the previous one.
    clock: Cell<SystemTime>,
}

impl Session {
    /// The actions of the session: its opening and every message.
    pub(super) fn conversation(&self) -> Vec<Value> {
        self.clock.set(SystemTime::now() - Duration::from_secs(120));
        let mut actions = vec![self.opened()];
        for (n, message) in self.messages.iter().enumerate() {
            actions.push(self.message(n + 1, message));
        }
        actions
    }

    /// The action that opens the session.
    pub(super) fn opened(&self) -> Value {
        self.action("conversation.session_opened", &json!({}))
    }

    /// The action that closes the session.
    pub(super) fn closed(&self) -> Value {
        self.action(
            "conversation.session_closed",
            &json!({"reason": "the user left", "satisfaction": 5}),
        )
    }

    /// One more message.
    pub(super) fn last_message(&self) -> Value {
        let message = json!({"role": "user", "content": "One more thing: thank you!"});
        self.message(self.messages.len() + 1, &message)
    }

    fn message(&self, number: usize, message: &Value) -> Value {
        let mut fields = message.clone();
        if let Some(fields) = fields.as_object_mut() {
            fields.insert("message_id".into(), json!(format!("m{number}")));
            fields.insert("agent_id".into(), json!(self.agent));
            if fields["role"] == "assistant" {
                fields.insert("model_name".into(), json!(self.model));
            }
        }
        self.action("conversation.save_message", &fields)
    }

    fn action(&self, action_type: &str, fields: &Value) -> Value {
        let at = self.clock.get() + Duration::from_millis(3_700);
        self.clock.set(at);
        let mut action = json!({
            "action_type": action_type,
            "tenant_id": self.tenant,
            "session_id": self.session,
            "timestamp": humantime::format_rfc3339_millis(at).to_string(),
        });
        if let (Some(action), Some(fields)) = (action.as_object_mut(), fields.as_object()) {
            action.extend(fields.clone());
        }
        action
    }
}

fn session(
    tenant: &'static str,
    session: String,
    agent: &'static str,
    model: &'static str,
    messages: Vec<Value>,
) -> Session {
    Session { tenant, session, agent, model, messages, clock: Cell::new(SystemTime::now()) }
}

/// A booking agent that calls a tool.
pub(super) fn booking(run: &str) -> Session {
    let call = json!([{
        "id": "call_1", "type": "function",
        "function": {"name": "find_slots", "arguments": "{\"service\":\"haircut\",\"day\":\"tomorrow\"}"},
    }]);
    session(
        "salon-aurora",
        format!("web-{run}"),
        "booking-agent",
        "gpt-4o",
        vec![
            json!({"role": "user", "content": "Is there a free slot for a haircut tomorrow?"}),
            json!({"role": "assistant", "content": null, "tool_calls": call}),
            json!({"role": "tool", "tool_call_id": "call_1", "content": "[\"11:30\",\"15:00\"]"}),
            json!({"role": "assistant", "content": "Tomorrow I have 11:30 or 15:00. Which one suits you?"}),
            json!({"role": "user", "content": "15:00, please."}),
            json!({"role": "assistant", "content": "Booked: a haircut tomorrow at 15:00."}),
        ],
    )
}

/// A support agent of the same tenant.
pub(super) fn support(run: &str) -> Session {
    session(
        "salon-aurora",
        format!("phone-{run}"),
        "support-agent",
        "llama3-70b-8192",
        vec![
            json!({"role": "user", "content": "I left my umbrella at your place."}),
            json!({"role": "assistant", "content": "A blue one? It waits for you at the desk until Friday."}),
        ],
    )
}

/// A meal planner of another tenant.
pub(super) fn meals(run: &str) -> Session {
    session(
        "green-pantry",
        format!("sms-{run}"),
        "meal-planner",
        "claude-sonnet",
        vec![
            json!({"role": "user", "content": "Swap the salmon for something vegetarian."}),
            json!({"role": "assistant", "content": "Chickpea curry instead of salmon on Tuesday. All right?"}),
            json!({"role": "user", "content": "Perfecto, gracias. 🌱"}),
        ],
    )
}

/// The tenant of the agent that sends [`list`]s.
pub(super) const LIST_TENANT: &str = "blue-harbour";

/// The messages of an agent that has no ids, as it sends them to its model.
pub(super) fn list() -> Vec<Value> {
    vec![
        json!({"role": "user", "content": "Does the ferry run on Sunday?"}),
        json!({"role": "assistant", "content": "Yes, at 10:00 and at 16:00."}),
        json!({"role": "user", "content": "Yes"}),
        json!({"role": "assistant", "content": "Then I reserve a seat at 10:00."}),
    ]
}

/// Deletes a message.
pub(super) fn delete(tenant: &str, session: &str, message: &str) -> Value {
    json!({
        "action_type": "conversation.delete_message", "tenant_id": tenant, "session_id": session,
        "action_id": format!("delete-{message}"), "message_id": message,
    })
}

/// An action with a role that does not exist.
pub(super) fn malformed(run: &str) -> Value {
    json!({
        "action_type": "conversation.save_message", "tenant_id": "green-pantry",
        "session_id": format!("typo-{run}"), "message_id": "m1", "role": "bot", "content": "Hello!",
    })
}

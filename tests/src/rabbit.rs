//! RabbitMQ over its management HTTP API, which shares no code with the product: publishes with exact
//! properties, queues of listeners, and changes that an operator makes.

use serde_json::{Value, json};
use testkit::management::Management;
use testkit::wait::eventually;

use crate::LIMIT;

/// A virtual host, over the management HTTP API.
pub struct RabbitAdmin {
    management: Management,
    host: String,
}

impl RabbitAdmin {
    /// A virtual host, by its name, percent-encoded for a path.
    #[must_use]
    pub fn of(management: Management, host: &str) -> Self {
        Self { management, host: host.to_owned() }
    }

    /// Publishes a body with exactly these AMQP properties.
    ///
    /// # Panics
    /// When RabbitMQ refuses it, or it is unroutable.
    pub async fn publish(&self, routing_key: &str, properties: &Value, body: &str) {
        let request = json!({
            "properties": properties, "routing_key": routing_key,
            "payload": body, "payload_encoding": "string",
        });
        let path = format!("/api/exchanges/{}/domain.actions/publish", self.host);
        let response = self.call("POST", &path, &request).await;
        assert_eq!(response, r#"{"routed":true}"#, "{routing_key}");
    }

    /// Creates a user that may publish actions and nothing else. Its password is its name.
    ///
    /// # Panics
    /// When RabbitMQ refuses.
    pub async fn agent_user(&self, name: &str) {
        let user = json!({"password": name, "tags": ""});
        self.call("PUT", &format!("/api/users/{name}"), &user).await;
        let permissions = json!({"configure": "^$", "write": r"^domain\.actions$", "read": "^$"});
        let path = format!("/api/permissions/{}/{name}", self.host);
        self.call("PUT", &path, &permissions).await;
    }

    /// Declares a durable queue.
    ///
    /// # Panics
    /// When RabbitMQ refuses.
    pub async fn queue(&self, name: &str) {
        self.queue_with(name, &json!({})).await;
    }

    /// [`Self::queue`] with arguments.
    ///
    /// # Panics
    /// When RabbitMQ refuses.
    pub async fn queue_with(&self, name: &str, arguments: &Value) {
        let path = format!("/api/queues/{}/{name}", self.host);
        self.call("PUT", &path, &json!({"durable": true, "arguments": arguments})).await;
    }

    /// Declares a queue and binds it to all events of the workers.
    ///
    /// # Panics
    /// When RabbitMQ refuses.
    pub async fn listen(&self, queue: &str) {
        self.queue(queue).await;
        self.bind("conversation.events", queue, "#").await;
    }

    /// Binds a queue.
    ///
    /// # Panics
    /// When RabbitMQ refuses.
    pub async fn bind(&self, exchange: &str, queue: &str, routing_key: &str) {
        let path = format!("/api/bindings/{}/e/{exchange}/q/{queue}", self.host);
        self.call("POST", &path, &json!({"routing_key": routing_key})).await;
    }

    /// Removes a binding.
    ///
    /// # Panics
    /// When there was none.
    pub async fn unbind(&self, exchange: &str, queue: &str, routing_key: &str) {
        let path = format!("/api/bindings/{}/e/{exchange}/q/{queue}/{routing_key}", self.host);
        self.call("DELETE", &path, &Value::Null).await;
    }

    /// Deletes a queue with its messages, although it has consumers.
    ///
    /// # Panics
    /// When there was none.
    pub async fn delete_queue(&self, queue: &str) {
        self.call("DELETE", &format!("/api/queues/{}/{queue}", self.host), &Value::Null).await;
    }

    /// Deletes an exchange, with its bindings.
    ///
    /// # Panics
    /// When there was none.
    pub async fn delete_exchange(&self, exchange: &str) {
        let path = format!("/api/exchanges/{}/{exchange}", self.host);
        self.call("DELETE", &path, &Value::Null).await;
    }

    /// Sets a policy for one queue; the policy has the queue's name.
    ///
    /// # Panics
    /// When RabbitMQ refuses.
    pub async fn policy(&self, queue: &str, definition: &Value) {
        let pattern = format!("^{}$", queue.replace('.', "\\."));
        let request = json!({"pattern": pattern, "definition": definition, "apply-to": "queues"});
        self.call("PUT", &format!("/api/policies/{}/{queue}", self.host), &request).await;
    }

    /// Takes all ready messages of a queue, as the HTTP API returns them (`payload`, `properties`,
    /// `routing_key`).
    ///
    /// # Panics
    /// When RabbitMQ refuses.
    pub async fn take(&self, queue: &str) -> Vec<Value> {
        let request = json!({"count": 10_000, "ackmode": "ack_requeue_false", "encoding": "auto"});
        let path = format!("/api/queues/{}/{queue}/get", self.host);
        serde_json::from_str(&self.call("POST", &path, &request).await).expect("an array")
    }

    /// Takes the first message of a queue and requeues it, as when a worker's connection closes.
    ///
    /// # Panics
    /// When RabbitMQ refuses.
    pub async fn requeue_first(&self, queue: &str) {
        let request = json!({"count": 1, "ackmode": "reject_requeue_true", "encoding": "auto"});
        self.call("POST", &format!("/api/queues/{}/{queue}/get", self.host), &request).await;
    }

    /// Takes messages until there are as many as wanted, and returns their bodies.
    ///
    /// # Panics
    /// When they do not come within [`LIMIT`].
    pub async fn bodies(&self, queue: &str, wanted: usize) -> Vec<Value> {
        let mut bodies = Vec::new();
        eventually(format!("{wanted} messages in {queue}"), LIMIT, async || {
            bodies.extend(self.take(queue).await.iter().map(body));
            if bodies.len() >= wanted { Ok(()) } else { Err(format!("{bodies:?}")) }
        })
        .await;
        bodies
    }

    async fn call(&self, method: &str, path: &str, request: &Value) -> String {
        let body = if request.is_null() { String::new() } else { request.to_string() };
        self.management.request(method, path, &body).await.expect("RabbitMQ's management HTTP API")
    }
}

fn body(message: &Value) -> Value {
    serde_json::from_str(message["payload"].as_str().expect("text")).expect("JSON")
}

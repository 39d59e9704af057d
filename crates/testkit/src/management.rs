//! The few calls of RabbitMQ's HTTP interface that tests need; plain HTTP/1.1 over loopback.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Loopback answers in milliseconds; deleting a virtual host with many queues takes a second.
const LIMIT: Duration = Duration::from_secs(10);

/// The HTTP interface of one private RabbitMQ.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Management {
    port: u16,
    user: String,
    password: String,
}

impl Management {
    pub(crate) fn new(port: u16, user: &str, password: &str) -> Self {
        Self {
            port,
            user: user.to_owned(),
            password: password.to_owned(),
        }
    }

    /// Creates a virtual host; the private server's user may do everything in it.
    ///
    /// # Errors
    /// When RabbitMQ does not answer, or refuses.
    pub async fn create_virtual_host(&self, name: &str) -> Result<()> {
        self.request("PUT", &format!("/api/vhosts/{name}"), "{}")
            .await
            .map(|_| ())
    }

    /// Deletes a virtual host with all that is in it, and closes its connections.
    ///
    /// # Errors
    /// When RabbitMQ does not answer, or refuses.
    pub async fn delete_virtual_host(&self, name: &str) -> Result<()> {
        self.request("DELETE", &format!("/api/vhosts/{name}"), "")
            .await
            .map(|_| ())
    }

    /// The JSON at a path such as `/api/queues/vhost?disable_stats=true&enable_queue_totals=true`. Counts
    /// of messages are up to 5 s old.
    ///
    /// # Errors
    /// When RabbitMQ does not answer, refuses, or answers with something else.
    pub async fn get(&self, path: &str) -> Result<serde_json::Value> {
        let body = self.request("GET", path, "").await?;
        serde_json::from_str(&body).with_context(|| format!("GET {path} answered {body:?}"))
    }

    /// Sends any request, such as the `DELETE` of a connection or the `PUT` of a policy, and returns the
    /// answer's body.
    ///
    /// # Errors
    /// When RabbitMQ does not answer, or answers with an error's status.
    pub async fn request(&self, method: &str, path: &str, body: &str) -> Result<String> {
        let answer = timeout(LIMIT, self.exchange(method, path, body))
            .await
            .with_context(|| format!("{method} {path}: no answer within {LIMIT:?}"))?
            .with_context(|| format!("{method} {path}"))?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        match head.split(' ').nth(1) {
            Some(status) if status.starts_with('2') => Ok(body.to_owned()),
            _ => bail!(
                "{method} {path}: {} {body}",
                head.lines().next().unwrap_or_default()
            ),
        }
    }

    pub(crate) async fn probe(&self) -> Result<()> {
        self.request("GET", "/api/vhosts", "").await.map(|_| ())
    }

    async fn exchange(&self, method: &str, path: &str, body: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        let credentials = base64(format!("{}:{}", self.user, self.password).as_bytes());
        // HTTP/1.0: the answer is not chunked, and ends with the connection.
        let request = format!(
            "{method} {path} HTTP/1.0\r\nhost: 127.0.0.1\r\nauthorization: Basic {credentials}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }
}

/// Base64 (RFC 4648), for the credentials' header alone.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let group = [
            chunk[0],
            *chunk.get(1).unwrap_or(&0),
            *chunk.get(2).unwrap_or(&0),
        ];
        let bits = u32::from_be_bytes([0, group[0], group[1], group[2]]);
        for place in 0..4 {
            let sextet = (bits >> (18 - 6 * place)) & 0x3f;
            text.push(if place <= chunk.len() {
                char::from(ALPHABET[sextet as usize])
            } else {
                '='
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_matches_the_examples_of_rfc_4648() {
        for (plain, encoded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(plain.as_bytes()), encoded);
        }
    }
}

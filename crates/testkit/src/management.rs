//! Calls of RabbitMQ's HTTP interface that tests need.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::http::{self, Response};

/// The HTTP interface of one private RabbitMQ.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Management {
    port: u16,
    user: String,
    password: String,
}

impl Management {
    pub(crate) fn new(port: u16, user: &str, password: &str) -> Self {
        Self { port, user: user.to_owned(), password: password.to_owned() }
    }

    /// Creates a virtual host, in which the private server's user has all permissions.
    ///
    /// # Errors
    /// When RabbitMQ does not respond, or rejects the request.
    pub async fn create_virtual_host(&self, name: &str) -> Result<()> {
        self.request("PUT", &format!("/api/vhosts/{name}"), "{}").await.map(|_| ())
    }

    /// Deletes a virtual host with all that is in it, and closes its connections.
    ///
    /// # Errors
    /// When RabbitMQ does not respond, or rejects the request.
    pub async fn delete_virtual_host(&self, name: &str) -> Result<()> {
        self.request("DELETE", &format!("/api/vhosts/{name}"), "").await.map(|_| ())
    }

    /// The JSON at a path such as `/api/queues/vhost?disable_stats=true&enable_queue_totals=true`. Message
    /// counts are up to 5 s old.
    ///
    /// # Errors
    /// When RabbitMQ does not respond, rejects the request, or responds with something other than JSON.
    pub async fn get(&self, path: &str) -> Result<serde_json::Value> {
        let body = self.request("GET", path, "").await?;
        serde_json::from_str(&body).with_context(|| format!("GET {path} returned {body:?}"))
    }

    /// Sends a request, such as the `DELETE` of a connection or the `PUT` of a policy, and returns the body
    /// of the response.
    ///
    /// # Errors
    /// When RabbitMQ does not respond, or responds with an error status.
    pub async fn request(&self, method: &str, path: &str, body: &str) -> Result<String> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        let credentials = base64(format!("{}:{}", self.user, self.password).as_bytes());
        let headers = [
            ("authorization", format!("Basic {credentials}")),
            ("content-type", "application/json".to_owned()),
        ];
        let headers = headers.each_ref().map(|(name, value)| (*name, value.as_str()));
        let Response { status, body, .. } =
            http::request(address, method, path, &headers, body).await?;
        match status {
            200..300 => Ok(body),
            _ => bail!("{method} {path}: status {status}: {body}"),
        }
    }
}

/// Base64 (RFC 4648), for the header with the credentials.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let group = [chunk[0], *chunk.get(1).unwrap_or(&0), *chunk.get(2).unwrap_or(&0)];
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
        for (plain, encoded) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(plain.as_bytes()), encoded);
        }
    }
}

//! Somebody who is told: a small HTTP server that keeps whatever is posted to it, for tests of alerts.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// One request, as it came.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// The path, with its slash.
    pub path: String,
    /// The body, which is JSON.
    pub body: Value,
}

/// A server on a free port of 127.0.0.1. It ends when it is dropped.
#[derive(Debug)]
pub struct Webhook {
    address: SocketAddr,
    calls: Arc<Mutex<Vec<Call>>>,
    server: JoinHandle<()>,
}

impl Webhook {
    /// Listens. Belongs to the runtime that calls it.
    ///
    /// # Errors
    /// When no port is to be had.
    pub async fn listen() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let calls: Arc<Mutex<Vec<Call>>> = Arc::default();
        let kept = Arc::clone(&calls);
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let kept = Arc::clone(&kept);
                tokio::spawn(async move {
                    // Whoever says nonsense gets no answer, and tries again.
                    take(stream, &kept).await.ok();
                });
            }
        });
        Ok(Self { address, calls, server })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// All that came so far, in its order.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Webhook {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Reads one request, keeps it, and then answers.
async fn take(stream: TcpStream, kept: &Mutex<Vec<Call>>) -> Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    let path = line.split(' ').nth(1).context("no path")?.to_owned();
    let mut length = None;
    loop {
        line.clear();
        if stream.read_line(&mut line).await? == 0 {
            bail!("it ended within the headers");
        }
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        if name.eq_ignore_ascii_case("content-length") {
            length = Some(value.trim().parse()?);
        }
    }
    let mut body = vec![0; length.context("no content-length")?];
    stream.read_exact(&mut body).await?;
    let body = serde_json::from_slice(&body)?;
    kept.lock().unwrap_or_else(PoisonError::into_inner).push(Call { path, body });
    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    stream.write_all(answer.as_bytes()).await?;
    Ok(stream.flush().await?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::http;

    #[tokio::test]
    async fn what_is_posted_is_kept_in_its_order() {
        let webhook = Webhook::listen().await.unwrap();
        for n in 1..=2 {
            let body = json!({ "n": n }).to_string();
            let answer = http::request(webhook.address(), "POST", "/here", &[], &body).await;
            assert_eq!(answer.unwrap().status, 200);
        }
        let call = |n: i32| Call { path: "/here".to_owned(), body: json!({ "n": n }) };
        assert_eq!(webhook.calls(), [call(1), call(2)]);
    }
}

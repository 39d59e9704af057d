//! A small HTTP server that records requests: the receiver of notifications in tests of alerts.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// A received request.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// The path, with its leading slash.
    pub path: String,
    /// The JSON body.
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
    /// Starts to listen, in a task of the current runtime.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn listen() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let calls: Arc<Mutex<Vec<Call>>> = Arc::default();
        let recorded = Arc::clone(&calls);
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let recorded = Arc::clone(&recorded);
                tokio::spawn(async move {
                    // An invalid request gets no response.
                    take(stream, &recorded).await.ok();
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

    /// The requests received so far, in order.
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

/// Reads one request, records it, and then responds.
async fn take(stream: TcpStream, recorded: &Mutex<Vec<Call>>) -> Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    let path = line.split(' ').nth(1).context("no path")?.to_owned();
    let mut length = None;
    loop {
        line.clear();
        if stream.read_line(&mut line).await? == 0 {
            bail!("the request ended within its headers");
        }
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        if name.eq_ignore_ascii_case("content-length") {
            length = Some(value.trim().parse()?);
        }
    }
    let mut body = vec![0; length.context("no content-length")?];
    stream.read_exact(&mut body).await?;
    let body = serde_json::from_slice(&body)?;
    recorded.lock().unwrap_or_else(PoisonError::into_inner).push(Call { path, body });
    let response = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    stream.write_all(response.as_bytes()).await?;
    Ok(stream.flush().await?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::http;

    #[tokio::test]
    async fn posted_requests_are_recorded_in_order() {
        let webhook = Webhook::listen().await.unwrap();
        for n in 1..=2 {
            let body = json!({ "n": n }).to_string();
            let response = http::request(webhook.address(), "POST", "/here", &[], &body).await;
            assert_eq!(response.unwrap().status, 200);
        }
        let call = |n: i32| Call { path: "/here".to_owned(), body: json!({ "n": n }) };
        assert_eq!(webhook.calls(), [call(1), call(2)]);
    }
}

//! HTTP requests over loopback, for management interfaces and health endpoints.

use std::fmt::Write;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long an answer may take: longer than the servers under test take at most. The conversation-api waits 10 s for
/// RabbitMQ's confirm, and 30 s for a body.
const LIMIT: Duration = Duration::from_secs(40);

/// A response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The headers, with their names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body, as text.
    pub body: String,
}

/// Sends a GET request.
///
/// # Errors
/// When there is no response. Every status counts as a response.
pub async fn get(address: SocketAddr, path: &str) -> Result<Response> {
    request(address, "GET", path, &[], "").await
}

/// Sends a request.
///
/// # Errors
/// When there is no response. Every status counts as a response.
pub async fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Result<Response> {
    let connect = async || Ok(TcpStream::connect(address).await?);
    request_over(connect, address, method, path, headers, body).await
}

/// Sends a request over a connection of one's own, such as one with TLS.
///
/// # Errors
/// As [`request`]; also when it cannot connect.
pub async fn request_over<S: AsyncRead + AsyncWrite + Unpin>(
    connect: impl AsyncFnOnce() -> Result<S>,
    host: impl std::fmt::Display,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Result<Response> {
    // HTTP/1.0: the response is not chunked, and ends with the connection.
    let mut request = format!("{method} {path} HTTP/1.0\r\nhost: {host}\r\n");
    for (name, value) in headers {
        write!(request, "{name}: {value}\r\n")?;
    }
    write!(request, "content-length: {}\r\n\r\n{body}", body.len())?;
    let exchange = async {
        let mut stream = connect().await?;
        stream.write_all(request.as_bytes()).await?;
        let mut response = String::new();
        stream.read_to_string(&mut response).await?;
        anyhow::Ok(response)
    };
    let response = timeout(LIMIT, exchange)
        .await
        .with_context(|| format!("{method} {path}: no response within {LIMIT:?}"))?
        .with_context(|| format!("{method} {path}"))?;
    let (head, body) = response.split_once("\r\n\r\n").unwrap_or((&response, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status =
        status.with_context(|| format!("{method} {path}: the response is not HTTP: {head:?}"))?;
    let headers = head.lines().skip(1).filter_map(|line| line.split_once(':'));
    let headers = headers.map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()));
    Ok(Response { status, headers: headers.collect(), body: body.to_owned() })
}

impl Response {
    /// The value of a header; the first one, if there are several.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(it, _)| it == name).map(|(_, value)| value.as_str())
    }
}

/// A connection that stays open from one request to the next, as programs keep it.
#[derive(Debug)]
pub struct Connection {
    address: SocketAddr,
    stream: BufReader<TcpStream>,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// When nothing listens there.
    pub async fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await.with_context(|| address.to_string())?;
        stream.set_nodelay(true)?;
        Ok(Self { address, stream: BufReader::new(stream) })
    }

    /// Gets a path. The response must have a `content-length`.
    ///
    /// # Errors
    /// When there is no response, or the server closed the connection. Every status counts as a response.
    pub async fn get(&mut self, path: &str, headers: &[(&str, &str)]) -> Result<Response> {
        let mut request = format!("GET {path} HTTP/1.1\r\nhost: {}\r\n", self.address);
        for (name, value) in headers {
            write!(request, "{name}: {value}\r\n")?;
        }
        request.push_str("\r\n");
        let exchange = async {
            self.stream.write_all(request.as_bytes()).await?;
            self.response().await
        };
        let response = timeout(LIMIT, exchange).await;
        let response = response.with_context(|| format!("{path}: no response within {LIMIT:?}"))?;
        response.with_context(|| format!("GET {path}"))
    }

    async fn response(&mut self) -> Result<Response> {
        let mut line = String::new();
        self.stream.read_line(&mut line).await?;
        let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.with_context(|| format!("the response is not HTTP: {line:?}"))?;
        let mut headers = Vec::new();
        loop {
            line.clear();
            self.stream.read_line(&mut line).await?;
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            headers.push((name.to_lowercase(), value.trim().to_owned()));
        }
        let mut response = Response { status, headers, body: String::new() };
        let length = response.header("content-length").unwrap_or("0").parse()?;
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).await?;
        response.body = String::from_utf8(body)?;
        Ok(response)
    }
}

//! Connections to RabbitMQ: several addresses, bounded waits, and a connection name for operators.
//!
//! A closed connection is not recovered. Its owner opens a new one, because only the owner knows what
//! was in flight. Every wait has a limit, also the handshake: a server that accepts a connection and
//! sends nothing would otherwise occupy a thread and a socket for ever.
//!
//! Errors and log lines name an address by host and port, never with its credentials.

use std::fmt;
use std::io;
use std::net::{Ipv6Addr, Shutdown};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_rs::Tokio;
use domain::failure::{Dependency, Unavailable};
use lapin::protocol::AMQPErrorKind;
use lapin::tcp::TLSConfig;
use lapin::uri::{AMQPAuthority, AMQPScheme, AMQPUri};
use lapin::{AsyncTcpStream, ConnectionProperties};

use crate::body_limit::{BodyLimit, LargeBodies};
use crate::readable_stream::{ReadableRuntime, ReadableStream, Tcp};

/// The heartbeat timeout that is negotiated: each side sends a frame every half of it. RabbitMQ closes a
/// connection without traffic after two to three timeouts, 16 to 24 s, and only then requeues its
/// messages. The goal is a working fleet 25 s after a network failure.
const HEARTBEAT_SECONDS: u16 = 8;
/// The limit for TCP and TLS to one address. A node that is up needs milliseconds.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// The limits for TCP, TLS and the AMQP handshake with one address: at first, and when earlier ones were too short.
const LEAST_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);
const LONGEST_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// The limit for the reply to a request on an open connection. A node under load needs less than a
/// second; a queue that elects its leader needs a few seconds.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// The largest frame on a connection that carries no message headers, in bytes: the smallest allowed value
/// (RabbitMQ 4.1, `initial_frame_max`). lapin allocates 64 frames per connection, which is 8 MiB with
/// RabbitMQ's default.
const REQUEST_FRAME_BYTES: u32 = 8192;
/// RabbitMQ's reply code for a queue or an exchange that does not exist.
pub(crate) const NOT_FOUND: u16 = 404;
/// The limit for the closing handshake. After it the socket is closed.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// The addresses of one RabbitMQ cluster, and the connection name of this process.
#[derive(Clone)]
pub struct Endpoints {
    addresses: Arc<[AMQPUri]>,
    process: Arc<str>,
    /// The index of the address that was connected last.
    preferred: Arc<AtomicUsize>,
    handshake_timeout: HandshakeTimeout,
    /// Of all connections of this process.
    pub(crate) large_bodies: LargeBodies,
}

/// Why a list of addresses is invalid. It does not contain the text, which may contain a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAddress {
    /// The list is empty.
    #[error("no RabbitMQ address given; the form is amqp://user:password@host:5672/vhost")]
    Empty,
    /// An address is not an AMQP URL.
    #[error(
        "address {position} of the RabbitMQ addresses is not an amqp:// or amqps:// URL: {why}"
    )]
    Malformed {
        /// Its position in the list, from 1.
        position: usize,
        /// What is wrong with it.
        why: String,
    },
}

/// A failed connection or request to RabbitMQ.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No address accepted the connection.
    #[error("cannot connect to RabbitMQ at {tried}")]
    Connect {
        /// The addresses, without credentials.
        tried: String,
        /// The error of the last address.
        #[source]
        source: lapin::Error,
    },
    /// A request failed, or the connection under it.
    #[error("RabbitMQ request failed: {what}")]
    Request {
        /// What was requested, such as `open a channel`.
        what: &'static str,
        /// The error of the client library.
        #[source]
        source: lapin::Error,
    },
    /// There was no reply within the limit.
    #[error("RabbitMQ request timed out after {} s: {what}", limit.as_secs_f64())]
    TimedOut {
        /// What was requested.
        what: &'static str,
        /// The limit.
        limit: Duration,
    },
}

/// An open connection. Dropping it closes the socket at once, and RabbitMQ requeues what was not
/// acknowledged. Otherwise lapin would keep sending heartbeats, and the messages would stay
/// unacknowledged.
pub struct Connection {
    amqp: lapin::Connection,
    socket: Socket,
}

/// A connection and its one channel.
pub(crate) struct Link {
    pub(crate) connection: Connection,
    pub(crate) channel: lapin::Channel,
}

impl Endpoints {
    /// Parses one URL, or several separated by commas (the nodes of one cluster). `process` is the first
    /// part of the connection name.
    ///
    /// # Errors
    /// There is no address, or one is not an AMQP URL.
    pub fn parse(urls: &str, process: &str) -> Result<Self, InvalidAddress> {
        let urls = urls.split(',').map(str::trim).filter(|url| !url.is_empty());
        let addresses = urls.enumerate().map(|(at, url)| {
            let malformed = |why| InvalidAddress::Malformed { position: at + 1, why };
            // Checked here: an error of the client library may repeat the URL.
            if !["amqp://", "amqps://"].iter().any(|scheme| url.starts_with(scheme)) {
                return Err(malformed("it has another scheme".to_owned()));
            }
            let mut address: AMQPUri = url.parse().map_err(malformed)?;
            if let Some(host) = ipv6_host(url) {
                address.authority.host = host.to_string();
            }
            address.query.heartbeat = Some(HEARTBEAT_SECONDS);
            Ok(address)
        });
        let addresses: Arc<[AMQPUri]> = addresses.collect::<Result<_, _>>()?;
        if addresses.is_empty() {
            return Err(InvalidAddress::Empty);
        }
        let (preferred, handshake_timeout, large_bodies) = Default::default();
        Ok(Self { addresses, process: process.into(), preferred, handshake_timeout, large_bodies })
    }

    /// The user of the connections, as the first address names it.
    #[must_use]
    pub fn user(&self) -> &str {
        self.addresses.first().map_or("", |address| &address.authority.userinfo.username)
    }

    /// Connects to the first address that accepts the connection. The address that was connected last is
    /// tried first. `purpose` is the second part of the connection name.
    ///
    /// # Errors
    /// No address accepted the connection.
    pub async fn connect(&self, purpose: &str) -> Result<Connection, Error> {
        self.connect_to(&self.addresses, purpose, &BodyLimit::NONE).await
    }

    /// [`Self::connect`]; only these bodies are received. Of another message
    /// [`Moved::body_bytes`](crate::raw_message::Moved::body_bytes) tells the length of the body.
    pub(crate) async fn connect_for_bodies(
        &self,
        limit: &BodyLimit,
        purpose: &str,
    ) -> Result<Connection, Error> {
        self.connect_to(&self.addresses, purpose, limit).await
    }

    /// [`Self::connect`] with small frames, for requests and replies. Do not consume or publish messages with
    /// headers on this connection: they may need a larger frame.
    pub(crate) async fn connect_for_requests(&self, purpose: &str) -> Result<Connection, Error> {
        let mut addresses = self.addresses.to_vec();
        for address in &mut addresses {
            address.query.frame_max = Some(REQUEST_FRAME_BYTES);
        }
        self.connect_to(&addresses, purpose, &BodyLimit::NONE).await
    }

    async fn connect_to(
        &self,
        addresses: &[AMQPUri],
        purpose: &str,
        limit: &BodyLimit,
    ) -> Result<Connection, Error> {
        let first = self.preferred.load(Ordering::Relaxed);
        let mut last_error = None;
        for index in (0..addresses.len()).map(|n| (first + n) % addresses.len()) {
            let name = format!("{} {purpose}", self.process);
            let (timeout, began) = (self.handshake_timeout.get(), Instant::now());
            match open(addresses[index].clone(), name, limit.clone(), timeout).await {
                Ok(connection) => {
                    self.handshake_timeout.answered_after(began.elapsed());
                    self.preferred.store(index, Ordering::Relaxed);
                    return Ok(connection);
                }
                Err(error) => {
                    if began.elapsed() >= timeout {
                        self.handshake_timeout.was_too_short(timeout);
                    }
                    last_error = Some(error);
                }
            }
        }
        let source = last_error.unwrap_or_else(|| timed_out().into());
        Err(Error::Connect { tried: self.to_string(), source })
    }
}

impl fmt::Display for Endpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let addresses = self.addresses.iter().map(|it| &it.authority);
        let address = |it: &AMQPAuthority| match it.host.parse::<Ipv6Addr>() {
            Ok(host) => format!("[{host}]:{}", it.port),
            Err(_) => format!("{}:{}", it.host, it.port),
        };
        let addresses: Vec<_> = addresses.map(address).collect();
        f.write_str(&addresses.join(", "))
    }
}

impl fmt::Debug for Endpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoints({self})")
    }
}

impl Error {
    /// RabbitMQ's reply code (such as 404 or 406) and reply text, if it refused the request and closed only the
    /// channel. A code that closes the connection, such as 541, says nothing about what was requested.
    pub(crate) fn reply(&self) -> Option<(u16, String)> {
        match self.kind()? {
            lapin::ErrorKind::ProtocolError(error)
                if matches!(error.kind(), AMQPErrorKind::Soft(_)) =>
            {
                Some((error.get_id(), error.get_message().to_string()))
            }
            _ => None,
        }
    }

    fn kind(&self) -> Option<&lapin::ErrorKind> {
        match self {
            Self::Connect { source, .. } | Self::Request { source, .. } => Some(source.kind()),
            Self::TimedOut { .. } => None,
        }
    }
}

impl From<Error> for Unavailable {
    fn from(error: Error) -> Self {
        Self { dependency: Dependency::RabbitMq, source: Box::new(error) }
    }
}

impl Connection {
    pub(crate) async fn channel(&self) -> Result<lapin::Channel, Error> {
        request("open a channel", self.open_channel()).await
    }

    /// Opens a channel without a limit; the caller limits the wait.
    pub(crate) fn open_channel(&self) -> impl Future<Output = lapin::Result<lapin::Channel>> {
        self.amqp.create_channel()
    }

    /// Whether RabbitMQ blocks this connection (memory or disk alarm).
    pub(crate) fn is_blocked(&self) -> bool {
        self.amqp.status().blocked()
    }

    /// Whether the connection is open, as far as lapin knows.
    pub(crate) fn is_open(&self) -> bool {
        self.amqp.status().connected()
    }

    /// Closes the connection with the AMQP handshake, for at most 2 s, and then the socket.
    pub(crate) async fn close(self) {
        let close = self.amqp.close(200, "closed by client".into());
        if let Ok(Err(error)) = tokio::time::timeout(CLOSE_TIMEOUT, close).await {
            tracing::debug!(error = %error, "the connection to RabbitMQ failed before it was closed");
        }
    }
}

impl Link {
    /// A connection with a new channel.
    pub(crate) async fn on(connection: Connection) -> Result<Self, Error> {
        let channel = connection.channel().await?;
        Ok(Self { connection, channel })
    }

    pub(crate) fn is_usable(&self) -> bool {
        self.connection.is_open() && self.channel.status().connected()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.socket.close();
    }
}

/// Waits for a reply, for at most 10 s.
pub(crate) async fn request<T>(
    what: &'static str,
    reply: impl Future<Output = lapin::Result<T>>,
) -> Result<T, Error> {
    request_within(REQUEST_TIMEOUT, what, reply).await
}

pub(crate) async fn request_within<T>(
    limit: Duration,
    what: &'static str,
    reply: impl Future<Output = lapin::Result<T>>,
) -> Result<T, Error> {
    match tokio::time::timeout(limit, reply).await {
        Ok(Ok(reply)) => Ok(reply),
        Ok(Err(source)) => Err(Error::Request { what, source }),
        Err(_) => Err(Error::TimedOut { what, limit }),
    }
}

/// A second handle of the socket that lapin owns, to close it without waiting for lapin.
#[derive(Clone, Default)]
struct Socket(Arc<Mutex<Option<std::net::TcpStream>>>);

impl Socket {
    fn set(&self, socket: std::net::TcpStream) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(socket);
    }

    fn close(&self) {
        if let Some(socket) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // Shutting down fails only when the other side closed the socket first.
            drop(socket.shutdown(Shutdown::Both));
        }
    }
}

/// The host of a URL, if it is an IPv6 address. amq-protocol-uri 10.6.3 takes only names and IPv4 addresses for a host
/// (`url.domain()` in its `FromStr`): it replaces an IPv6 address by `localhost`, which would get the credentials.
fn ipv6_host(url: &str) -> Option<Ipv6Addr> {
    let (_, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    host.strip_prefix('[')?.split_once(']')?.0.parse().ok()
}

async fn open(
    address: AMQPUri,
    name: String,
    limit: BodyLimit,
    timeout: Duration,
) -> lapin::Result<Connection> {
    // lapin's recovery stays off (its default): it stops after 16 tries and does not know what was in
    // flight.
    let properties = ConnectionProperties::default().with_connection_name(name.into());
    let socket = Socket::default();
    let tokio = Tokio::current();
    let runtime = ReadableRuntime::on(tokio.clone());
    let handshake = async {
        // Before lapin is called: of a connection that cannot be opened, lapin 4.12 leaves a task that never ends (its
        // I/O loop returns without `internal_rpc.stop()`), some 15 KiB for each try of an outage.
        let connecting = tokio::time::timeout(CONNECT_TIMEOUT, connect(&tokio, &address, &socket));
        let stream = connecting.await.unwrap_or_else(|_| Err(timed_out()))?;
        let stream = Mutex::new(Some(ReadableStream::new(stream, limit)));
        // It runs once, on lapin's own thread: without recovery it is not called again.
        let take = async move |_: AMQPUri, _| {
            let stream = stream.lock().unwrap_or_else(PoisonError::into_inner).take();
            let stream = stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))?;
            Ok(AsyncTcpStream::Plain(stream))
        };
        lapin::Connection::connector(address, runtime, take, properties).await
    };
    let connected = tokio::time::timeout(timeout, handshake).await;
    match connected.unwrap_or_else(|_| Err(timed_out().into())) {
        Ok(amqp) => Ok(Connection { amqp, socket }),
        Err(error) => {
            socket.close();
            Err(error)
        }
    }
}

/// Opens TCP, and TLS if the address says so.
async fn connect(
    tokio: &Tokio,
    address: &AMQPUri,
    socket: &Socket,
) -> io::Result<AsyncTcpStream<Tcp>> {
    let (host, port) = (address.authority.host.as_str(), address.authority.port);
    let found: Vec<_> = tokio::net::lookup_host((host, port)).await?.collect();
    let stream = AsyncTcpStream::connect(tokio, found.as_slice()).await?;
    if let AsyncTcpStream::Plain(plain) = &stream {
        socket.set(plain.get_ref().as_fd().try_clone_to_owned()?.into());
    }
    match address.scheme {
        AMQPScheme::AMQP => Ok(stream),
        AMQPScheme::AMQPS => stream.into_tls(host, TLSConfig::default()).await,
    }
}

/// How long a new connection is waited for. A server that is starting accepts connections to which it never responds, so it
/// is short. A server that is slow, or far away, gets more time at the next try.
#[derive(Debug, Clone)]
struct HandshakeTimeout(Arc<Mutex<Duration>>);

impl Default for HandshakeTimeout {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(LEAST_HANDSHAKE_TIMEOUT)))
    }
}

impl HandshakeTimeout {
    fn get(&self) -> Duration {
        *self.lock()
    }

    /// This one was too short. Several tries that began together count once.
    fn was_too_short(&self, timeout: Duration) {
        let mut next = self.lock();
        *next = (*next).max(timeout.saturating_mul(2).min(LONGEST_HANDSHAKE_TIMEOUT));
    }

    /// The server answered after this time.
    fn answered_after(&self, time: Duration) {
        let twice = time.saturating_mul(2);
        *self.lock() = twice.clamp(LEAST_HANDSHAKE_TIMEOUT, LONGEST_HANDSHAKE_TIMEOUT);
    }

    fn lock(&self) -> MutexGuard<'_, Duration> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn timed_out() -> io::Error {
    io::Error::from(io::ErrorKind::TimedOut)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use testkit::wait::eventually;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_server_that_is_slow_to_accept_gets_more_time_and_one_that_is_fast_less_again() {
        let (timeout, seconds) = (HandshakeTimeout::default(), Duration::from_secs);
        assert_eq!(timeout.get(), seconds(2));
        for expected in [4, 5, 5] {
            let limit = timeout.get();
            // Two connections that began together.
            timeout.was_too_short(limit);
            timeout.was_too_short(limit);
            assert_eq!(timeout.get(), seconds(expected));
        }
        timeout.answered_after(Duration::from_millis(1_500));
        assert_eq!(timeout.get(), seconds(3));
        timeout.answered_after(Duration::from_millis(20));
        assert_eq!(timeout.get(), seconds(2));
    }

    /// Listens, and does this with each connection.
    async fn server(with: impl Fn(TcpStream) + Send + 'static) -> String {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let url = format!("amqp://u:p@{}/v", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                with(stream);
            }
        });
        url
    }

    #[tokio::test]
    async fn connections_that_cannot_be_opened_leave_no_task() {
        let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let refused = format!("amqp://u:p@{}/v", closed.local_addr().unwrap());
        drop(closed);
        let closes = server(drop).await;
        let resets = server(|stream| stream.set_zero_linger().unwrap()).await;
        let garbles = server(|stream| {
            stream.try_write(b"HTTP/1.1 400 Bad Request\r\n\r\n").ok();
        })
        .await;
        let (keep, _kept) = tokio::sync::mpsc::unbounded_channel();
        let silent = server(move |stream| keep.send(stream).unwrap()).await;
        for (url, tries) in [(refused, 20), (closes, 20), (resets, 20), (garbles, 20), (silent, 1)]
        {
            let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
            let (endpoints, before) = (Endpoints::parse(&url, "p").unwrap(), tasks());
            for _ in 0..tries {
                assert!(endpoints.connect("test").await.is_err(), "{url}");
            }
            let what = format!("the tasks of {tries} tries at {url} to end");
            eventually(what, Duration::from_secs(20), async || match tasks() {
                now if now <= before => Ok(()),
                now => Err(format!("{before} tasks before, {now} now")),
            })
            .await;
        }
    }

    #[test]
    fn addresses_separated_by_commas_are_one_cluster() {
        let endpoints =
            Endpoints::parse("amqp://a:1/x, amqps://u:p@b/y ,", "message-save-worker").unwrap();
        assert_eq!(endpoints.to_string(), "a:1, b:5671");
    }

    #[test]
    fn a_bad_address_is_named_by_position_and_not_repeated() {
        let error = Endpoints::parse("amqp://a, http://u:hunter2@b", "p").unwrap_err();
        let text = error.to_string();
        assert!(text.contains("address 2") && !text.contains("hunter2"), "{text}");
        assert_eq!(Endpoints::parse(" , ", "p").unwrap_err(), InvalidAddress::Empty);
    }

    #[test]
    fn an_ipv6_address_is_connected_to_and_not_the_local_host() {
        for (url, shown) in [
            ("amqp://u:p@[2001:db8::7]:5673/v", "[2001:db8::7]:5673"),
            ("amqps://[2001:DB8:0::7]", "[2001:db8::7]:5671"),
            ("amqp://u:p@192.0.2.7/v", "192.0.2.7:5672"),
        ] {
            assert_eq!(Endpoints::parse(url, "p").unwrap().to_string(), shown);
        }
    }

    #[test]
    fn an_error_does_not_repeat_a_url_without_slashes() {
        let error = Endpoints::parse("amqp:user:hunter2@host", "p").unwrap_err().to_string();
        assert!(!error.contains("hunter2"), "{error}");
    }

    #[tokio::test]
    async fn a_server_on_an_ipv6_address_gets_the_handshake() {
        use tokio::io::AsyncReadExt as _;
        let server = tokio::net::TcpListener::bind("[::1]:0").await.unwrap();
        let port = server.local_addr().unwrap().port();
        let endpoints = Endpoints::parse(&format!("amqp://u:p@[::1]:{port}/v"), "p").unwrap();
        assert_eq!(endpoints.to_string(), format!("[::1]:{port}"));
        let accepted = async {
            let mut header = [0; 8];
            let (mut client, peer) = server.accept().await.unwrap();
            client.read_exact(&mut header).await.unwrap();
            (header, peer.is_ipv6())
        };
        let ((header, ipv6), connection) = tokio::join!(accepted, endpoints.connect("test"));
        // AMQP 0-9-1, 4.2.2: the protocol header.
        assert_eq!((&header, ipv6), (b"AMQP\x00\x00\x09\x01", true));
        assert!(connection.is_err(), "the server closed the connection");
    }

    #[test]
    fn neither_display_nor_debug_contains_a_password() {
        let endpoints = Endpoints::parse("amqp://user:hunter2@host:5672/v", "p").unwrap();
        assert_eq!(format!("{endpoints} {endpoints:?}"), "host:5672 Endpoints(host:5672)");
    }

    #[test]
    fn only_a_code_that_closes_the_channel_alone_is_a_reply_to_the_request() {
        // AMQP 0-9-1, 1.2: ACCESS_REFUSED, NOT_FOUND, RESOURCE_LOCKED and PRECONDITION_FAILED close the channel;
        // CONNECTION_FORCED, NOT_ALLOWED and INTERNAL_ERROR the connection.
        for (code, replied) in [
            (403, true),
            (404, true),
            (405, true),
            (406, true),
            (320, false),
            (530, false),
            (541, false),
        ] {
            let error = lapin::protocol::AMQPError::from_id(code, "text".into()).unwrap();
            let source = lapin::ErrorKind::ProtocolError(error).into();
            let error = Error::Request { what: "declare a queue", source };
            assert_eq!(error.reply().is_some(), replied, "{code}");
        }
    }

    #[tokio::test]
    async fn a_refused_connection_is_an_error_that_names_the_addresses() {
        // Nothing listens on port 9 (discard); the connection is refused at once.
        let endpoints = Endpoints::parse("amqp://user:hunter2@127.0.0.1:9", "p").unwrap();
        let Err(error) = endpoints.connect("test").await else {
            panic!("something listens on port 9");
        };
        assert_eq!(error.to_string(), "cannot connect to RabbitMQ at 127.0.0.1:9");
        assert_eq!(Unavailable::from(error).dependency, Dependency::RabbitMq);
    }
}

//! Connections to RabbitMQ: several addresses, bounded waiting, and a name that operators recognise.
//!
//! Nothing here reconnects behind anybody's back: a connection that is gone stays gone, and whoever
//! owned it builds a new one, because only the owner knows what was in flight. Every wait has a
//! limit, the handshake's too: a server that accepts and then says nothing would otherwise keep a
//! thread and a socket for ever.
//!
//! Passwords never leave this file: errors and log lines know an address by host and port.

use std::fmt;
use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use domain::failure::{Dependency, FailureClass, Unavailable};
use lapin::tcp::TLSConfig;
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{AsyncTcpStream, ConnectionProperties};

/// How often each side says that it is alive. RabbitMQ gives a silent connection up after two to
/// three of these, 16 to 24 s, and only then delivers its messages to somebody else: a fleet is
/// to be whole 25 s after a silent cut.
const HEARTBEAT_SECONDS: u16 = 8;
/// For one address to accept and finish TLS. A node that is up does it in milliseconds.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// For one address to get through the whole AMQP handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// For an answer to any request on an open connection. A node under load takes less than a second;
/// a queue that elects its leader takes a few.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// The largest frame on a connection that carries no messages, in bytes: the least that there may be
/// (RabbitMQ 4.1, `initial_frame_max`). lapin keeps memory for 64 frames of each connection, 8 MiB
/// with RabbitMQ's default.
const REQUEST_FRAME_BYTES: u32 = 8192;
/// For a polite goodbye before the socket is closed anyway.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// The nodes of one RabbitMQ cluster, and as whom this process connects.
#[derive(Clone)]
pub struct Endpoints {
    inner: Arc<Inner>,
}

struct Inner {
    addresses: Vec<AMQPUri>,
    process: String,
    /// The address that worked last.
    preferred: AtomicUsize,
}

/// Why a list of addresses cannot be used. Does not repeat the text, which may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAddress {
    /// The list is empty.
    #[error("no RabbitMQ address given; one looks like amqp://user:password@host:5672/vhost")]
    Empty,
    /// An address is not an AMQP URL.
    #[error(
        "address {position} of the RabbitMQ addresses is not an amqp:// or amqps:// URL: {why}"
    )]
    Malformed {
        /// Which one, from 1.
        position: usize,
        /// What is wrong with it.
        why: String,
    },
}

/// Something went wrong between this process and RabbitMQ.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// None of the addresses let us in.
    #[error("cannot connect to RabbitMQ at {tried}")]
    Connect {
        /// The addresses, without credentials.
        tried: String,
        /// What the last one said.
        #[source]
        source: lapin::Error,
    },
    /// A request failed, or the connection under it.
    #[error("RabbitMQ failed to {what}")]
    Request {
        /// What was asked for.
        what: &'static str,
        /// What the client library said.
        #[source]
        source: lapin::Error,
    },
    /// No answer came in time.
    #[error("RabbitMQ did not {what} within {} s", limit.as_secs())]
    TimedOut {
        /// What was asked for.
        what: &'static str,
        /// How long we waited.
        limit: Duration,
    },
}

/// An open connection. Dropping it closes the socket at once: the broker then requeues what was not
/// acknowledged, instead of waiting for heartbeats that still come.
pub struct Connection {
    amqp: lapin::Connection,
    socket: Socket,
}

impl Endpoints {
    /// Parses one URL, or several with commas between them (the nodes of one cluster). `process` is
    /// the name under which operators see the connections.
    ///
    /// # Errors
    /// There is no address, or one is malformed.
    pub fn parse(urls: &str, process: &str) -> Result<Self, InvalidAddress> {
        let urls = urls.split(',').map(str::trim).filter(|url| !url.is_empty());
        let addresses = urls.enumerate().map(|(at, url)| {
            let malformed = |why| InvalidAddress::Malformed { position: at + 1, why };
            let mut address: AMQPUri = url.parse().map_err(malformed)?;
            address.query.heartbeat = Some(HEARTBEAT_SECONDS);
            Ok(address)
        });
        let addresses: Vec<AMQPUri> = addresses.collect::<Result<_, _>>()?;
        if addresses.is_empty() {
            return Err(InvalidAddress::Empty);
        }
        let preferred = AtomicUsize::new(0);
        Ok(Self { inner: Arc::new(Inner { addresses, process: process.to_owned(), preferred }) })
    }

    /// Connects to the first address that lets us in, beginning with the one that did so last.
    /// `purpose` distinguishes the connections of one process.
    ///
    /// # Errors
    /// No address did.
    pub async fn connect(&self, purpose: &str) -> Result<Connection, Error> {
        self.connect_to(&self.inner.addresses, purpose).await
    }

    /// [`Self::connect`] for requests alone: nothing may be consumed or published mandatory on this
    /// connection, since the headers of a message may need a larger frame.
    pub(crate) async fn connect_for_requests(&self, purpose: &str) -> Result<Connection, Error> {
        let mut addresses = self.inner.addresses.clone();
        for address in &mut addresses {
            address.query.frame_max = Some(REQUEST_FRAME_BYTES);
        }
        self.connect_to(&addresses, purpose).await
    }

    async fn connect_to(&self, addresses: &[AMQPUri], purpose: &str) -> Result<Connection, Error> {
        let Inner { process, preferred, .. } = &*self.inner;
        let first = preferred.load(Ordering::Relaxed);
        let mut last_error = None;
        for index in (0..addresses.len()).map(|n| (first + n) % addresses.len()) {
            match open(addresses[index].clone(), format!("{process} {purpose}")).await {
                Ok(connection) => {
                    preferred.store(index, Ordering::Relaxed);
                    return Ok(connection);
                }
                Err(error) => last_error = Some(error),
            }
        }
        let source = last_error.unwrap_or_else(|| timed_out().into());
        Err(Error::Connect { tried: self.to_string(), source })
    }
}

impl fmt::Display for Endpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, address) in self.inner.addresses.iter().enumerate() {
            let comma = if n > 0 { ", " } else { "" };
            write!(f, "{comma}{}:{}", address.authority.host, address.authority.port)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Endpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoints({self})")
    }
}

impl Error {
    /// How it is to be treated: whatever RabbitMQ fails at is the weather, never a message's fault.
    #[must_use]
    pub fn class(&self) -> FailureClass {
        FailureClass::Unavailable
    }

    /// Whether the client library could not read what the broker sent: a property of a message that
    /// is not UTF-8, most likely. It gives the whole connection up for that.
    pub(crate) fn is_unreadable(&self) -> bool {
        let (Self::Connect { source, .. } | Self::Request { source, .. }) = self else {
            return false;
        };
        matches!(source.kind(), lapin::ErrorKind::ParsingError(_))
    }

    /// The broker's own words, where it sent some: a code such as 404 or 406 and a text.
    pub(crate) fn reply(&self) -> Option<(u16, String)> {
        let (Self::Connect { source, .. } | Self::Request { source, .. }) = self else {
            return None;
        };
        match source.kind() {
            lapin::ErrorKind::ProtocolError(error) => {
                Some((error.get_id(), error.get_message().to_string()))
            }
            _ => None,
        }
    }
}

impl From<Error> for Unavailable {
    fn from(error: Error) -> Self {
        Self { dependency: Dependency::RabbitMq, source: Box::new(error) }
    }
}

impl Connection {
    /// A fresh channel.
    pub(crate) async fn channel(&self) -> Result<lapin::Channel, Error> {
        request("open a channel", self.open_channel()).await
    }

    /// A fresh channel, for those who limit the wait themselves.
    pub(crate) fn open_channel(&self) -> impl Future<Output = lapin::Result<lapin::Channel>> {
        self.amqp.create_channel()
    }

    /// Whether the broker stopped reading from this connection (memory or disk alarm).
    pub(crate) fn is_blocked(&self) -> bool {
        self.amqp.status().blocked()
    }

    /// Whether it can still be used, as far as is known here.
    pub(crate) fn is_open(&self) -> bool {
        self.amqp.status().connected()
    }

    /// Says goodbye, waits for the answer a moment, and closes the socket.
    pub(crate) async fn close(self) {
        let goodbye = self.amqp.close(200, "goodbye".into());
        if let Ok(Err(error)) = tokio::time::timeout(CLOSE_TIMEOUT, goodbye).await {
            tracing::debug!(error = %error, "the connection to RabbitMQ was gone before its goodbye");
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.socket.shut();
    }
}

/// Waits for an answer, but not for ever.
pub(crate) async fn request<T>(
    what: &'static str,
    answer: impl Future<Output = lapin::Result<T>>,
) -> Result<T, Error> {
    request_within(REQUEST_TIMEOUT, what, answer).await
}

/// Waits for an answer, but no longer than this.
pub(crate) async fn request_within<T>(
    limit: Duration,
    what: &'static str,
    answer: impl Future<Output = lapin::Result<T>>,
) -> Result<T, Error> {
    match tokio::time::timeout(limit, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(source)) => Err(Error::Request { what, source }),
        Err(_) => Err(Error::TimedOut { what, limit }),
    }
}

/// A second handle on the socket that lapin owns, to close it when lapin would wait.
#[derive(Clone, Default)]
struct Socket(Arc<Mutex<Option<std::net::TcpStream>>>);

impl Socket {
    fn keep(&self, socket: std::net::TcpStream) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(socket);
    }

    fn shut(&self) {
        if let Some(socket) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // Fails only where the other side closed it first.
            drop(socket.shutdown(Shutdown::Both));
        }
    }
}

async fn open(address: AMQPUri, name: String) -> lapin::Result<Connection> {
    // Recovery stays off (lapin's default): it gives up after 16 tries and cannot know what was in
    // flight.
    let properties = ConnectionProperties::default().with_connection_name(name.into());
    let socket = Socket::default();
    let kept = socket.clone();
    let runtime = lapin::runtime::default_runtime()?;
    // The closure runs on lapin's own thread, once: without recovery there is no second time.
    let handshake = lapin::Connection::connector(
        address,
        runtime,
        async move |address: AMQPUri, runtime| {
            let (host, port) = (address.authority.host.as_str(), address.authority.port);
            let dial = async {
                let found: Vec<_> = tokio::net::lookup_host((host, port)).await?.collect();
                let stream = AsyncTcpStream::connect(&runtime, found.as_slice()).await?;
                if let AsyncTcpStream::Plain(plain) = &stream {
                    kept.keep(plain.get_ref().as_fd().try_clone_to_owned()?.into());
                }
                match address.scheme {
                    AMQPScheme::AMQP => Ok(stream),
                    AMQPScheme::AMQPS => stream.into_tls(host, TLSConfig::default()).await,
                }
            };
            let dialled = tokio::time::timeout(CONNECT_TIMEOUT, dial).await;
            dialled.unwrap_or_else(|_| Err(timed_out())).map_err(lapin::Error::from)
        },
        properties,
    );
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
        Ok(Ok(amqp)) => Ok(Connection { amqp, socket }),
        Ok(Err(error)) => {
            socket.shut();
            Err(error)
        }
        Err(_) => {
            socket.shut();
            Err(timed_out().into())
        }
    }
}

fn timed_out() -> io::Error {
    io::Error::from(io::ErrorKind::TimedOut)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_addresses_are_one_cluster() {
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
    fn nothing_printable_holds_a_password() {
        let endpoints = Endpoints::parse("amqp://user:hunter2@host:5672/v", "p").unwrap();
        assert_eq!(format!("{endpoints} {endpoints:?}"), "host:5672 Endpoints(host:5672)");
    }

    #[tokio::test]
    async fn nobody_listening_is_an_error_that_names_the_addresses() {
        // Port 9 (discard) is not served here; the connection is refused at once.
        let endpoints = Endpoints::parse("amqp://user:hunter2@127.0.0.1:9", "p").unwrap();
        let Err(error) = endpoints.connect("test").await else {
            panic!("something answered on port 9");
        };
        assert_eq!(error.to_string(), "cannot connect to RabbitMQ at 127.0.0.1:9");
        assert_eq!(error.class(), FailureClass::Unavailable);
    }
}

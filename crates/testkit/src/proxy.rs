//! A TCP proxy that simulates network faults: cut, freeze, slow down, reset.
//!
//! It is placed between one client and one server, so that a fault affects that client only. Every method
//! returns when the fault has taken effect.
//!
//! For a cluster it proxies every node, on the nodes' ports at another loopback address. The private
//! clusters announce no host, so a client that connects through the proxy reaches all nodes through it.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;
use uuid::Uuid;

use crate::ports;

/// The most bytes that are forwarded at once; [`Proxy::slow`] delays each such chunk.
const CHUNK_BYTES: usize = 16 * 1024;

/// A proxy in front of one server, or of all nodes of a cluster. Dropping it closes its connections.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    url: String,
    state: watch::Sender<State>,
    count: watch::Receiver<Count>,
    routes: usize,
    _acceptors: JoinSet<()>,
}

/// A listening address, and the server that its connections are forwarded to.
#[derive(Debug, Clone, Copy)]
struct Route {
    from: SocketAddrV4,
    to: SocketAddr,
}

/// Numbers of connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Count {
    /// Open now.
    pub open: usize,
    /// Accepted since the start.
    pub accepted: usize,
    listening: usize,
    /// A port could not be bound.
    broken: bool,
}

/// The state that the network is to have.
#[derive(Debug, Clone, Copy)]
struct State {
    network_fault: NetworkFault,
    /// A connection ends when the epoch in which it was accepted ends.
    epoch: u64,
    /// How connections of earlier epochs end.
    end: End,
    /// Where new connections are forwarded to, if not to the server of their route.
    redirect: Option<SocketAddr>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NetworkFault {
    /// Bytes are forwarded at once.
    None,
    /// Each chunk is delayed.
    Slow(Duration),
    /// Connections stay open, and no bytes are forwarded.
    Frozen,
    /// Connections are closed, and new ones are refused.
    Down,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Close,
    Reset,
}

impl Proxy {
    /// Starts a proxy in front of the server of a URL, or of the nodes of several URLs, separated by
    /// commas.
    ///
    /// # Errors
    /// When a URL has no numeric address with a port, or no port can be listened on.
    pub async fn before(url: &str) -> io::Result<Self> {
        let state =
            State { network_fault: NetworkFault::None, epoch: 0, end: End::Close, redirect: None };
        let (state, states) = watch::channel(state);
        let (counter, count) = watch::channel(Count::default());
        let servers = url.split(',').map(address).collect::<io::Result<Vec<_>>>()?;
        let elsewhere = another_loopback();
        let (mut routes, mut urls) = (Vec::new(), Vec::new());
        for (before, to, after) in &servers {
            let from = match servers.len() {
                1 => SocketAddrV4::new(Ipv4Addr::LOCALHOST, ports::free()),
                _ => SocketAddrV4::new(elsewhere, to.port()),
            };
            routes.push(Route { from, to: *to });
            urls.push(format!("{before}{from}{after}"));
        }
        let mut acceptors = JoinSet::new();
        for route in &routes {
            acceptors.spawn(accept(*route, states.clone(), counter.clone()));
        }
        let proxy = Self {
            port: routes[0].from.port(),
            url: urls.join(","),
            state,
            count,
            routes: routes.len(),
            _acceptors: acceptors,
        };
        proxy.settled(|count| count.listening == routes.len()).await?;
        Ok(proxy)
    }

    /// The server's URL with the address of the proxy.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The port that the proxy listens on; for a cluster, that of the first node.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The numbers of its connections.
    #[must_use]
    pub fn count(&self) -> Count {
        *self.count.borrow()
    }

    /// Closes every connection and refuses new ones, as if the server did not run.
    ///
    /// # Errors
    /// When the proxy itself has ended.
    pub async fn cut(&self) -> io::Result<()> {
        self.state.send_modify(|state| {
            state.network_fault = NetworkFault::Down;
            state.epoch += 1;
            state.end = End::Close;
        });
        self.settled(|count| count.listening == 0 && count.open == 0).await
    }

    /// Ends every connection with a reset (RST); new ones are accepted.
    ///
    /// # Errors
    /// When the proxy itself has ended.
    pub async fn reset(&self) -> io::Result<()> {
        let before = self.count().accepted;
        self.state.send_modify(|state| {
            state.epoch += 1;
            state.end = End::Reset;
        });
        self.settled(|count| count.open <= count.accepted - before).await
    }

    /// Resets every connection and forwards new ones to the server of another URL, as after a failover of
    /// an address.
    ///
    /// # Errors
    /// When the URL has no numeric address with a port, or the proxy itself has ended.
    pub async fn lead_to(&self, url: &str) -> io::Result<()> {
        let (_, server, _) = address(url)?;
        self.state.send_modify(|state| state.redirect = Some(server));
        self.reset().await
    }

    /// Keeps connections open, accepts new ones, and forwards no bytes, like a broken switch.
    pub fn freeze(&self) {
        self.state.send_modify(|state| state.network_fault = NetworkFault::Frozen);
    }

    /// Delays every chunk (16 KiB at most) by `delay`, in both directions.
    pub fn slow(&self, delay: Duration) {
        self.state.send_modify(|state| state.network_fault = NetworkFault::Slow(delay));
    }

    /// Ends the fault: frozen bytes are forwarded, and connections are accepted.
    ///
    /// # Errors
    /// When the proxy itself has ended.
    pub async fn restore(&self) -> io::Result<()> {
        self.state.send_modify(|state| state.network_fault = NetworkFault::None);
        self.settled(|count| count.listening == self.routes).await
    }

    async fn settled(&self, mut reached: impl FnMut(&Count) -> bool) -> io::Result<()> {
        let mut count = self.count.clone();
        match count.wait_for(|count| count.broken || reached(count)).await {
            Ok(count) if !count.broken => Ok(()),
            _ => Err(io::Error::other("the proxy has ended: it could not bind its port")),
        }
    }
}

/// A URL in three parts: the text before the address, the address, and the rest.
fn address(url: &str) -> io::Result<(&str, SocketAddr, &str)> {
    let malformed = || {
        io::Error::new(io::ErrorKind::InvalidInput, "the URL has no numeric address with a port")
    };
    let start = url.find("://").ok_or_else(malformed)? + 3;
    let end = url[start..].find('/').map_or(url.len(), |at| start + at);
    let start = url[start..end].rfind('@').map_or(start, |at| start + at + 1);
    let server = url[start..end].parse().map_err(|_| malformed())?;
    Ok((&url[..start], server, &url[end..]))
}

/// A random address of 127.0.0.0/8, so that two proxies do not use the same.
fn another_loopback() -> Ipv4Addr {
    let [a, b, c, ..] = *Uuid::new_v4().as_bytes();
    Ipv4Addr::new(127, a.max(1), b, c.clamp(1, 254))
}

/// Accepts connections unless the network is down; ends if the port cannot be bound.
async fn accept(route: Route, mut states: watch::Receiver<State>, counter: watch::Sender<Count>) {
    let mut connections = JoinSet::new();
    while states.wait_for(|state| state.network_fault != NetworkFault::Down).await.is_ok() {
        let Ok(listener) = listen(route.from).await else {
            return counter.send_modify(|count| count.broken = true);
        };
        counter.send_modify(|count| count.listening += 1);
        loop {
            let mut watcher = states.clone();
            tokio::select! {
                biased;
                // A closed channel counts as down: the proxy was dropped.
                _ = watcher.wait_for(|state| state.network_fault == NetworkFault::Down) => break,
                Some(_) = connections.join_next() => {}
                Ok((client, _)) = listener.accept() => {
                    let open = Open::count(&counter);
                    let states = states.clone();
                    let State { epoch, redirect, .. } = *states.borrow();
                    let server = redirect.unwrap_or(route.to);
                    connections.spawn(async move {
                        // An error closes the connection, which both ends notice.
                        connect(client, server, states, epoch).await.ok();
                        drop(open);
                    });
                }
            }
        }
        drop(listener);
        counter.send_modify(|count| count.listening -= 1);
    }
}

/// Listens on the proxy's port, with retries: a child process that is being started inherits the closed
/// listener and keeps the port bound until it executes its program.
async fn listen(on: SocketAddrV4) -> io::Result<TcpListener> {
    const TRIES: usize = 200;
    const PAUSE: Duration = Duration::from_millis(10);
    for _ in 1..TRIES {
        match TcpListener::bind(on).await {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => sleep(PAUSE).await,
            bound => return bound,
        }
    }
    TcpListener::bind(on).await
}

/// Forwards one connection until either side closes it or its epoch ends.
async fn connect(
    mut client: TcpStream,
    upstream: SocketAddr,
    states: watch::Receiver<State>,
    epoch: u64,
) -> io::Result<()> {
    let mut server = TcpStream::connect(upstream).await?;
    // Without this Nagle's algorithm would add a delay.
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    let mut watcher = states.clone();
    let end = tokio::select! {
        biased;
        state = watcher.wait_for(|state| state.epoch > epoch) => state.map_or(End::Close, |state| state.end),
        moved = async {
            tokio::try_join!(
                pump(from_client, to_server, states.clone()),
                pump(from_server, to_client, states),
            )
        } => return moved.map(|_| ()),
    };
    if end == End::Reset {
        client.set_zero_linger()?;
        server.set_zero_linger()?;
    }
    Ok(())
}

/// Forwards bytes in one direction.
async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut states: watch::Receiver<State>,
) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let bytes = from.read(&mut chunk).await?;
        let network_fault = states
            .wait_for(|state| state.network_fault != NetworkFault::Frozen)
            .await
            .map_or(NetworkFault::None, |state| state.network_fault);
        if let NetworkFault::Slow(delay) = network_fault {
            sleep(delay).await;
        }
        if bytes == 0 {
            return to.shutdown().await;
        }
        to.write_all(&chunk[..bytes]).await?;
    }
}

/// Counts a connection while it exists.
struct Open(watch::Sender<Count>);

impl Open {
    fn count(counter: &watch::Sender<Count>) -> Self {
        counter.send_modify(|count| {
            count.open += 1;
            count.accepted += 1;
        });
        Self(counter.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.send_modify(|count| count.open -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait::eventually;

    const SOON: Duration = Duration::from_secs(5);
    /// Long enough to show that no byte arrives: the connection responds in microseconds.
    const NO_RESPONSE: Duration = Duration::from_millis(100);

    /// An echo server behind a proxy.
    async fn echo() -> Proxy {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.split();
                    tokio::io::copy(&mut from, &mut to).await.ok();
                });
            }
        });
        Proxy::before(&format!("redis://user:word@{address}/0")).await.unwrap()
    }

    #[tokio::test]
    async fn a_port_that_is_in_use_for_a_moment_is_bound_afterwards() {
        let proxy = echo().await;
        proxy.cut().await.unwrap();
        let held = TcpListener::bind((Ipv4Addr::LOCALHOST, proxy.port())).await.unwrap();
        let released = async {
            // Meanwhile the acceptor runs and finds the port in use.
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            drop(held);
        };
        tokio::join!(async { proxy.restore().await.unwrap() }, released);
    }

    async fn client(proxy: &Proxy) -> TcpStream {
        TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).await.unwrap()
    }

    async fn echoed(stream: &mut TcpStream) -> io::Result<u8> {
        stream.write_u8(7).await?;
        stream.read_u8().await
    }

    #[tokio::test]
    async fn the_url_differs_only_in_the_address() {
        let proxy = echo().await;
        assert_eq!(proxy.url(), format!("redis://user:word@127.0.0.1:{}/0", proxy.port()));
    }

    #[tokio::test]
    async fn several_servers_keep_their_ports_and_are_cut_together() {
        let (one, two) = tokio::join!(echo(), echo());
        let urls = [&one, &two].map(|it| format!("redis://:word@127.0.0.1:{}/0", it.port()));
        let proxy = Proxy::before(&urls.join(",")).await.unwrap();
        let addresses: Vec<_> = proxy.url().split(',').map(|url| address(url).unwrap().1).collect();
        assert_eq!(addresses[0].ip(), addresses[1].ip());
        assert_ne!(addresses[0].ip(), Ipv4Addr::LOCALHOST);
        assert_eq!(
            addresses.iter().map(SocketAddr::port).collect::<Vec<_>>(),
            [one.port(), two.port()]
        );
        let mut streams = Vec::new();
        for address in &addresses {
            let mut stream = TcpStream::connect(address).await.unwrap();
            assert_eq!(echoed(&mut stream).await.unwrap(), 7);
            streams.push(stream);
        }
        proxy.cut().await.unwrap();
        for mut stream in streams {
            assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "closed");
        }
        for address in addresses {
            TcpStream::connect(address).await.unwrap_err();
        }
    }

    #[tokio::test]
    async fn cut_closes_and_refuses_until_restored() {
        let proxy = echo().await;
        let mut stream = client(&proxy).await;
        assert_eq!(echoed(&mut stream).await.unwrap(), 7);
        proxy.cut().await.unwrap();
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "closed");
        let refused = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        proxy.restore().await.unwrap();
        assert_eq!(echoed(&mut client(&proxy).await).await.unwrap(), 7);
        assert_eq!(proxy.count().accepted, 2);
    }

    #[tokio::test]
    async fn frozen_bytes_arrive_after_the_restore() {
        let proxy = echo().await;
        let mut stream = client(&proxy).await;
        assert_eq!(echoed(&mut stream).await.unwrap(), 7);
        proxy.freeze();
        tokio::time::timeout(NO_RESPONSE, echoed(&mut stream)).await.unwrap_err();
        proxy.restore().await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), 7);
    }

    #[tokio::test]
    async fn a_reset_ends_old_connections_with_an_error_and_new_ones_are_accepted() {
        let proxy = echo().await;
        let mut stream = client(&proxy).await;
        assert_eq!(echoed(&mut stream).await.unwrap(), 7);
        proxy.reset().await.unwrap();
        let reset = stream.read(&mut [0]).await.unwrap_err();
        assert_eq!(reset.kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(echoed(&mut client(&proxy).await).await.unwrap(), 7);
    }

    #[tokio::test]
    async fn after_a_failover_new_connections_reach_the_other_server() {
        let proxy = echo().await;
        let mut stream = client(&proxy).await;
        assert_eq!(echoed(&mut stream).await.unwrap(), 7);
        let other = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let url = format!("redis://:word@{}/0", other.local_addr().unwrap());
        proxy.lead_to(&url).await.unwrap();
        assert!(stream.read_u8().await.is_err(), "the old connection has ended");
        let mut stream = client(&proxy).await;
        let (mut accepted, _) = other.accept().await.unwrap();
        accepted.write_u8(9).await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), 9);
    }

    #[tokio::test]
    async fn a_slow_network_delays_both_directions() {
        let proxy = echo().await;
        let mut stream = client(&proxy).await;
        proxy.slow(Duration::from_millis(50));
        let began = tokio::time::Instant::now();
        assert_eq!(echoed(&mut stream).await.unwrap(), 7);
        assert!(began.elapsed() >= Duration::from_millis(100), "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn clients_of_an_unreachable_server_are_closed() {
        let proxy = Proxy::before(&format!("redis://127.0.0.1:{}/0", ports::free())).await.unwrap();
        let mut stream = client(&proxy).await;
        let closed = tokio::time::timeout(SOON, stream.read(&mut [0])).await.unwrap();
        assert!(matches!(closed, Ok(0) | Err(_)), "{closed:?}");
        eventually("no open connection", SOON, async || match proxy.count().open {
            0 => Ok(()),
            open => Err(format!("{open} open")),
        })
        .await;
    }
}

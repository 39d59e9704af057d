//! A TCP proxy that breaks the network on command: cut, freeze, slow down, reset.
//!
//! It stands between one client and one server, so that a fault hits that one path and leaves the
//! server to everybody else. Every command returns when it has taken effect.
//!
//! Before a cluster it stands before every node, on the nodes' own ports at another loopback address:
//! the private clusters tell no host, so a client that came by the proxy finds all nodes behind it.

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

/// What is moved at once, and what [`Proxy::slow`] delays.
const CHUNK_BYTES: usize = 16 * 1024;

/// A proxy in front of one server, or of all nodes of a cluster. Dropping it closes its connections.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    url: String,
    order: watch::Sender<Order>,
    count: watch::Receiver<Count>,
    routes: usize,
    _acceptors: JoinSet<()>,
}

/// From where to where connections go.
#[derive(Debug, Clone, Copy)]
struct Route {
    from: SocketAddrV4,
    to: SocketAddr,
}

/// How many connections there are and were.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Count {
    /// Open now.
    pub open: usize,
    /// Accepted since the start.
    pub accepted: usize,
    listening: usize,
    /// A port could not be had.
    broken: bool,
}

/// What the network is to do.
#[derive(Debug, Clone, Copy)]
struct Order {
    network_fault: NetworkFault,
    /// A connection belongs to the epoch in which it was accepted, and ends with it.
    epoch: u64,
    end: End,
    /// Where new connections go, if not to their route's own server.
    detour: Option<SocketAddr>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NetworkFault {
    Fair,
    Slow(Duration),
    Frozen,
    Down,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Close,
    Reset,
}

impl Proxy {
    /// Starts a proxy in front of the server that a URL names by address and port, or of the nodes
    /// that several URLs name, separated by commas.
    ///
    /// # Errors
    /// When a URL has no numeric address with a port, or no port can be listened on.
    pub async fn before(url: &str) -> io::Result<Self> {
        let order =
            Order { network_fault: NetworkFault::Fair, epoch: 0, end: End::Close, detour: None };
        let (order, orders) = watch::channel(order);
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
            acceptors.spawn(accept(*route, orders.clone(), counter.clone()));
        }
        let proxy = Self {
            port: routes[0].from.port(),
            url: urls.join(","),
            order,
            count,
            routes: routes.len(),
            _acceptors: acceptors,
        };
        proxy.settled(|count| count.listening == routes.len()).await?;
        Ok(proxy)
    }

    /// The server's URL by way of the proxy.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The port that the proxy listens on; before a cluster, the first one.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its connections.
    #[must_use]
    pub fn count(&self) -> Count {
        *self.count.borrow()
    }

    /// Closes every connection and refuses new ones, as if the server were gone.
    ///
    /// # Errors
    /// When the proxy itself has ended.
    pub async fn cut(&self) -> io::Result<()> {
        self.order.send_modify(|order| {
            order.network_fault = NetworkFault::Down;
            order.epoch += 1;
            order.end = End::Close;
        });
        self.settled(|count| count.listening == 0 && count.open == 0).await
    }

    /// Ends every connection with a reset (RST); new ones are welcome.
    ///
    /// # Errors
    /// When the proxy itself has ended.
    pub async fn reset(&self) -> io::Result<()> {
        let before = self.count().accepted;
        self.order.send_modify(|order| {
            order.epoch += 1;
            order.end = End::Reset;
        });
        self.settled(|count| count.open <= count.accepted - before).await
    }

    /// Ends every connection; new ones reach another server, which a URL names: what a failover of an
    /// address does.
    ///
    /// # Errors
    /// When the URL has no numeric address with a port, or the proxy itself has ended.
    pub async fn lead_to(&self, url: &str) -> io::Result<()> {
        let (_, server, _) = address(url)?;
        self.order.send_modify(|order| order.detour = Some(server));
        self.reset().await
    }

    /// Keeps connections open, accepts new ones, and moves no bytes: what a broken switch does.
    pub fn freeze(&self) {
        self.order.send_modify(|order| order.network_fault = NetworkFault::Frozen);
    }

    /// Holds every chunk (16 KiB at most) for `delay`, in both directions.
    pub fn slow(&self, delay: Duration) {
        self.order.send_modify(|order| order.network_fault = NetworkFault::Slow(delay));
    }

    /// Fair weather again. What was frozen moves on; what was cut can connect.
    ///
    /// # Errors
    /// When the proxy itself has ended.
    pub async fn restore(&self) -> io::Result<()> {
        self.order.send_modify(|order| order.network_fault = NetworkFault::Fair);
        self.settled(|count| count.listening == self.routes).await
    }

    async fn settled(&self, mut reached: impl FnMut(&Count) -> bool) -> io::Result<()> {
        let mut count = self.count.clone();
        match count.wait_for(|count| count.broken || reached(count)).await {
            Ok(count) if !count.broken => Ok(()),
            _ => Err(io::Error::other("the proxy has ended: its port was taken")),
        }
    }
}

/// A URL in three parts: what stands before the address, the address, and the rest.
fn address(url: &str) -> io::Result<(&str, SocketAddr, &str)> {
    let malformed = || io::Error::new(io::ErrorKind::InvalidInput, "no address in the URL");
    let start = url.find("://").ok_or_else(malformed)? + 3;
    let end = url[start..].find('/').map_or(url.len(), |at| start + at);
    let start = url[start..end].rfind('@').map_or(start, |at| start + at + 1);
    let server = url[start..end].parse().map_err(|_| malformed())?;
    Ok((&url[..start], server, &url[end..]))
}

/// One of the 16 million addresses of this machine, so that two proxies do not want the same.
fn another_loopback() -> Ipv4Addr {
    let [a, b, c, ..] = *Uuid::new_v4().as_bytes();
    Ipv4Addr::new(127, a.max(1), b, c.clamp(1, 254))
}

/// Listens while the weather allows it; ends when the port cannot be had.
async fn accept(route: Route, mut orders: watch::Receiver<Order>, counter: watch::Sender<Count>) {
    let mut connections = JoinSet::new();
    while orders.wait_for(|order| order.network_fault != NetworkFault::Down).await.is_ok() {
        let Ok(listener) = listen(route.from).await else {
            return counter.send_modify(|count| count.broken = true);
        };
        counter.send_modify(|count| count.listening += 1);
        loop {
            let mut sight = orders.clone();
            tokio::select! {
                biased;
                // A closed channel counts as down: nobody is left to give orders.
                _ = sight.wait_for(|order| order.network_fault == NetworkFault::Down) => break,
                Some(_) = connections.join_next() => {}
                Ok((client, _)) = listener.accept() => {
                    let open = Open::count(&counter);
                    let orders = orders.clone();
                    let Order { epoch, detour, .. } = *orders.borrow();
                    let server = detour.unwrap_or(route.to);
                    connections.spawn(async move {
                        // An error ends the connection, which is what both ends then see.
                        connect(client, server, orders, epoch).await.ok();
                        drop(open);
                    });
                }
            }
        }
        drop(listener);
        counter.send_modify(|count| count.listening -= 1);
    }
}

/// Listens on a port that is ours. A child process that this one is just starting has inherited every
/// listener there was, and keeps it until it executes its program: long enough to be met now and then.
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

/// One connection, until an end of it or its epoch ends.
async fn connect(
    mut client: TcpStream,
    upstream: SocketAddr,
    orders: watch::Receiver<Order>,
    epoch: u64,
) -> io::Result<()> {
    let mut server = TcpStream::connect(upstream).await?;
    // The proxy must not add a delay that nobody ordered.
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    let mut sight = orders.clone();
    let end = tokio::select! {
        biased;
        order = sight.wait_for(|order| order.epoch > epoch) => order.map_or(End::Close, |order| order.end),
        moved = async {
            tokio::try_join!(
                pump(from_client, to_server, orders.clone()),
                pump(from_server, to_client, orders),
            )
        } => return moved.map(|_| ()),
    };
    if end == End::Reset {
        client.set_zero_linger()?;
        server.set_zero_linger()?;
    }
    Ok(())
}

/// Moves bytes one way.
async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut orders: watch::Receiver<Order>,
) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let bytes = from.read(&mut chunk).await?;
        let network_fault = orders
            .wait_for(|order| order.network_fault != NetworkFault::Frozen)
            .await
            .map_or(NetworkFault::Fair, |order| order.network_fault);
        if let NetworkFault::Slow(delay) = network_fault {
            sleep(delay).await;
        }
        if bytes == 0 {
            return to.shutdown().await;
        }
        to.write_all(&chunk[..bytes]).await?;
    }
}

/// Counts a connection for as long as it lives.
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
    /// Long enough to show that nothing comes, on a connection that answers in microseconds.
    const SILENCE: Duration = Duration::from_millis(100);

    /// A server that sends back what it gets, and a proxy before it.
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
    async fn a_port_that_somebody_holds_for_a_moment_is_listened_on_all_the_same() {
        let proxy = echo().await;
        proxy.cut().await.unwrap();
        let held = TcpListener::bind((Ipv4Addr::LOCALHOST, proxy.port())).await.unwrap();
        let released = async {
            // The acceptor runs meanwhile, and finds the port taken.
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

    async fn answer(stream: &mut TcpStream) -> io::Result<u8> {
        stream.write_u8(7).await?;
        stream.read_u8().await
    }

    #[tokio::test]
    async fn the_url_differs_in_address_alone() {
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
            assert_eq!(answer(&mut stream).await.unwrap(), 7);
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
        assert_eq!(answer(&mut stream).await.unwrap(), 7);
        proxy.cut().await.unwrap();
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "closed");
        let refused = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        proxy.restore().await.unwrap();
        assert_eq!(answer(&mut client(&proxy).await).await.unwrap(), 7);
        assert_eq!(proxy.count().accepted, 2);
    }

    #[tokio::test]
    async fn frozen_bytes_arrive_after_the_thaw() {
        let proxy = echo().await;
        let mut stream = client(&proxy).await;
        assert_eq!(answer(&mut stream).await.unwrap(), 7);
        proxy.freeze();
        tokio::time::timeout(SILENCE, answer(&mut stream)).await.unwrap_err();
        proxy.restore().await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), 7);
    }

    #[tokio::test]
    async fn a_reset_ends_old_connections_with_an_error_and_lets_new_ones_in() {
        let proxy = echo().await;
        let mut stream = client(&proxy).await;
        assert_eq!(answer(&mut stream).await.unwrap(), 7);
        proxy.reset().await.unwrap();
        let reset = stream.read(&mut [0]).await.unwrap_err();
        assert_eq!(reset.kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(answer(&mut client(&proxy).await).await.unwrap(), 7);
    }

    #[tokio::test]
    async fn after_a_failover_new_connections_reach_the_other_server() {
        let proxy = echo().await;
        let mut stream = client(&proxy).await;
        assert_eq!(answer(&mut stream).await.unwrap(), 7);
        let other = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let url = format!("redis://:word@{}/0", other.local_addr().unwrap());
        proxy.lead_to(&url).await.unwrap();
        assert!(stream.read_u8().await.is_err(), "the old connection is over");
        let mut stream = client(&proxy).await;
        let (mut accepted, _) = other.accept().await.unwrap();
        accepted.write_u8(9).await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), 9);
    }

    #[tokio::test]
    async fn slow_weather_delays_both_ways() {
        let proxy = echo().await;
        let mut stream = client(&proxy).await;
        proxy.slow(Duration::from_millis(50));
        let began = tokio::time::Instant::now();
        assert_eq!(answer(&mut stream).await.unwrap(), 7);
        assert!(began.elapsed() >= Duration::from_millis(100), "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn a_server_that_is_away_closes_its_clients() {
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

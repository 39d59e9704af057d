//! Free TCP ports that stay usable while a server is down.
//!
//! Ports come from below the range from which the kernel takes the near ends of outgoing connections.
//! Inside it a port could be taken between two runs of its server, and a client that keeps
//! reconnecting over loopback can even connect to itself.

use std::collections::HashSet;
use std::net::{Ipv4Addr, TcpListener};
use std::ops::Range;
use std::sync::{LazyLock, Mutex, PoisonError};

use uuid::Uuid;

/// Above the registered ports that servers are commonly found on (RabbitMQ's distribution, 25672, is
/// avoided by the bind test), below Linux's default ephemeral range, which begins at 32768.
const PORTS: Range<u16> = 20_000..32_000;

/// What this process has handed out already: a server may not be listening yet.
static TAKEN: LazyLock<Mutex<HashSet<u16>>> = LazyLock::new(Mutex::default);

/// A port of 127.0.0.1 that nobody listens on and that this process got from nobody before.
///
/// # Panics
/// When no port is free.
#[must_use]
pub fn free() -> u16 {
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    // A random start keeps concurrent processes apart.
    let start = Uuid::new_v4().as_u64_pair().0 as usize % PORTS.len();
    let port = PORTS
        .skip(start)
        .chain(PORTS.take(start))
        .find(|port| {
            !taken.contains(port) && TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok()
        })
        .unwrap_or_else(|| panic!("no port in {PORTS:?} is free"));
    taken.insert(port);
    port
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_port_is_handed_out_twice() {
        let ports: HashSet<u16> = (0..200).map(|_| free()).collect();
        assert_eq!(ports.len(), 200);
        assert!(ports.iter().all(|port| PORTS.contains(port)));
    }
}

//! Free TCP ports that stay usable while a server is down.
//!
//! The ports are below the kernel's ephemeral range. A port in that range could be taken by an outgoing
//! connection between two runs of its server, and a client that reconnects over loopback could even connect
//! to itself.

use std::collections::HashSet;
use std::net::{Ipv4Addr, TcpListener};
use std::ops::Range;
use std::sync::{LazyLock, Mutex, PoisonError};

use uuid::Uuid;

/// Above the ports that servers commonly use (a port in use, such as 25672 of RabbitMQ's distribution, is
/// found by the bind test), below Linux's default ephemeral range, which begins at 32768.
const PORTS: Range<u16> = 20_000..32_000;

/// The ports returned so far: their servers may not listen yet.
static RETURNED: LazyLock<Mutex<HashSet<u16>>> = LazyLock::new(Mutex::default);

/// A port of 127.0.0.1 on which no process listens and which this function has not returned before.
///
/// # Panics
/// When no port is free.
#[must_use]
pub fn free() -> u16 {
    let mut returned = RETURNED.lock().unwrap_or_else(PoisonError::into_inner);
    // A random start, so that concurrent processes rarely choose the same port.
    let start = Uuid::new_v4().as_u64_pair().0 as usize % PORTS.len();
    let port = PORTS
        .skip(start)
        .chain(PORTS.take(start))
        .find(|port| {
            !returned.contains(port) && TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok()
        })
        .unwrap_or_else(|| panic!("no port in {PORTS:?} is free"));
    returned.insert(port);
    port
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_port_is_returned_twice() {
        let ports: HashSet<u16> = (0..200).map(|_| free()).collect();
        assert_eq!(ports.len(), 200);
        assert!(ports.iter().all(|port| PORTS.contains(port)));
    }
}

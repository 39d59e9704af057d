//! Which address a request comes from, where proxies are trusted.
//!
//! A proxy adds the address from which it was called at the end of the header. So the list is read from its end, as long as
//! the address before is that of a trusted proxy: what a client wrote itself stands further left and is never believed.
//! Only one header is read, the one that the proxies write: the other one may come from the client as it is.

use std::net::{IpAddr, SocketAddr};

use axum::http::HeaderMap;
use clap::ValueEnum;
use ipnet::IpNet;

/// In which header proxies name their clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProxyHeader {
    /// What most proxies send.
    XForwardedFor,
    /// RFC 7239.
    Forwarded,
}

/// The proxies that name their clients.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Proxies<'a> {
    /// Their networks.
    pub(crate) trusted: &'a [IpNet],
    /// Where they name the client.
    pub(crate) header: ProxyHeader,
}

/// The address of the client.
pub(crate) fn client_address(peer: IpAddr, headers: &HeaderMap, proxies: Proxies<'_>) -> IpAddr {
    let Proxies { trusted, header } = proxies;
    let is_trusted = |address: &IpAddr| trusted.iter().any(|network| network.contains(address));
    let mut client = peer.to_canonical();
    if !is_trusted(&client) {
        return client;
    }
    let hops = match header {
        ProxyHeader::Forwarded => hops(headers, "forwarded", forwarded_for),
        ProxyHeader::XForwardedFor => hops(headers, "x-forwarded-for", |hop| Some(hop.trim())),
    };
    for hop in hops.iter().rev() {
        // A hop that hides its address ends what is known.
        let Some(address) = hop.as_deref().and_then(address) else { break };
        client = address.to_canonical();
        if !is_trusted(&client) {
            break;
        }
    }
    client
}

/// The hops of all headers of this name, in their order.
fn hops(
    headers: &HeaderMap,
    name: &str,
    read: impl Fn(&str) -> Option<&str>,
) -> Vec<Option<String>> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(|hop| read(hop).map(str::to_owned)).collect()
}

/// The parameter `for` of one hop.
fn forwarded_for(hop: &str) -> Option<&str> {
    hop.split(';').find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        name.trim().eq_ignore_ascii_case("for").then(|| value.trim().trim_matches('"'))
    })
}

/// `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:80`.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    bare.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(peer: &str, header: ProxyHeader, headers: &[(&'static str, &str)]) -> String {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        let trusted = ["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
        let proxies = Proxies { trusted: &trusted, header };
        client_address(peer.parse().unwrap(), &map, proxies).to_string()
    }

    #[test]
    fn only_a_trusted_proxy_names_the_client_and_only_the_last_untrusted_address_counts() {
        let xff = "x-forwarded-for";
        for (peer, headers, client) in [
            ("192.0.2.1", &[(xff, "198.51.100.7")][..], "192.0.2.1"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("::ffff:10.0.0.1", &[(xff, "198.51.100.7")], "198.51.100.7"),
            ("10.0.0.1", &[(xff, "198.51.100.7")], "198.51.100.7"),
            // The client wrote the first one itself.
            ("10.0.0.1", &[(xff, "127.0.0.1, 198.51.100.7")], "198.51.100.7"),
            ("10.0.0.1", &[(xff, "127.0.0.1"), (xff, "198.51.100.7, 10.0.0.2")], "198.51.100.7"),
            ("10.0.0.1", &[(xff, "unknown")], "10.0.0.1"),
            ("10.0.0.1", &[(xff, "198.51.100.7, unknown")], "10.0.0.1"),
            // The proxy does not write this header: it is the client's.
            ("10.0.0.1", &[("forwarded", "for=127.0.0.1"), (xff, "198.51.100.7")], "198.51.100.7"),
            ("10.0.0.1", &[("forwarded", "for=127.0.0.1")], "10.0.0.1"),
        ] {
            let seen = of(peer, ProxyHeader::XForwardedFor, headers);
            assert_eq!(seen, client, "{peer} {headers:?}");
        }
        for (peer, headers, client) in [
            (
                "fd00::1",
                &[("forwarded", "for=\"[2001:db8::1]:4711\";proto=https")][..],
                "2001:db8::1",
            ),
            (
                "10.0.0.1",
                &[("forwarded", "for=192.0.2.43, For=198.51.100.17;by=10.0.0.1")],
                "198.51.100.17",
            ),
            ("10.0.0.1", &[("forwarded", "for=_hidden"), (xff, "192.0.2.9")], "10.0.0.1"),
            ("10.0.0.1", &[(xff, "127.0.0.1")], "10.0.0.1"),
        ] {
            let seen = of(peer, ProxyHeader::Forwarded, headers);
            assert_eq!(seen, client, "{peer} {headers:?}");
        }
    }
}

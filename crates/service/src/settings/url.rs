//! The URL of a server. No log line and no error shows its password.
//!
//! An `@` is allowed only before the host. Elsewhere it indicates a password that is not percent-encoded,
//! whose end cannot be determined.
//!
//! What the client libraries would take for another address, or ignore, is refused here, where the setting can be
//! named.

use std::fmt;
use std::net::Ipv6Addr;

use super::url_parameters::{self, InvalidParameter, Parameters};

/// A URL such as `amqp://user:password@host:5672/vhost`. Shown as `amqp://***@host:5672/vhost`.
#[derive(Clone, PartialEq, Eq)]
pub struct ServerUrl(String);

/// Why a text is not a valid URL. The error does not contain the text, which may contain a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidUrl {
    /// The scheme is another one.
    #[error("it must start with {0}")]
    Scheme(&'static str),
    /// The host is empty.
    #[error("the host is missing")]
    Host,
    /// A reserved character in the user name or password is not percent-encoded.
    #[error(
        "it has an @ after the host: percent-encode user name and password (@ as %40, / %2F, ? %3F, # %23, : %3A, comma %2C)"
    )]
    Encoding,
    /// White space or a control character.
    #[error("it contains white space or a control character")]
    Space,
    /// A percent sign that begins no percent-encoded byte. The clients would take it as it is.
    #[error("it has a % without two hexadecimal digits after it: write % as %25")]
    Percent,
    /// The port is none, or 0.
    #[error("the port must be 1 to 65535")]
    Port,
    /// An IPv6 address that is none, or without brackets.
    #[error("an IPv6 address is written in brackets, as in [::1]:5672, without a zone")]
    Ipv6,
    /// PostgreSQL's client connects to one host.
    #[error("it has several hosts: only one is supported, which may be a proxy or a DNS name")]
    SeveralHosts,
    /// A part after `#`, which the clients ignore.
    #[error("it has a #, and what follows would be ignored: write # as %23")]
    Fragment,
    /// A parameter in its query that the client does not honour.
    #[error("{0}")]
    Parameter(InvalidParameter),
}

impl ServerUrl {
    /// The URL of a RabbitMQ node: `amqp://` or `amqps://`.
    pub fn amqp(text: &str) -> Result<Self, InvalidUrl> {
        let schemes = ["amqp://", "amqps://"];
        Self::parse(text, &schemes, "amqp:// or amqps://", &url_parameters::AMQP)
    }

    /// The URL of a Redis server: `redis://` or `rediss://`.
    pub fn redis(text: &str) -> Result<Self, InvalidUrl> {
        let schemes = ["redis://", "rediss://"];
        Self::parse(text, &schemes, "redis:// or rediss://", &url_parameters::REDIS)
    }

    /// The URL of a PostgreSQL database: `postgres://` or `postgresql://`. As with libpq, the host may be
    /// empty if the query names a socket directory (`?host=`).
    pub fn postgresql(text: &str) -> Result<Self, InvalidUrl> {
        let schemes = ["postgres://", "postgresql://"];
        let (wanted, parameters) = ("postgres:// or postgresql://", &url_parameters::POSTGRESQL);
        let url = Self::parse(text, &schemes, wanted, parameters)?;
        let parts = Parts::of(&url.0);
        let (user, password) = parts.userinfo.split_once(':').unwrap_or((parts.userinfo, ""));
        let (host, port) = host_and_port(parts.host)?;
        let path = parts.path.trim_matches('/');
        let said = [
            ("user", user),
            ("password", password),
            ("host", host),
            ("port", port),
            ("dbname", path),
        ];
        let given: Vec<&str> =
            said.into_iter().filter(|(_, value)| !value.is_empty()).map(|(name, _)| name).collect();
        url_parameters::check_postgresql(parts.query, &given).map_err(InvalidUrl::Parameter)?;
        Ok(url)
    }

    /// The complete URL, password included. Only for the client that connects.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// User and password of a PostgreSQL URL, decoded, wherever it has them; `None` if it names no user.
    #[must_use]
    pub fn credentials(&self) -> Option<(String, Option<String>)> {
        let parts = Parts::of(&self.0);
        let (user, password) = parts.userinfo.split_once(':').unwrap_or((parts.userinfo, ""));
        let parameter = |name: &str| {
            parts
                .query
                .split('&')
                .filter_map(|pair| pair.split_once('='))
                .find(|(key, _)| *key == name)
        };
        let either = |text: &str, name| {
            let given = Some(text).filter(|text| !text.is_empty());
            given.or(parameter(name).map(|(_, value)| value)).map(percent_decoded)
        };
        Some((either(user, "user")?, either(password, "password")))
    }

    fn parse(
        text: &str,
        schemes: &[&str],
        wanted: &'static str,
        parameters: &Parameters,
    ) -> Result<Self, InvalidUrl> {
        let text = text.trim();
        if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(InvalidUrl::Space);
        }
        if !schemes.iter().any(|scheme| text.starts_with(scheme)) {
            return Err(InvalidUrl::Scheme(wanted));
        }
        let Parts { authority, tail, host, query, fragment, .. } = Parts::of(text);
        if tail.contains('@') || authority.matches('@').count() > 1 {
            return Err(InvalidUrl::Encoding);
        }
        if !is_percent_encoded(text) {
            return Err(InvalidUrl::Percent);
        }
        // `rediss://host/#insecure` is refused by the crate `hot-store`, which names the reason.
        if fragment.is_some_and(|it| it != "insecure" || !text.starts_with("rediss")) {
            return Err(InvalidUrl::Fragment);
        }
        let socket = text.starts_with("postgres")
            && ["host=", "hostaddr="].iter().any(|name| query.contains(name));
        if host_and_port(host)?.0.is_empty() && !socket {
            return Err(InvalidUrl::Host);
        }
        parameters.check(query).map_err(InvalidUrl::Parameter)?;
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Parts { scheme, authority, host, path, .. } = Parts::of(&self.0);
        let secret = if authority.contains('@') { "***@" } else { "" };
        // The query may contain a password too.
        write!(f, "{scheme}://{secret}{host}{path}")
    }
}

impl fmt::Debug for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The parts of a URL, as they are written in it.
struct Parts<'a> {
    scheme: &'a str,
    /// User, password, host and port.
    authority: &'a str,
    userinfo: &'a str,
    /// Host and port.
    host: &'a str,
    /// All that follows the authority.
    tail: &'a str,
    path: &'a str,
    query: &'a str,
    fragment: Option<&'a str>,
}

impl<'a> Parts<'a> {
    fn of(url: &'a str) -> Self {
        let (scheme, rest) = url.split_once("://").unwrap_or_default();
        let (authority, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let (userinfo, host) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (before, fragment) = match tail.split_once('#') {
            Some((before, fragment)) => (before, Some(fragment)),
            None => (tail, None),
        };
        let (path, query) = before.split_once('?').unwrap_or((before, ""));
        Self { scheme, authority, userinfo, host, tail, path, query, fragment }
    }
}

/// The text with each percent-encoded byte as it is meant. What is then no UTF-8 is replaced: the client refuses it.
fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let encoded = match tail {
            [high, low, ..] if *first == b'%' => {
                let digit =
                    |byte: &u8| char::from(*byte).to_digit(16).and_then(|it| u8::try_from(it).ok());
                digit(high).zip(digit(low)).map(|(high, low)| high * 16 + low)
            }
            _ => None,
        };
        bytes.push(encoded.unwrap_or(*first));
        rest = if encoded.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Splits `host:port`, where either may be empty.
fn host_and_port(text: &str) -> Result<(&str, &str), InvalidUrl> {
    if text.contains(',') {
        return Err(InvalidUrl::SeveralHosts);
    }
    let (host, port) = match text.strip_prefix('[') {
        Some(bracketed) => {
            let (address, port) = bracketed.split_once(']').ok_or(InvalidUrl::Ipv6)?;
            address.parse::<Ipv6Addr>().map_err(|_| InvalidUrl::Ipv6)?;
            (address, port)
        }
        None if text.matches(':').count() > 1 => return Err(InvalidUrl::Ipv6),
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    // Empty: without a colon, or with one and no number, which is the default port.
    let number = port.strip_prefix(':').unwrap_or(port);
    let is_port = number.parse::<u16>().is_ok_and(|port| port > 0);
    if port.is_empty() || port == ":" || (port.starts_with(':') && is_port) {
        Ok((host, number))
    } else {
        Err(InvalidUrl::Port)
    }
}

fn is_percent_encoded(text: &str) -> bool {
    let hex = |text: &str| {
        let two = text.as_bytes().get(..2);
        two.is_some_and(|two| two.iter().all(u8::is_ascii_hexdigit))
    };
    text.split('%').skip(1).all(hex)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_password_is_ever_shown() {
        for text in [
            "postgres://user:s3cret@host:5432/db",
            "postgres://user:s3cret@host/db?sslmode=require",
            "postgres://host/db?password=s3cret&user=u",
            "postgresql://:s3cret@host",
        ] {
            let url = ServerUrl::postgresql(text).expect(text);
            assert_eq!(url.expose(), text);
            assert!(!format!("{url} {url:?}").contains("s3cret"), "{url}");
        }
        let url = ServerUrl::amqp("amqps://guest:s3cret@rabbit:5671/%2f?frame_max=8192");
        assert_eq!(url.expect("valid").to_string(), "amqps://***@rabbit:5671/%2f");
    }

    #[test]
    fn an_unencoded_password_is_refused_without_being_repeated() {
        for text in ["redis://:s3@cret@host", "redis://:s3/cret@host", "redis://:s3#cret@host"] {
            let error = ServerUrl::redis(text).expect_err(text);
            assert_eq!(error, InvalidUrl::Encoding);
            assert!(!error.to_string().contains("cret"), "{error}");
        }
    }

    #[test]
    fn a_url_with_another_scheme_or_without_a_host_is_refused() {
        let other = InvalidUrl::Scheme("amqp:// or amqps://");
        assert_eq!(ServerUrl::amqp("redis://host"), Err(other));
        assert_eq!(ServerUrl::amqp("amqp://"), Err(InvalidUrl::Host));
        assert_eq!(ServerUrl::amqp("amqp://user:pw@/vhost"), Err(InvalidUrl::Host));
        assert_eq!(ServerUrl::amqp("amqp://ho st"), Err(InvalidUrl::Space));
    }

    #[test]
    fn what_a_client_would_ignore_or_take_for_another_address_is_refused() {
        use InvalidUrl::{Fragment, Host, Ipv6, Percent, Port, SeveralHosts};
        let amqp = ServerUrl::amqp;
        for (text, error) in [
            ("amqp://u:s3cret@[::1/v", Ipv6),
            ("amqp://u:s3cret@[localhost]/v", Ipv6),
            ("amqp://u:s3cret@[fe80::1%25eth0]/v", Ipv6),
            ("amqp://u:s3cret@::1/v", Ipv6),
            ("amqp://u:s3cret@[::1]5672/v", Port),
            ("amqp://u:s3cret@h:0/v", Port),
            ("amqp://u:s3cret@h:65536/v", Port),
            ("amqp://u:s3cret@:5672/v", Host),
            ("amqp://u:s3cret%@h/v", Percent),
            ("amqp://u:s3cret@h/v#x", Fragment),
        ] {
            let refused = amqp(text).expect_err(text);
            assert_eq!(refused, error, "{text}");
            assert!(!refused.to_string().contains("cret"), "{refused}");
        }
        for text in ["amqp://u:p@[::1]:5672/v", "amqps://[2001:db8::1]", "amqp://h:/v", "amqp://h"]
        {
            assert!(amqp(text).is_ok(), "{text}");
        }
        let hosts = ServerUrl::postgresql("postgres://u:p@a:5432,b:5432/d");
        assert_eq!(hosts, Err(SeveralHosts));
        assert_eq!(ServerUrl::redis("redis://h/0#db"), Err(Fragment));
    }

    #[test]
    fn a_parameter_that_says_what_the_url_says_before_it_is_refused() {
        for (text, name) in [
            ("postgres://h/d?host=other", "host"),
            ("postgres://h/d?hostaddr=10.0.0.1", "hostaddr"),
            ("postgres://h:1/d?port=2", "port"),
            ("postgres://u@h/d?user=u", "user"),
            ("postgres://u:s3cret@h/d?password=s3cret", "password"),
            ("postgres://h/d?dbname=d", "dbname"),
        ] {
            let error = ServerUrl::postgresql(text).expect_err(text).to_string();
            assert_eq!(error, format!("{name} is given twice"));
        }
        for text in
            ["postgres://h?dbname=d&user=u&password=p", "postgres:///d?host=/run/postgresql"]
        {
            assert!(ServerUrl::postgresql(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn a_socket_directory_and_a_trailing_line_break_are_accepted() {
        assert!(ServerUrl::postgresql("postgres:///db?host=/run/postgresql").is_ok());
        assert_eq!(ServerUrl::redis("redis://host\n").expect("trimmed").expose(), "redis://host");
    }
}

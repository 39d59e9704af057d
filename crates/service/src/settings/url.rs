//! The URL of a server. No log line and no error shows its password.
//!
//! An `@` is allowed only before the host. Elsewhere it indicates a password that is not percent-encoded,
//! whose end cannot be determined.

use std::fmt;

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
}

impl ServerUrl {
    /// The URL of a RabbitMQ node: `amqp://` or `amqps://`.
    pub fn amqp(text: &str) -> Result<Self, InvalidUrl> {
        Self::parse(text, &["amqp://", "amqps://"], "amqp:// or amqps://")
    }

    /// The URL of a Redis server: `redis://` or `rediss://`.
    pub fn redis(text: &str) -> Result<Self, InvalidUrl> {
        Self::parse(text, &["redis://", "rediss://"], "redis:// or rediss://")
    }

    /// The URL of a PostgreSQL database: `postgres://` or `postgresql://`. As with libpq, the host may be
    /// empty if the query names a socket directory (`?host=`).
    pub fn postgresql(text: &str) -> Result<Self, InvalidUrl> {
        let schemes = ["postgres://", "postgresql://"];
        Self::parse(text, &schemes, "postgres:// or postgresql://")
    }

    /// The complete URL, password included. Only for the client that connects.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    fn parse(text: &str, schemes: &[&str], wanted: &'static str) -> Result<Self, InvalidUrl> {
        let text = text.trim();
        if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(InvalidUrl::Space);
        }
        let rest = schemes.iter().find_map(|scheme| text.strip_prefix(scheme));
        let (authority, tail) = split(rest.ok_or(InvalidUrl::Scheme(wanted))?);
        if tail.contains('@') || authority.matches('@').count() > 1 {
            return Err(InvalidUrl::Encoding);
        }
        let socket = text.starts_with("postgres") && tail.contains("host=");
        if host(authority).is_empty() && !socket {
            return Err(InvalidUrl::Host);
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, rest) = self.0.split_once("://").unwrap_or_default();
        let (authority, tail) = split(rest);
        let secret = if authority.contains('@') { "***@" } else { "" };
        // The query may contain a password too.
        let path = tail.split(['?', '#']).next().unwrap_or_default();
        write!(f, "{scheme}://{secret}{}{path}", host(authority))
    }
}

impl fmt::Debug for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn split(rest: &str) -> (&str, &str) {
    rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()))
}

fn host(authority: &str) -> &str {
    authority.rsplit_once('@').map_or(authority, |(_, host)| host)
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
            "postgres://user:s3cret@host#s3cret",
            "postgresql://:s3cret@host",
        ] {
            let url = ServerUrl::postgresql(text).expect(text);
            assert_eq!(url.expose(), text);
            assert!(!format!("{url} {url:?}").contains("s3cret"), "{url}");
        }
        let url = ServerUrl::amqp("amqps://guest:s3cret@rabbit:5671/%2f?heartbeat=10");
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
    fn a_socket_directory_and_a_trailing_line_break_are_accepted() {
        assert!(ServerUrl::postgresql("postgres:///db?host=/run/postgresql").is_ok());
        assert_eq!(ServerUrl::redis("redis://host\n").expect("trimmed").expose(), "redis://host");
    }
}

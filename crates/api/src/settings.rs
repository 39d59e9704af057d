//! Settings of the API.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use access::{AnomalySettings, AuthenticatorSettings, RefusalLimits};
use axum::http::HeaderValue;
use database::Statements;
use ipnet::IpNet;
use service::settings::{
    AmqpSettings, AmqpUserSettings, ApiAccessSettings, bytes, duration, positive_duration,
};
use stores::ApiLimits;

use crate::client_address::{Proxies, ProxyHeader};
use crate::tls::TlsFiles;

/// What is between the API and PostgreSQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Pooler {
    /// Nothing, or a pooler in session mode, or one that knows prepared statements
    None,
    /// A pooler that gives each transaction any of its connections
    Transaction,
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Settings {
    #[command(flatten)]
    pub(crate) access: ApiAccessSettings,

    /// For publishing.
    #[command(flatten)]
    pub(crate) amqp: AmqpSettings,

    #[command(flatten)]
    pub(crate) users: AmqpUserSettings,

    /// Maximum number of connections to PostgreSQL for requests, and one more for confirming keys; with a read replica to
    /// each of the two servers, and one more to each
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(2..))]
    #[arg(value_name = "NUMBER", help_heading = "Servers")]
    pub(crate) api_database_connections: u32,

    /// Time limit of one transaction, the wait for a connection included. After it a request is answered with 503
    #[arg(long, default_value = "5s", value_name = "DURATION", value_parser = positive_duration)]
    #[arg(help_heading = "Servers")]
    pub(crate) api_database_timeout: Duration,

    /// Pooler to which API_DATABASE_URL leads. With `transaction`, which PgBouncer in transaction mode needs, no statement is
    /// prepared under a name: a list takes about twice as long, a conversation nearly three times
    #[arg(long, default_value = "none", value_name = "POOLER", help_heading = "Servers")]
    pub(crate) api_database_pooler: Pooler,

    /// After which time a search for words (`?text=`) goes on to no further part of the archive. Its page ends there, and
    /// `next` is where the next one begins
    #[arg(long, default_value = "100ms", value_name = "DURATION", value_parser = positive_duration)]
    #[arg(help_heading = "Servers")]
    pub(crate) search_time: Duration,

    /// A read replica that is further behind is not used. At least 1s
    #[arg(long, default_value = "30s", value_name = "DURATION", value_parser = positive_duration)]
    #[arg(help_heading = "Servers")]
    pub(crate) replica_max_lag: Duration,

    /// How long a request with the header Verbatim-After waits for the read replica. Then the primary answers
    #[arg(long, default_value = "100ms", value_name = "DURATION", value_parser = duration)]
    #[arg(help_heading = "Servers")]
    pub(crate) replica_wait: Duration,

    /// Address of the API. By default only programs on this host reach it
    #[arg(
        long,
        default_value = "127.0.0.1:8080",
        value_name = "ADDRESS:PORT",
        help_heading = "HTTP"
    )]
    pub(crate) api_listen: SocketAddr,

    /// File to which the bound address of the API is written (useful with port 0)
    #[arg(long, value_name = "PATH", help_heading = "HTTP")]
    pub(crate) api_listen_file: Option<PathBuf>,

    /// Certificate of the API, in PEM: that of the server first, then those of the authorities between it and the root. With
    /// it the API speaks TLS. The file is read again while the process runs
    #[arg(long, value_name = "PATH", help_heading = "HTTP")]
    pub(crate) api_tls_certificate: Option<PathBuf>,

    /// Private key of that certificate, in PEM without a passphrase
    #[arg(long, value_name = "PATH", help_heading = "HTTP")]
    pub(crate) api_tls_key: Option<PathBuf>,

    /// How often certificate and key are read again
    #[arg(long, default_value = "5s", value_name = "DURATION", value_parser = positive_duration)]
    #[arg(help_heading = "HTTP")]
    pub(crate) api_tls_reload: Duration,

    /// Maximum number of connections. Further ones wait until one ends
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    #[arg(value_name = "NUMBER", help_heading = "HTTP")]
    pub(crate) max_http_connections: u32,

    /// How long a client may take for the TLS handshake and to send the headers of a request, how long it may read nothing of an answer, and how
    /// long a connection stays open between two requests
    #[arg(long, default_value = "30s", value_name = "DURATION", value_parser = positive_duration)]
    #[arg(help_heading = "HTTP")]
    pub(crate) header_timeout: Duration,

    /// Time limit of a request. After it the answer is 503
    #[arg(long, default_value = "30s", value_name = "DURATION", value_parser = positive_duration)]
    #[arg(help_heading = "HTTP")]
    pub(crate) request_timeout: Duration,

    /// How long `?wait=durable` waits for the commit. Then the answer is 202
    #[arg(long, default_value = "10s", value_name = "DURATION", value_parser = positive_duration)]
    #[arg(help_heading = "HTTP")]
    pub(crate) durable_wait: Duration,

    /// Maximum size of one action, as the workers have it
    #[arg(long, default_value = "1MiB", value_name = "BYTES", value_parser = bytes)]
    #[arg(help_heading = "HTTP")]
    pub(crate) max_body_bytes: usize,

    /// Maximum size of the body of a request. A larger one is answered with 413
    #[arg(long, default_value = "8MiB", value_name = "BYTES", value_parser = bytes)]
    #[arg(help_heading = "HTTP")]
    pub(crate) max_request_bytes: usize,

    /// Maximum size of the bodies of all requests together that one replica holds. Further ones wait
    #[arg(long, default_value = "64MiB", value_name = "BYTES", value_parser = bytes)]
    #[arg(help_heading = "HTTP")]
    pub(crate) max_requests_bytes: usize,

    /// Maximum size of the messages in one page of a transcript. A page has at least one message
    #[arg(long, default_value = "4MiB", value_name = "BYTES", value_parser = bytes)]
    #[arg(help_heading = "HTTP")]
    pub(crate) max_page_bytes: usize,

    /// Maximum size of the answers of all requests together that one replica holds, until they are sent: of pages, lists and
    /// statistics what they may have at most, until they are ready. Further requests wait
    #[arg(long, default_value = "128MiB", value_name = "BYTES", value_parser = bytes)]
    #[arg(help_heading = "HTTP")]
    pub(crate) max_pages_bytes: usize,

    /// Requests per second that each key may make of one replica, on average. A request above it is answered with 429
    #[arg(long, default_value = "100", value_name = "NUMBER", help_heading = "HTTP")]
    pub(crate) key_rate: NonZeroU32,

    /// Requests that each key may make of one replica at once, before its rate counts
    #[arg(long, default_value = "200", value_name = "NUMBER", help_heading = "HTTP")]
    pub(crate) key_burst: NonZeroU32,

    /// Questions per second to PostgreSQL about keys and signatures of one address that it refuses, on average, for each
    /// replica. Beyond that requests of the address whose key is not remembered are answered with 429. An IPv6 address counts
    /// as its /64
    #[arg(long, default_value = "10", value_name = "NUMBER", help_heading = "HTTP")]
    pub(crate) refused_rate: NonZeroU32,

    /// Such questions of one address at once, before its rate counts
    #[arg(long, default_value = "50", value_name = "NUMBER", help_heading = "HTTP")]
    pub(crate) refused_burst: NonZeroU32,

    /// How long keys that PostgreSQL confirmed go on while it does not answer. 0s: not at all
    #[arg(long, default_value = "15min", value_name = "DURATION", value_parser = duration)]
    #[arg(help_heading = "HTTP")]
    pub(crate) auth_grace: Duration,

    /// How far the timestamp of a signed request may be from the clock of the API
    #[arg(long, default_value = "5min", value_name = "DURATION", value_parser = positive_duration)]
    #[arg(help_heading = "HTTP")]
    pub(crate) signature_window: Duration,

    /// Within which time refused keys and foreign tenants are counted; an anomaly raises an alert
    #[arg(long, default_value = "5min", value_name = "DURATION", value_parser = positive_duration)]
    #[arg(help_heading = "Anomalies")]
    pub(crate) anomaly_window: Duration,

    /// More refused keys than these from one address are an anomaly
    #[arg(long, default_value_t = 10, value_name = "NUMBER", help_heading = "Anomalies")]
    pub(crate) anomaly_refused: u16,

    /// So many requests of one key that name another tenant are an anomaly
    #[arg(long, default_value_t = 3, value_name = "NUMBER", help_heading = "Anomalies")]
    pub(crate) anomaly_tenants: u16,

    /// More messages in an hour than this many times the median hour of a key are an anomaly
    #[arg(long, default_value_t = 10, value_name = "NUMBER", help_heading = "Anomalies")]
    pub(crate) anomaly_reads_factor: u16,

    /// Fewer messages in an hour than these are no anomaly. As long as no hour of a key is known, its median is taken to
    /// be this
    #[arg(long, default_value_t = 10_000, value_name = "NUMBER", help_heading = "Anomalies")]
    pub(crate) anomaly_reads_minimum: u32,

    /// Proxies whose header names the client: networks such as 10.0.0.0/8, separated by commas. Without them such headers
    /// are ignored
    #[arg(long, value_delimiter = ',', value_name = "CIDR", help_heading = "HTTP")]
    pub(crate) trusted_proxies: Vec<IpNet>,

    /// The header in which these proxies name the client. The other one is ignored: a client may write it
    #[arg(
        long,
        value_enum,
        default_value = "x-forwarded-for",
        value_name = "HEADER",
        help_heading = "HTTP"
    )]
    pub(crate) proxy_header: ProxyHeader,

    /// Origins of web pages that may call the API from a browser, with their scheme (https), separated by commas;
    /// * allows every origin. Without them browsers allow none
    #[arg(long, value_delimiter = ',', value_name = "ORIGIN", value_parser = origin)]
    #[arg(help_heading = "HTTP")]
    pub(crate) cors_origins: Vec<HeaderValue>,
}

/// How long a request may take besides `durable_wait`: connecting for replies, and RabbitMQ's confirm.
const PUBLISHING: Duration = Duration::from_secs(17);

/// A shorter maximum would exclude a read replica that is not behind.
const LEAST_MAX_LAG: Duration = Duration::from_secs(1);

impl Settings {
    /// Fails if settings contradict each other.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.search_time < self.api_database_timeout,
            "VERBATIM_SEARCH_TIME is {:?}: it must be shorter than VERBATIM_API_DATABASE_TIMEOUT ({:?})",
            self.search_time,
            self.api_database_timeout
        );
        anyhow::ensure!(
            self.request_timeout >= self.durable_wait + PUBLISHING,
            "VERBATIM_DURABLE_WAIT is {:?}: VERBATIM_REQUEST_TIMEOUT ({:?}) must be at least {} s longer",
            self.durable_wait,
            self.request_timeout,
            PUBLISHING.as_secs()
        );
        anyhow::ensure!(
            self.replica_max_lag >= LEAST_MAX_LAG,
            "VERBATIM_REPLICA_MAX_LAG is {:?}: it must be at least {} s, because the servers are asked every 250 ms",
            self.replica_max_lag,
            LEAST_MAX_LAG.as_secs()
        );
        Ok(())
    }

    /// The files for TLS; `None`: the API speaks HTTP without TLS.
    ///
    /// # Errors
    /// Only one of them is set.
    pub(crate) fn tls(&self) -> anyhow::Result<Option<TlsFiles>> {
        let missing = match (&self.api_tls_certificate, &self.api_tls_key) {
            (None, None) => return Ok(None),
            (Some(certificate), Some(key)) => {
                let (certificate, key) = (certificate.clone(), key.clone());
                return Ok(Some(TlsFiles { certificate, key }));
            }
            (Some(_), None) => ("VERBATIM_API_TLS_CERTIFICATE", "VERBATIM_API_TLS_KEY"),
            (None, Some(_)) => ("VERBATIM_API_TLS_KEY", "VERBATIM_API_TLS_CERTIFICATE"),
        };
        anyhow::bail!("{} is set, but {} is not: set both, or neither", missing.0, missing.1)
    }

    pub(crate) fn database(&self) -> ApiLimits {
        ApiLimits {
            connections: self.api_database_connections,
            time_out: self.api_database_timeout,
            statements: match self.api_database_pooler {
                Pooler::None => Statements::Prepared,
                Pooler::Transaction => Statements::Unnamed,
            },
        }
    }

    pub(crate) fn anomalies(&self) -> AnomalySettings {
        AnomalySettings {
            window: self.anomaly_window,
            refused: self.anomaly_refused.into(),
            foreign_tenants: self.anomaly_tenants.into(),
            reads_factor: self.anomaly_reads_factor.into(),
            reads_minimum: self.anomaly_reads_minimum.into(),
        }
    }

    /// The proxies that name their clients.
    pub(crate) fn proxies(&self) -> Proxies<'_> {
        Proxies { trusted: &self.trusted_proxies, header: self.proxy_header }
    }

    pub(crate) fn authenticator(&self) -> AuthenticatorSettings {
        AuthenticatorSettings {
            grace: self.auth_grace,
            signature_window: self.signature_window,
            refusals: RefusalLimits { rate: self.refused_rate, burst: self.refused_burst },
        }
    }
}

/// An origin as browsers send it: scheme, host and port, without a path.
fn origin(text: &str) -> Result<HeaderValue, String> {
    let fault = "it is neither * nor an origin such as https://crm.example.com, without a path";
    let is_origin = |text: &str| {
        let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
        host.is_some_and(|host| !host.is_empty() && !host.contains(['/', '?', '#', '@']))
    };
    match HeaderValue::from_str(text) {
        Ok(value) if text == "*" || is_origin(text) => Ok(value),
        _ => Err(fault.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_has_no_path() {
        for good in ["*", "https://crm.example.com", "http://localhost:5173"] {
            assert!(origin(good).is_ok(), "{good}");
        }
        for bad in ["", "crm.example.com", "https://", "https://a/b", "https://a/", "https://a\n"] {
            assert!(origin(bad).is_err(), "{bad}");
        }
    }
}

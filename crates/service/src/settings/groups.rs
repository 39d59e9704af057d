//! Settings that several processes share. They are allowed at the top level of the file.
//!
//! A worker flattens the groups that it uses into its own settings struct. The `value_name` of a URL is an
//! example URL, which the error for a missing URL shows.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use domain::amqp_users::AmqpUsers;
use tracing_subscriber::EnvFilter;

use super::secret::Secret;
use super::url::ServerUrl;
use super::values;

/// The URL of RabbitMQ.
#[derive(Debug, Clone, clap::Args)]
pub struct AmqpSettings {
    /// RabbitMQ; several nodes of one cluster are separated by commas.
    /// AMQP_URL_FILE may name a file that holds it
    #[arg(long, env = "AMQP_URL", value_name = "amqp://user:password@host:5672/vhost")]
    #[arg(required = true, value_delimiter = ',', value_parser = ServerUrl::amqp)]
    #[arg(help_heading = "Servers")]
    pub amqp_url: Vec<ServerUrl>,
}

/// The URL of Redis.
#[derive(Debug, Clone, clap::Args)]
pub struct RedisSettings {
    /// Redis; several URLs, separated by commas, are nodes of one Redis Cluster, from which the other
    /// nodes are discovered. REDIS_URL_FILE may name a file that holds it
    #[arg(long, env = "REDIS_URL", value_name = "redis://:password@host:6379/0")]
    #[arg(required = true, value_delimiter = ',', value_parser = ServerUrl::redis)]
    #[arg(help_heading = "Servers")]
    pub redis_url: Vec<ServerUrl>,
}

/// The URL of PostgreSQL.
#[derive(Debug, Clone, clap::Args)]
pub struct DatabaseSettings {
    /// PostgreSQL. DATABASE_URL_FILE may name a file that holds it
    #[arg(long, env = "DATABASE_URL", value_name = "postgres://user:password@host:5432/verbatim")]
    #[arg(value_parser = ServerUrl::postgresql, help_heading = "Servers")]
    pub database_url: ServerUrl,
}

/// Whether a PostgreSQL is accepted that may lose commits. The variable is named because the command line, which
/// names none by itself, has this setting too.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct DurabilitySettings {
    /// Accept a PostgreSQL with fsync or full_page_writes off, which may lose committed messages when its
    /// machine crashes. Only for tests, or where the storage makes these settings unnecessary
    #[arg(long, env = "VERBATIM_ALLOW_FSYNC_OFF", default_value_t = false)]
    #[arg(action = clap::ArgAction::Set, value_name = "true|false", help_heading = "Servers")]
    pub allow_fsync_off: bool,
}

/// A read replica for queries that tolerate its lag.
#[derive(Debug, Clone, clap::Args)]
pub struct ReadReplicaSettings {
    /// A read replica of PostgreSQL for lists; without it lists read from DATABASE_URL.
    /// DATABASE_READ_URL_FILE may name a file that holds it
    #[arg(long, env = "DATABASE_READ_URL")]
    #[arg(value_name = "postgres://user:password@replica:5432/verbatim")]
    #[arg(value_parser = ServerUrl::postgresql, help_heading = "Servers")]
    pub database_read_url: Option<ServerUrl>,
}

/// How the conversation-api reads PostgreSQL.
#[derive(Debug, Clone, clap::Args)]
pub struct ApiAccessSettings {
    /// PostgreSQL with the role of the conversation-api, which sees the rows of one tenant at a time; `verbatim setup`
    /// creates the role. It may lead to a pooler (VERBATIM_API_DATABASE_POOLER). API_DATABASE_URL_FILE may name a file that
    /// holds it
    #[arg(long, env = "API_DATABASE_URL")]
    #[arg(value_name = "postgres://verbatim_api:password@host:5432/verbatim")]
    #[arg(value_parser = ServerUrl::postgresql, help_heading = "Servers")]
    pub api_database_url: ServerUrl,

    /// PostgreSQL with a second role, for keys with the scope `operate`: it sees and changes dead letters. `verbatim setup`
    /// creates it. Without it the endpoints of dead letters answer 501. API_OPERATOR_DATABASE_URL_FILE may name a file that
    /// holds it
    #[arg(long, env = "API_OPERATOR_DATABASE_URL")]
    #[arg(value_name = "postgres://verbatim_api_operator:password@host:5432/verbatim")]
    #[arg(value_parser = ServerUrl::postgresql, help_heading = "Servers")]
    pub api_operator_database_url: Option<ServerUrl>,

    /// Secret of at least 32 characters that all replicas of the conversation-api and `verbatim setup` share: it signs
    /// tenants, cursors and ETags. To rotate it, give the new one and the old one, separated by a comma.
    /// API_SECRET_FILE may name a file that holds it
    #[arg(long, env = "API_SECRET", value_name = "SECRET", value_delimiter = ',', required = true)]
    #[arg(value_parser = Secret::parse, help_heading = "Servers")]
    pub api_secret: Vec<Secret>,

    /// A read replica of that PostgreSQL (a streaming standby) for statistics and lists of conversations, with the same
    /// role. Without it they are read from API_DATABASE_URL. API_DATABASE_READ_URL_FILE may name a file that holds it
    #[arg(long, env = "API_DATABASE_READ_URL")]
    #[arg(value_name = "postgres://verbatim_api:password@replica:5432/verbatim")]
    #[arg(value_parser = ServerUrl::postgresql, help_heading = "Servers")]
    pub api_database_read_url: Option<ServerUrl>,
}

/// The roles of the conversation-api, for `verbatim setup`. The URL of the first and the secret are both set or both not.
#[derive(Debug, Clone, clap::Args)]
pub struct ApiRoleSettings {
    /// PostgreSQL with the role of the conversation-api. `verbatim setup` creates the role where it is missing, and gives it
    /// what it needs. Without it there is no conversation-api. API_DATABASE_URL_FILE may name a file that holds it
    #[arg(long, env = "API_DATABASE_URL")]
    #[arg(value_name = "postgres://verbatim_api:password@host:5432/verbatim")]
    #[arg(value_parser = ServerUrl::postgresql, help_heading = "Servers")]
    pub api_database_url: Option<ServerUrl>,

    /// PostgreSQL with the second role of the conversation-api, which sees and changes dead letters. `verbatim setup` creates
    /// it as well. API_OPERATOR_DATABASE_URL_FILE may name a file that holds it
    #[arg(long, env = "API_OPERATOR_DATABASE_URL")]
    #[arg(value_name = "postgres://verbatim_api_operator:password@host:5432/verbatim")]
    #[arg(value_parser = ServerUrl::postgresql, help_heading = "Servers")]
    pub api_operator_database_url: Option<ServerUrl>,

    /// Secret of the conversation-api. API_SECRET_FILE may name a file that holds it
    #[arg(long, env = "API_SECRET", value_name = "SECRET", value_delimiter = ',')]
    #[arg(value_parser = Secret::parse, help_heading = "Servers")]
    pub api_secret: Vec<Secret>,
}

/// The URLs of all three servers.
#[derive(Debug, Clone, clap::Args)]
pub struct ConnectionSettings {
    /// RabbitMQ.
    #[command(flatten)]
    pub amqp: AmqpSettings,
    /// Redis.
    #[command(flatten)]
    pub redis: RedisSettings,
    /// PostgreSQL.
    #[command(flatten)]
    pub database: DatabaseSettings,
}

/// Which tenants the users of RabbitMQ may name. The variable is named because the command line, which names none by
/// itself, has this setting too.
#[derive(Debug, Clone, clap::Args)]
pub struct AmqpUserSettings {
    /// Tenants that each user of RabbitMQ may name, as in crm-bot=acme,globex;gateway=* (* is every tenant; in names
    /// percent-encode = , ; and %). An action needs the AMQP property user_id then; another one becomes a dead letter,
    /// reason forbidden. Without it whoever may publish may name every tenant
    #[arg(long, env = "VERBATIM_AMQP_USERS", value_name = "USER=TENANT,TENANT;USER=*")]
    #[arg(value_parser = AmqpUsers::parse)]
    pub amqp_users: Option<AmqpUsers>,
}

/// The address on which a process serves health and metrics.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Process")]
pub struct ListenSettings {
    /// Address of /livez, /readyz and /metrics. Each process on a host needs its own; port 0 takes a
    /// free port
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:9464")]
    pub listen: SocketAddr,

    /// File to which the bound address is written (useful with port 0)
    #[arg(long, value_name = "PATH")]
    pub listen_file: Option<PathBuf>,
}

/// Level and format of the log lines.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Process")]
pub struct LogSettings {
    /// off, error, warn, info, debug or trace; also for single modules, as in info,broker=debug
    #[arg(long, default_value = "info", value_name = "LEVEL", value_parser = log_level)]
    pub log_level: String,

    /// Format of the log lines on standard error
    #[arg(long, default_value = "auto")]
    pub log_format: LogFormat,
}

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// pretty on a terminal, else json
    Auto,
    /// One JSON object per line
    Json,
    /// One line of text for people
    Pretty,
}

/// Settings that every process has.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Process")]
pub struct ProcessSettings {
    /// YAML file with settings. Keys are the flags' names with underscores: shared settings at the top
    /// level, those of one process in a section with its name. Environment and flags override it
    #[arg(long, value_name = "PATH")]
    pub config: Option<PathBuf>,

    /// Health and metrics.
    #[command(flatten)]
    pub listen: ListenSettings,

    /// Logs.
    #[command(flatten)]
    pub log: LogSettings,

    /// How long a shutdown may take. Messages that are unacknowledged after it are redelivered. Keep it
    /// below the grace period after which SIGKILL is sent
    #[arg(long, default_value = "25s", value_name = "DURATION")]
    #[arg(value_parser = values::positive_duration)]
    pub drain_deadline: Duration,

    /// Threads of the async runtime. Two are enough for one process, and each further one costs memory.
    /// For more throughput run more processes
    #[arg(long, default_value_t = 2, value_name = "NUMBER")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: u16,
}

/// Checks log directives. One without a module must be a level: the filter would accept `inof` as a module.
fn log_level(text: &str) -> Result<String, String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    for directive in text.split(',').map(str::trim) {
        if !directive.contains('=') && !LEVELS.contains(&directive.to_lowercase().as_str()) {
            return Err(format!("{directive:?} is not a level; use one of {}", LEVELS.join(", ")));
        }
    }
    EnvFilter::try_new(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_level_is_not_accepted_as_a_module() {
        assert!(log_level("inof").is_err_and(|error| error.contains("\"inof\" is not a level")));
        assert!(log_level("info,broker=loud").is_err());
        assert!(log_level("WARN").is_ok());
        assert!(log_level("info,broker=debug,lapin=off").is_ok());
    }
}

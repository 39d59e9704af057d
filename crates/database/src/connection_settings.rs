//! What every session in PostgreSQL is set to, so that settings of a server, a database or a role do not change what
//! the statements of this crate mean, nor weaken a commit.
//!
//! Most are start-up options of the connection. They take precedence over the configuration file, `ALTER DATABASE SET`
//! and `ALTER ROLE SET` (`GucSource` in PostgreSQL's `src/include/utils/guc.h`), and cost no round trip. sqlx adds
//! `client_encoding`, `DateStyle` and `TimeZone` (sqlx-postgres 0.9.0, `src/connection/establish.rs`). What depends on
//! the server's own value or version is set by one statement on each new connection.
//!
//! `default_transaction_read_only` is left alone. Operators and hosting providers switch it on to stop writes, for
//! example on a disk that is nearly full; then PostgreSQL counts as unavailable, and messages wait.

use std::str::FromStr as _;
use std::sync::LazyLock;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions as _, Executor as _};

use uuid::Uuid;

use crate::Result;

/// Connection settings of PostgreSQL.
#[derive(Clone)]
pub struct Settings {
    /// `postgres://user:password@host:port/database`. Holds a secret: never logged.
    pub url: String,
    /// The name under which `pg_stat_activity` shows the connections.
    pub application: String,
    /// The most connections that this process opens.
    pub connections: u32,
    /// The timeout of one unit of work, waiting for a connection included. A server that does not answer
    /// within it counts as unavailable.
    pub time_out: Duration,
    /// How long a statement waits for a row lock before it gives up and is retried.
    pub lock_time_out: Duration,
}

/// Where what a session is set to comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SessionSettings {
    /// Start-up options of each connection, which take precedence over all others.
    OfTheConnection,
    /// Settings of the role (`ALTER ROLE … SET`, `api_role.rs`), and time limits that each transaction sets: a pooler in
    /// transaction mode, such as PgBouncer, refuses or drops start-up options.
    OfTheRole(Statements),
}

/// How the conversation-api sends its statements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Statements {
    /// Each connection prepares a statement once, under a name, and executes it by that name from then on. Behind a pooler
    /// in transaction mode that does not know these names, the name may belong to a statement of another client.
    Prepared,
    /// A statement has no name, and belongs to the transaction in which it is executed. So transactions of a client may be
    /// executed on any connection of a pooler. PostgreSQL plans each statement again, and each costs one more round trip.
    Unnamed,
}

/// The time limits of a statement. PostgreSQL enforces them, so an error says that the statement was too slow, and not
/// that the server is unavailable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How long it may run.
    pub time_out: Duration,
    /// As [`Settings::lock_time_out`].
    pub lock_time_out: Duration,
}

impl Settings {
    /// The time limits of a statement.
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits { time_out: self.time_out, lock_time_out: self.lock_time_out }
    }
}

/// A weaker `synchronous_commit` than PostgreSQL's default is raised to it: with `off` PostgreSQL reports commits that
/// a crash undoes. Stronger and other values are the operator's choice. With `client_connection_check_interval` the
/// statement of a worker that died ends within 2 s and releases its locks; every PostgreSQL on Linux can check that
/// (manual, 20.3.2). The timeouts would end connections that the pool keeps, and transactions that have a limit of their
/// own. Not every version has all of these: `client_connection_check_interval` and `idle_session_timeout` exist since 14,
/// `transaction_timeout` since 17.
const RAISE: &str = "
    SELECT set_config(name, value, false)
    FROM (VALUES ('synchronous_commit', CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on' END),
                 ('client_connection_check_interval', CASE WHEN version() LIKE '%linux%' THEN '2s' END),
                 ('idle_session_timeout', '0'),
                 ('transaction_timeout', '0')) AS raised (name, value)
    WHERE value IS NOT NULL AND current_setting(name, true) IS NOT NULL";

/// The chain of the audit entries of this process (`migrations/0003_audit.sql`).
pub(crate) static AUDIT_CHAIN: LazyLock<Uuid> = LazyLock::new(Uuid::now_v7);

/// The server, the user and the database of a URL.
pub(crate) fn address(url: &str) -> Result<PgConnectOptions> {
    let options = PgConnectOptions::from_str(url)?;
    if options.get_host().starts_with('[') {
        // sqlx keeps the brackets of an IPv6 address, and compares them with the name in the server's certificate.
        let host = options.get_host().trim_matches(['[', ']']).to_owned();
        return Ok(options.host(&host));
    }
    Ok(options)
}

/// The options with which every connection is opened.
pub(crate) fn options(settings: &Settings) -> Result<PgConnectOptions> {
    let mut options = address(&settings.url)?;
    // Tables in another schema are chosen in the URL, where all processes have the same.
    if !options.get_options().is_some_and(|it| it.contains("search_path")) {
        options = options.options([("search_path", "public")]);
    }
    Ok(limited(options, settings.limits()).application_name(&settings.application).options([
        // A worker that is frozen or lost its network must not hold row locks for ever.
        ("idle_in_transaction_session_timeout", "30s".to_owned()),
        ("TimeZone", "UTC".to_owned()),
        // Savers lock and read again; under a stricter level they would read what was there before the lock.
        ("default_transaction_isolation", "read committed".to_owned()),
        // A policy would hide rows without an error. Off, such a query is an error.
        ("row_security", "off".to_owned()),
        // What these texts and values mean.
        ("standard_conforming_strings", "on".to_owned()),
        ("bytea_output", "hex".to_owned()),
        ("array_nulls", "on".to_owned()),
        ("transform_null_equals", "off".to_owned()),
        // One plan for each statement, always by index, whatever its values and however many
        // rows the tables had when it was planned. Every statement of this crate has an index to
        // use, and planning again would cost more than it gains.
        ("plan_cache_mode", "force_generic_plan".to_owned()),
        ("enable_seqscan", "off".to_owned()),
        ("jit", "off".to_owned()),
        ("verbatim.audit_chain", AUDIT_CHAIN.to_string()),
    ]))
}

/// The options with which a connection of the conversation-api is opened: only its name. PgBouncer would refuse
/// `extra_float_digits`, which sqlx sends otherwise; all values are sent in binary, to which it does not apply.
pub(crate) fn options_of_role(settings: &Settings) -> Result<PgConnectOptions> {
    let options = address(&settings.url)?.application_name(&settings.application);
    Ok(options.extra_float_digits(None))
}

/// The options with these limits. Of a setting that is given twice, PostgreSQL takes the last value.
pub(crate) fn limited(options: PgConnectOptions, limits: Limits) -> PgConnectOptions {
    options.options([
        ("lock_timeout", format!("{}ms", limits.lock_time_out.as_millis())),
        ("statement_timeout", format!("{}ms", limits.time_out.as_millis())),
    ])
}

/// Sets these limits on an open connection.
pub(crate) async fn set(connection: &mut PgConnection, limits: Limits) -> Result<()> {
    let query =
        "SELECT set_config('lock_timeout', $1, false), set_config('statement_timeout', $2, false)";
    let milliseconds = |limit: Duration| format!("{}ms", limit.as_millis());
    sqlx::query(query)
        .bind(milliseconds(limits.lock_time_out))
        .bind(milliseconds(limits.time_out))
        .execute(connection)
        .await?;
    Ok(())
}

/// Opens a connection, and sets what depends on the server.
pub(crate) async fn connect(options: &PgConnectOptions) -> Result<PgConnection> {
    let mut connection = options.connect().await?;
    connection.execute(sqlx::raw_sql(RAISE)).await?;
    Ok(connection)
}

#[cfg(test)]
mod tests {
    use testkit::TestEnv;

    use super::*;
    use crate::Database;

    fn settings(url: &str) -> Settings {
        Settings {
            url: url.to_owned(),
            application: "test".to_owned(),
            connections: 1,
            time_out: Duration::from_secs(10),
            lock_time_out: Duration::from_millis(200),
        }
    }

    #[tokio::test]
    async fn a_role_whose_settings_would_change_statements_changes_none() {
        let env = TestEnv::new().await;
        for setting in [
            "default_transaction_isolation = 'serializable'",
            "search_path = pg_catalog",
            "standard_conforming_strings = off",
            "bytea_output = 'escape'",
            "row_security = on",
            "array_nulls = off",
            "transform_null_equals = on",
            "synchronous_commit = off",
            "idle_session_timeout = '5min'",
            "statement_timeout = '1min'",
            "lock_timeout = '1min'",
            "idle_in_transaction_session_timeout = '1min'",
            "TimeZone = 'Asia/Kolkata'",
            "DateStyle = 'SQL, DMY'",
            "client_encoding = 'LATIN1'",
            "enable_seqscan = on",
        ] {
            let set = format!("ALTER ROLE CURRENT_USER IN DATABASE {} SET {setting}", env.name);
            env.psql(&set).await.unwrap();
        }
        let database = Database::open(&settings(&env.database_url)).unwrap();
        let names = [
            ("default_transaction_isolation", "read committed"),
            ("transaction_isolation", "read committed"),
            ("search_path", "public"),
            ("standard_conforming_strings", "on"),
            ("bytea_output", "hex"),
            ("row_security", "off"),
            ("array_nulls", "on"),
            ("transform_null_equals", "off"),
            ("synchronous_commit", "on"),
            ("idle_session_timeout", "0"),
            ("statement_timeout", "10s"),
            ("lock_timeout", "200ms"),
            ("idle_in_transaction_session_timeout", "30s"),
            ("TimeZone", "UTC"),
            ("DateStyle", "ISO, MDY"),
            ("client_encoding", "UTF8"),
            ("enable_seqscan", "off"),
        ];
        let query = sqlx::query_as("SELECT current_setting(n) FROM unnest($1::text[]) AS k (n)")
            .bind(names.map(|(name, _)| name));
        let seen: Vec<(String,)> = database.values(query).await.unwrap();
        for ((name, wanted), (seen,)) in names.iter().zip(&seen) {
            assert_eq!(seen, wanted, "{name}");
        }
    }

    #[tokio::test]
    async fn the_limits_given_last_are_those_of_the_session() {
        let env = TestEnv::new().await;
        let database = Database::open(&settings(&env.database_url)).unwrap();
        let limits =
            Limits { time_out: Duration::from_secs(300), lock_time_out: Duration::from_secs(5) };
        let seen = async |database: &Database| {
            let query =
                "SELECT current_setting('statement_timeout'), current_setting('lock_timeout')";
            let seen: (String, String) = database.value(sqlx::query_as(query)).await.unwrap();
            seen
        };
        let own = |time_out: &str, lock: &str| (time_out.to_owned(), lock.to_owned());
        for other in [database.with_limits(limits, 1), database.limited(limits)] {
            assert_eq!(seen(&other).await, own("5min", "5s"));
            assert_eq!(seen(&database).await, own("10s", "200ms"));
        }
        // `database` and the limited one share one connection, on which the limits are set.
        assert_eq!(seen(&database.limited(limits)).await, own("5min", "5s"));
    }

    #[tokio::test]
    async fn a_stronger_commit_and_a_schema_named_in_the_url_are_kept() {
        let env = TestEnv::new().await;
        env.psql(&format!(
            "ALTER DATABASE {} SET synchronous_commit = 'remote_apply'; CREATE SCHEMA other",
            env.name
        ))
        .await
        .unwrap();
        let url = format!("{}?options[search_path]=other", env.database_url);
        let database = Database::open(&settings(&url)).unwrap();
        let query = "SELECT current_setting('synchronous_commit'), current_schema()::text";
        let seen: (String, String) = database.value(sqlx::query_as(query)).await.unwrap();
        assert_eq!(seen, ("remote_apply".to_owned(), "other".to_owned()));
    }
}

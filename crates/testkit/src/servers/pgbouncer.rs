//! A private PgBouncer in transaction mode, as Debian packages it, in front of a PostgreSQL.
//!
//! It uses a free port of 127.0.0.1; the distribution's service unit is not used. It ends with its [`PgBouncer`], and with
//! the process that owns it (see [`crate::guard`]).

use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};

use super::binaries::on_path;
use super::files::write_secret;
use super::postgresql::psql;
use super::user::user;
use crate::guard::Guard;
use crate::ports;
use crate::process::Process;
use crate::wait::until;

/// The package of Debian and Ubuntu, and its program.
const PACKAGE: &str = "pgbouncer";

/// It starts in some milliseconds; a busy machine may take far longer.
const READY_LIMIT: Duration = Duration::from_secs(30);

/// One running PgBouncer. Dropping it kills and reaps it.
#[derive(Debug)]
pub struct PgBouncer {
    process: Process,
    url: String,
    _guard: Guard,
}

impl PgBouncer {
    /// The package, if it is not installed on this machine.
    #[must_use]
    pub fn missing_package() -> Option<&'static str> {
        on_path(PACKAGE, PACKAGE).is_err().then_some(PACKAGE)
    }

    /// Starts it in front of the database of this URL, with so many connections for each user; waits until PostgreSQL
    /// answers through it. It takes the users and passwords of this URL and of `others`, which lead to the same database.
    ///
    /// # Errors
    /// When it is not installed, or does not start; then with the last lines of its log.
    pub async fn before(url: &str, others: &[&str], server_connections: u32) -> Result<Self> {
        let rest = url.strip_prefix("postgres://").context("the URL is not one of PostgreSQL")?;
        let (credentials, rest) = rest.split_once('@').context("the URL has no user")?;
        let (address, database) = rest.split_once('/').context("the URL has no database")?;
        let (host, port) = address.split_once(':').context("the URL has no port")?;
        let as_user = user()?;
        let guard = Guard::new(as_user.map(|user| user.id))?;
        let own_port = ports::free();
        let config = format!(
            "[databases]\n\
             {database} = host={host} port={port} dbname={database}\n\
             [pgbouncer]\n\
             listen_addr = 127.0.0.1\n\
             listen_port = {own_port}\n\
             unix_socket_dir =\n\
             auth_type = scram-sha-256\n\
             auth_file = users\n\
             pool_mode = transaction\n\
             default_pool_size = {server_connections}\n\
             max_client_conn = 1000\n"
        );
        let users = [url].into_iter().chain(others.iter().copied()).map(user_line);
        let users = users.collect::<Result<String>>()?;
        for (file, text) in [("config", config), ("users", users)] {
            let file = guard.dir().join(file);
            write_secret(&file, &text)?;
            if let Some(user) = as_user {
                chown(&file, Some(user.id), Some(user.group))?;
            }
        }
        let mut command = guard.mark().command(on_path(PACKAGE, PACKAGE)?);
        // It refuses to run as root.
        if let Some(user) = as_user {
            command.uid(user.id).gid(user.group);
        }
        command.current_dir(guard.dir()).arg("config");
        let process = Process::spawn(PACKAGE, &mut command, &guard.dir().join("log"))?;
        let url = format!("postgres://{credentials}@127.0.0.1:{own_port}/{database}");
        let bouncer = Self { process, url, _guard: guard };
        bouncer.ready(database).await?;
        Ok(bouncer)
    }

    /// The URL that leads through it.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    async fn ready(&self, database: &str) -> Result<()> {
        let ready = until("PgBouncer to respond", READY_LIMIT, async || {
            if let Some(status) = self.process.exited() {
                return Ok(Err(anyhow!("it ended: {status}")));
            }
            let answer = psql(&self.url, database, "SELECT 1").await;
            answer.map(|_| Ok(())).map_err(|error| error.to_string())
        });
        ready.await.map_err(anyhow::Error::from).flatten().with_context(|| {
            format!("PgBouncer did not start; the end of its log:\n{}", self.process.log_tail())
        })
    }
}

/// The line of the user of a URL in the file of users.
fn user_line(url: &str) -> Result<String> {
    let rest = url.strip_prefix("postgres://").and_then(|rest| rest.split_once('@'));
    let (name, password) = rest
        .and_then(|(credentials, _)| credentials.split_once(':'))
        .context("the URL has no user with a password")?;
    Ok(format!("\"{name}\" \"{password}\"\n"))
}

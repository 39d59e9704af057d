//! Starts and queries a private PostgreSQL. It refuses to run as root; root starts it as the user
//! `postgres`, which its package creates.

use std::ffi::OsStr;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::binaries;
use super::disk::Disk;
use super::files::{USER, remove, secret, write_secret};
use super::kind::Durability;
use super::user::User;
use crate::guard::{Guard, Mark};
use crate::ports;

/// Runs SQL through `psql` on a database of the server that `url` names.
pub(crate) async fn psql(url: &str, database: &str, sql: &str) -> Result<String> {
    let arguments = ["-XAtqw", "-v", "ON_ERROR_STOP=1", "-c", sql];
    let output = client("psql", url, database, &arguments).await?;
    Ok(output.trim_end().to_owned())
}

/// Runs a client program of PostgreSQL, such as `pg_dump`, on a database of the server that `url` names.
/// Returns its output.
pub(crate) async fn client(
    program: &str,
    url: &str,
    database: &str,
    arguments: &[&str],
) -> Result<String> {
    // The password is passed in the environment: every user can read the arguments of a process.
    let address = url.strip_prefix("postgres://").unwrap_or(url);
    let (address, _) = address.rsplit_once('/').unwrap_or((address, ""));
    let (credentials, host) = address.rsplit_once('@').context("the URL has no user")?;
    let (user, password) = credentials.split_once(':').context("the URL has no password")?;
    let (host, port) = host.split_once(':').unwrap_or((host, "5432"));
    let mut command = Command::new(binaries::postgresql(program)?);
    command
        .env("PGPASSWORD", password)
        .env("PGCONNECT_TIMEOUT", "5")
        .args(["-h", host, "-p", port, "-U", user, "-d", database])
        .args(arguments);
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    if output.status.success() {
        return Ok(String::from_utf8(output.stdout)?);
    }
    bail!("{}", String::from_utf8_lossy(&output.stderr).trim())
}

/// What a server whose data is a base backup does when it starts.
#[derive(Debug, Clone, Copy)]
pub enum BaseBackup {
    /// It is a standby: it replays what the primary streams.
    Standby,
    /// It recovers to this named restore point, from the write-ahead log of the original, and accepts
    /// writes then (point-in-time recovery).
    RecoveryTo(&'static str),
}

/// One PostgreSQL server, running or stopped.
#[derive(Debug)]
pub(super) struct PostgreSql {
    pub(super) port: u16,
    mark: Mark,
    dir: PathBuf,
    user: Option<User>,
    password: String,
    durability: Durability,
    /// The own disk for its data, if it has one.
    disk: Option<Disk>,
    /// Settings of its recovery, if its data is a base backup.
    recovery: Vec<String>,
}

impl PostgreSql {
    pub(super) fn prepare(
        guard: &Guard,
        dir: PathBuf,
        durability: Durability,
        user: Option<User>,
        disk_mebibytes: Option<u32>,
    ) -> Result<Self> {
        binaries::postgresql("initdb")?;
        if let Some(user) = user {
            chown(&dir, Some(user.id), Some(user.group))?;
        }
        let mark = guard.mark().clone();
        let disk = disk_mebibytes.map(|size| Disk::mount(&mark, &dir, user, size)).transpose()?;
        let (port, password, recovery) = (ports::free(), secret(), Vec::new());
        Ok(Self { port, mark, dir, user, password, durability, disk, recovery })
    }

    /// Copies the data of this server, which must be running, to a new directory of this name beside its own.
    /// The copy is not started.
    pub(super) async fn base_backup(&self, name: &str, kind: BaseBackup) -> Result<Self> {
        let dir = self.dir.with_file_name(name);
        std::fs::create_dir(&dir)?;
        if let Some(user) = self.user {
            chown(&dir, Some(user.id), Some(user.group))?;
        }
        let mut command = self.as_user(binaries::postgresql("pg_basebackup")?);
        command.current_dir(&dir).env("PGPASSWORD", &self.password);
        command.args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-U", USER]);
        command.args(["-D", "data", "--checkpoint=fast", "--no-sync", "--wal-method=stream"]);
        let mut recovery = Vec::new();
        match kind {
            BaseBackup::Standby => {
                command.arg("--write-recovery-conf");
            }
            BaseBackup::RecoveryTo(restore_point) => recovery.extend([
                format!("restore_command=cp {}/data/pg_wal/%f %p", self.dir.display()),
                format!("recovery_target_name={restore_point}"),
                "recovery_target_action=promote".to_owned(),
            ]),
        }
        let output = tokio::task::spawn_blocking(move || command.output()).await??;
        if !output.status.success() {
            bail!("pg_basebackup: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        if let BaseBackup::RecoveryTo(_) = kind {
            std::fs::write(dir.join("data/recovery.signal"), "")?;
        }
        let Self { mark, user, password, durability, .. } = self;
        Ok(Self {
            port: ports::free(),
            mark: mark.clone(),
            dir,
            user: *user,
            password: password.clone(),
            durability: *durability,
            disk: None,
            recovery,
        })
    }

    /// A command that runs as the user of the server.
    fn as_user(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.mark.command(program);
        if let Some(user) = self.user {
            command.uid(user.id).gid(user.group);
        }
        command
    }

    pub(super) fn url(&self) -> String {
        format!("postgres://{USER}:{}@127.0.0.1:{}/postgres", self.password, self.port)
    }

    pub(super) fn command(&self) -> Result<(Command, PathBuf)> {
        // One shell runs both initdb and the server, so that the caller does not wait for initdb and the
        // servers start in parallel.
        let script = r#"
            if [ ! -s data/PG_VERSION ]; then
                "$1" --no-sync --username="$3" --pwfile=password --auth=password \
                    --encoding=UTF8 --no-locale --pgdata=data || exit
            fi
            server=$2; shift 3; exec "$server" -D data "$@"
        "#;
        let password = self.dir.join("password");
        write_secret(&password, &self.password)?;
        if let Some(user) = self.user {
            chown(&password, Some(user.id), Some(user.group))?;
        }
        let mut command = match (&self.disk, self.user) {
            (Some(disk), user) => {
                let mut command = disk.command(&self.mark, user)?;
                command.arg("sh");
                command
            }
            (None, _) => self.as_user("sh"),
        };
        command.current_dir(&self.dir).args(["-c", script, "postgresql"]);
        command.arg(binaries::postgresql("initdb")?).arg(binaries::postgresql("postgres")?);
        command.arg(USER);
        for setting in self.settings() {
            command.arg("-c").arg(setting);
        }
        Ok((command, self.dir.join("log")))
    }

    /// Its own disk.
    pub(super) fn disk(&self) -> Result<&Disk> {
        self.disk.as_ref().context("this PostgreSQL has no own disk")
    }

    pub(super) fn wipe(&self) -> Result<()> {
        if self.disk.is_some() {
            bail!("a PostgreSQL with an own disk cannot be started empty");
        }
        remove(&self.dir.join("data"))
    }

    pub(super) async fn probe(&self) -> Result<(), String> {
        self.psql("postgres", "SELECT 1").await.map(|_| ()).map_err(|error| error.to_string())
    }

    /// Runs SQL as the superuser; returns unaligned text, one line per row.
    pub(super) async fn psql(&self, database: &str, sql: &str) -> Result<String> {
        psql(&self.url(), database, sql).await
    }

    fn settings(&self) -> Vec<String> {
        let (synced, vacuumed) = match self.durability {
            // The databases exist for seconds: vacuuming them only slows down other tests.
            Durability::Fast => ("off", "off"),
            Durability::Durable => ("on", "on"),
        };
        let mut settings = vec![
            format!("port={}", self.port),
            "listen_addresses=127.0.0.1".to_owned(),
            "unix_socket_directories=".to_owned(),
            // Many tests with a pool each run concurrently; the default is 100.
            "max_connections=400".to_owned(),
            // Files in its own directory, which need no clean-up after a kill.
            "dynamic_shared_memory_type=mmap".to_owned(),
            format!("fsync={synced}"),
            format!("full_page_writes={synced}"),
            format!("autovacuum={vacuumed}"),
        ];
        settings.extend(self.recovery.iter().cloned());
        settings
    }
}

//! Where the servers' programs are: as Debian lays them out, else on the path.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::Kind;

/// The kinds of server whose programs are not on this machine.
#[must_use]
pub fn missing() -> Vec<Kind> {
    Kind::ALL.into_iter().filter(|kind| main_program(*kind).is_err()).collect()
}

/// The package of Debian and Ubuntu that brings a server.
#[must_use]
pub fn package(kind: Kind) -> &'static str {
    match kind {
        Kind::RabbitMq | Kind::RabbitMqCluster => "rabbitmq-server",
        Kind::Redis | Kind::RedisCluster => "redis-server",
        Kind::PostgreSql => "postgresql",
    }
}

fn main_program(kind: Kind) -> Result<PathBuf> {
    match kind {
        Kind::RabbitMq | Kind::RabbitMqCluster => rabbitmq("rabbitmq-server"),
        Kind::Redis | Kind::RedisCluster => redis(),
        Kind::PostgreSql => postgresql("initdb"),
    }
}

/// The environment variable that names a directory with programs of another RabbitMQ than the machine's.
pub const RABBITMQ: &str = "VERBATIM_TEST_RABBITMQ";

/// A program of RabbitMQ. Debian's in `/usr/sbin` are wrappers that insist on their own user and
/// directory; the ones behind them run anywhere.
pub(super) fn rabbitmq(program: &str) -> Result<PathBuf> {
    if let Some(other) = other_rabbitmq() {
        return Ok(other.join(program));
    }
    let behind = Path::new("/usr/lib/rabbitmq/bin").join(program);
    if behind.is_file() { Ok(behind) } else { on_path(program, package(Kind::RabbitMq)) }
}

/// Erlang's name server, which comes with RabbitMQ.
pub(super) fn epmd() -> Result<PathBuf> {
    match other_rabbitmq() {
        Some(other) => Ok(other.join("epmd")),
        None => on_path("epmd", package(Kind::RabbitMq)),
    }
}

fn other_rabbitmq() -> Option<PathBuf> {
    std::env::var_os(RABBITMQ).map(PathBuf::from)
}

pub(super) fn redis() -> Result<PathBuf> {
    on_path("redis-server", package(Kind::Redis))
}

/// A program of the newest PostgreSQL.
pub(super) fn postgresql(program: &str) -> Result<PathBuf> {
    let newest = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let version: u32 = entry.file_name().to_str()?.parse().ok()?;
            let program = entry.path().join("bin").join(program);
            program.is_file().then_some((version, program))
        })
        .max();
    match newest {
        Some((_, program)) => Ok(program),
        None => on_path(program, package(Kind::PostgreSql)),
    }
}

/// A program on the path, which `package` brings.
pub(crate) fn on_path(program: &str, package: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        // Where an ordinary user's path does not lead.
        .chain(["/usr/sbin", "/usr/local/sbin", "/usr/local/bin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
        .with_context(|| {
            format!("{program} is not installed: `apt-get install {package}` brings it, and `cargo xtask test` installs it by itself")
        })
}

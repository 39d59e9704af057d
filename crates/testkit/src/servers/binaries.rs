//! The paths of the servers' programs: where Debian installs them, or else on `PATH`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::kind::Kind;

/// The kinds of server whose programs are not installed on this machine.
#[must_use]
pub fn missing() -> Vec<Kind> {
    Kind::ALL.into_iter().filter(|kind| main_program(*kind).is_err()).collect()
}

/// The package of Debian and Ubuntu that contains a server.
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

/// The environment variable with a directory of RabbitMQ programs to use instead of the installed ones.
pub const RABBITMQ: &str = "VERBATIM_TEST_RABBITMQ";

/// A program of RabbitMQ. Those in Debian's `/usr/sbin` are wrappers that require a certain user and
/// directory; this returns the programs that they call.
pub(super) fn rabbitmq(program: &str) -> Result<PathBuf> {
    if let Some(other) = chosen_rabbitmq() {
        return Ok(other.join(program));
    }
    let wrapped = Path::new("/usr/lib/rabbitmq/bin").join(program);
    if wrapped.is_file() { Ok(wrapped) } else { on_path(program, package(Kind::RabbitMq)) }
}

/// Erlang's port mapper daemon, which is installed with RabbitMQ.
pub(super) fn epmd() -> Result<PathBuf> {
    match chosen_rabbitmq() {
        Some(other) => Ok(other.join("epmd")),
        None => on_path("epmd", package(Kind::RabbitMq)),
    }
}

fn chosen_rabbitmq() -> Option<PathBuf> {
    std::env::var_os(RABBITMQ).map(PathBuf::from)
}

pub(super) fn redis() -> Result<PathBuf> {
    on_path("redis-server", package(Kind::Redis))
}

/// A program of the newest installed PostgreSQL.
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

/// A program on `PATH`; `package` contains it.
pub(crate) fn on_path(program: &str, package: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        // Not on the PATH of ordinary users.
        .chain(["/usr/sbin", "/usr/local/sbin", "/usr/local/bin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
        .with_context(|| {
            format!("{program} is not installed: run `apt-get install {package}`, or `cargo xtask test`, which installs it")
        })
}

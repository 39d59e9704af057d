//! Private Prometheus and Alertmanager servers, as Debian packages them, for tests of alerts.
//!
//! They use free ports of 127.0.0.1 and keep their data under `target/`; the distribution's service units are
//! not used. They end with their [`Monitor`], and with the process that owns it (see [`crate::guard`]).

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::guard::Guard;
use crate::http::{self, Response};
use crate::ports;
use crate::process::Process;
use crate::servers::binaries::on_path;
use crate::wait::until;

/// Both start within a second; a busy machine may take ten times as long.
const READY_LIMIT: Duration = Duration::from_secs(30);

/// A program of Prometheus or Alertmanager.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// The server that scrapes and evaluates rules.
    Prometheus,
    /// The tool that checks and tests rules.
    Promtool,
    /// The server that sends notifications.
    Alertmanager,
    /// The tool that checks configurations and routes.
    Amtool,
}

/// One running server. Dropping it kills and reaps it.
#[derive(Debug)]
pub struct Monitor {
    process: Process,
    address: SocketAddr,
    _guard: Guard,
}

/// The packages of Debian and Ubuntu with the programs that are missing on this machine.
#[must_use]
pub fn missing_packages() -> Vec<&'static str> {
    let missing = Program::ALL.into_iter().filter(|program| program.path().is_err());
    let mut packages: Vec<_> = missing.map(Program::package).collect();
    packages.dedup();
    packages
}

impl Program {
    /// All of them, by package.
    pub const ALL: [Self; 4] = [Self::Prometheus, Self::Promtool, Self::Alertmanager, Self::Amtool];

    /// The package of Debian and Ubuntu that contains it.
    #[must_use]
    pub fn package(self) -> &'static str {
        match self {
            Self::Prometheus | Self::Promtool => "prometheus",
            Self::Alertmanager | Self::Amtool => "prometheus-alertmanager",
        }
    }

    /// Its path.
    ///
    /// # Errors
    /// When it is not installed; with the package that contains it.
    pub fn path(self) -> Result<PathBuf> {
        let package = self.package();
        match self {
            Self::Prometheus => on_path("prometheus", package),
            Self::Promtool => on_path("promtool", package),
            // Debian's name, then the upstream name.
            Self::Alertmanager => on_path("prometheus-alertmanager", package)
                .or_else(|error| on_path("alertmanager", package).map_err(|_| error)),
            Self::Amtool => on_path("amtool", package),
        }
    }
}

impl Monitor {
    /// Starts a Prometheus with a configuration and files of rules, which the configuration names
    /// `rules-*.yml`, and waits until it is ready.
    ///
    /// # Errors
    /// When it is not installed or does not start; then with the last lines of its log.
    pub async fn prometheus(config: &Value, rules: &[Value]) -> Result<Self> {
        Self::start(Program::Prometheus, config, rules, |command, data| {
            command.arg(option("--storage.tsdb.path", data));
        })
        .await
    }

    /// Starts an Alertmanager with a configuration, and waits until it is ready.
    ///
    /// # Errors
    /// As [`Self::prometheus`].
    pub async fn alertmanager(config: &Value) -> Result<Self> {
        Self::start(Program::Alertmanager, config, &[], |command, data| {
            // No cluster: otherwise it would search for a private address to listen on.
            command.arg("--cluster.listen-address=").arg(option("--storage.path", data));
        })
        .await
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The JSON at a path of its API.
    ///
    /// # Errors
    /// When it does not respond, or responds with an error.
    pub async fn get(&self, path: &str) -> Result<Value> {
        let Response { status, body, .. } = http::get(self.address, path).await?;
        if status != 200 {
            bail!("GET {path}: status {status}: {body}");
        }
        serde_json::from_str(&body).with_context(|| format!("GET {path} returned {body:?}"))
    }

    /// The last lines of its log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        self.process.log_tail()
    }

    async fn start(
        program: Program,
        config: &Value,
        rules: &[Value],
        options: impl FnOnce(&mut Command, &Path),
    ) -> Result<Self> {
        let guard = Guard::new(None).context("cannot create a directory for the monitor")?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, ports::free()));
        // JSON is valid YAML.
        let file = guard.dir().join("config.yml");
        std::fs::write(&file, serde_json::to_vec_pretty(config)?)?;
        for (number, rules) in rules.iter().enumerate() {
            let file = guard.dir().join(format!("rules-{number}.yml"));
            std::fs::write(file, serde_json::to_vec_pretty(rules)?)?;
        }
        let mut command = guard.mark().command(program.path()?);
        command
            .current_dir(guard.dir())
            .arg(option("--config.file", &file))
            .arg(format!("--web.listen-address={address}"));
        options(&mut command, &guard.dir().join("data"));
        let name = program.package();
        let process = Process::spawn(name, &mut command, &guard.dir().join("log"))?;
        let monitor = Self { process, address, _guard: guard };
        let ready = until(format!("{name} to be ready"), READY_LIMIT, async || {
            if let Some(status) = monitor.process.exited() {
                return Ok(Err(anyhow::anyhow!("{name} ended: {status}")));
            }
            match http::get(address, "/-/ready").await {
                Ok(Response { status: 200, .. }) => Ok(Ok(())),
                Ok(Response { status, body, .. }) => Err(format!("status {status}: {body}")),
                Err(error) => Err(format!("{error:#}")),
            }
        });
        ready.await.map_err(anyhow::Error::from).flatten().with_context(|| {
            format!("{name} did not start; the end of its log:\n{}", monitor.log_tail())
        })?;
        Ok(monitor)
    }
}

fn option(name: &str, path: &Path) -> String {
    format!("{name}={}", path.display())
}

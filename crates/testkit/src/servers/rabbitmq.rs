//! How a private RabbitMQ is started and asked.
//!
//! It runs as whoever starts it, root included, without the distribution's wrappers. Its name server
//! (`epmd`), which RabbitMQ would start as a daemon for the whole machine and leave behind, is a child of
//! ours on a port of its own. The management plugin is on: it makes a virtual host in 30 ms, where
//! `rabbitmqctl` takes 2 s, and costs 0.3 s at boot (160 virtual hosts from a definitions file: 5 s).

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{USER, binaries, remove, secret, write_secret};
use crate::guard::{Guard, Mark};
use crate::management::Management;
use crate::ports;
use crate::process::Process;

/// Nodes need no different names: each has its own name server.
const NODE: &str = "verbatim@localhost";

/// No shell on standard input; distribution over loopback only; idle schedulers leave the cores to
/// the tests.
const ERLANG_ARGUMENTS: &str = "-noinput -kernel inet_dist_use_interface {127,0,0,1} \
                                +sbwt none +sbwtdcpu none +sbwtdio none";

/// One RabbitMQ, running or not.
#[derive(Debug)]
pub(super) struct RabbitMq {
    pub(super) port: u16,
    management_port: u16,
    distribution_port: u16,
    epmd_port: u16,
    mark: Mark,
    dir: PathBuf,
    password: String,
    cookie: String,
    _epmd: Process,
}

impl RabbitMq {
    pub(super) fn prepare(guard: &Guard, dir: PathBuf) -> Result<Self> {
        binaries::rabbitmq("rabbitmq-server")?;
        let epmd_port = ports::free();
        let mut epmd = guard.mark().command(binaries::epmd()?);
        epmd.args(["-address", "127.0.0.1", "-port", &epmd_port.to_string()]).current_dir(&dir);
        Ok(Self {
            port: ports::free(),
            management_port: ports::free(),
            distribution_port: ports::free(),
            epmd_port,
            mark: guard.mark().clone(),
            _epmd: Process::spawn("epmd", &mut epmd, &dir.join("epmd.log"))?,
            dir,
            password: secret(),
            cookie: secret(),
        })
    }

    pub(super) fn url(&self) -> String {
        format!("amqp://{USER}:{}@127.0.0.1:{}/%2f", self.password, self.port)
    }

    pub(super) fn management(&self) -> Management {
        Management::new(self.management_port, USER, &self.password)
    }

    pub(super) fn command(&self) -> Result<(Command, PathBuf)> {
        for name in ["data", "home"] {
            std::fs::create_dir_all(self.dir.join(name))?;
        }
        std::fs::write(self.dir.join("enabled_plugins"), "[rabbitmq_management].\n")?;
        write_secret(&self.dir.join("rabbitmq.conf"), &self.config())?;
        // Erlang takes the cookie from here, and insists that nobody else can read it.
        write_secret(&self.dir.join("home/.erlang.cookie"), &self.cookie)?;
        let mut command = self.mark.command(binaries::rabbitmq("rabbitmq-server")?);
        self.environment(&mut command);
        command
            .current_dir(&self.dir)
            // Without a supervising shell in between, the process that we know is the server.
            .env("RABBITMQ_ALLOW_INPUT", "1")
            .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", ERLANG_ARGUMENTS);
        Ok((command, self.dir.join("log")))
    }

    pub(super) fn ctl(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = self.mark.command(binaries::rabbitmq("rabbitmqctl")?);
        self.environment(&mut command);
        command.args(["--quiet", "--node", NODE]).args(arguments);
        Ok(command)
    }

    pub(super) fn wipe(&self) -> Result<()> {
        remove(&self.dir.join("data"))
    }

    /// The protocol's greeting comes only after the boot, plugins included.
    pub(super) async fn probe(&self) -> Result<(), String> {
        let exchange = async {
            let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
            stream.write_all(b"AMQP\x00\x00\x09\x01").await?;
            stream.read_u8().await
        };
        match exchange.await {
            // A method frame: `connection.start`.
            Ok(1) => self.management().probe().await.map_err(|error| format!("{error:#}")),
            Ok(other) => Err(format!("it greets with a frame of type {other}")),
            Err(error) => Err(error.to_string()),
        }
    }

    fn environment(&self, command: &mut Command) {
        command
            .env("HOME", self.dir.join("home"))
            .env("ERL_EPMD_PORT", self.epmd_port.to_string())
            .env("RABBITMQ_NODENAME", NODE)
            .env("RABBITMQ_NODE_PORT", self.port.to_string())
            .env("RABBITMQ_DIST_PORT", self.distribution_port.to_string())
            .env("RABBITMQ_MNESIA_BASE", self.dir.join("data"))
            .env("RABBITMQ_LOG_BASE", &self.dir)
            .env("RABBITMQ_LOGS", "-")
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", self.dir.join("enabled_plugins"))
            .env("RABBITMQ_CONFIG_FILE", self.dir.join("rabbitmq.conf"))
            // The machine's own settings are for the machine's own server.
            .env("RABBITMQ_CONF_ENV_FILE", "/dev/null");
    }

    fn config(&self) -> String {
        let Self { port, management_port, password, .. } = self;
        format!(
            "listeners.tcp.1 = 127.0.0.1:{port}\n\
             management.tcp.ip = 127.0.0.1\n\
             management.tcp.port = {management_port}\n\
             management_agent.disable_metrics_collector = true\n\
             default_user = {USER}\n\
             default_pass = {password}\n\
             log.console.level = info\n"
        )
    }
}

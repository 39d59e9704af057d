//! Starts and queries a private RabbitMQ.
//!
//! It runs as the user of this process, root included, without the distribution's wrappers. RabbitMQ would
//! start Erlang's port mapper (`epmd`) as a daemon of the machine and leave it running, so this module starts
//! it as a child process on its own port. The management plugin is enabled: it creates a virtual host in
//! 30 ms, where `rabbitmqctl` takes 2 s, and adds 0.3 s to the boot (160 virtual hosts from a definitions
//! file: 5 s).

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::binaries;
use super::files::{USER, remove, secret, write_secret};
use crate::guard::{Guard, Mark};
use crate::management::Management;
use crate::ports;
use crate::process::Process;

/// Nodes of a cluster. They share an `epmd`.
const CLUSTER: usize = 3;

/// No shell on standard input; distribution over loopback only; schedulers do not spin when idle.
const ERLANG_ARGUMENTS: &str = "-noinput -kernel inet_dist_use_interface {127,0,0,1} \
                                +sbwt none +sbwtdcpu none +sbwtdio none";

/// One node of RabbitMQ, running or stopped.
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
    /// Its name, and the names of all nodes of its cluster.
    node: String,
    members: Vec<String>,
    _epmd: Arc<Process>,
}

impl RabbitMq {
    /// A single node.
    pub(super) fn prepare(guard: &Guard, dir: PathBuf) -> Result<Vec<Self>> {
        Self::prepare_nodes(guard, vec![dir])
    }

    /// Three nodes that form a cluster.
    pub(super) fn prepare_cluster(guard: &Guard, dir: &Path) -> Result<Vec<Self>> {
        let dirs: Vec<_> = (0..CLUSTER).map(|node| dir.join(node.to_string())).collect();
        for dir in &dirs {
            std::fs::create_dir_all(dir)?;
        }
        Self::prepare_nodes(guard, dirs)
    }

    fn prepare_nodes(guard: &Guard, dirs: Vec<PathBuf>) -> Result<Vec<Self>> {
        let home = guard.dir();
        binaries::rabbitmq("rabbitmq-server")?;
        let epmd_port = ports::free();
        let mut epmd = guard.mark().command(binaries::epmd()?);
        epmd.args(["-address", "127.0.0.1", "-port", &epmd_port.to_string()]).current_dir(home);
        let epmd = Arc::new(Process::spawn("epmd", &mut epmd, &home.join("epmd.log"))?);
        let (password, cookie) = (secret(), secret());
        let members: Vec<_> =
            (0..dirs.len()).map(|node| format!("verbatim{node}@localhost")).collect();
        let node = |(dir, node): (PathBuf, &String)| Self {
            port: ports::free(),
            management_port: ports::free(),
            distribution_port: ports::free(),
            epmd_port,
            mark: guard.mark().clone(),
            _epmd: epmd.clone(),
            dir,
            password: password.clone(),
            cookie: cookie.clone(),
            node: node.clone(),
            members: members.clone(),
        };
        Ok(dirs.into_iter().zip(&members).map(node).collect())
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
        // Erlang reads the cookie from this file, which only its owner may be able to read.
        write_secret(&self.dir.join("home/.erlang.cookie"), &self.cookie)?;
        let mut command = self.mark.command(binaries::rabbitmq("rabbitmq-server")?);
        self.environment(&mut command);
        command
            .current_dir(&self.dir)
            // Without a supervising shell, so that the started process is the server.
            .env("RABBITMQ_ALLOW_INPUT", "1")
            .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", ERLANG_ARGUMENTS);
        Ok((command, self.dir.join("log")))
    }

    pub(super) fn ctl(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = self.mark.command(binaries::rabbitmq("rabbitmqctl")?);
        self.environment(&mut command);
        command.args(["--quiet", "--node", &self.node]).args(arguments);
        Ok(command)
    }

    pub(super) fn wipe(&self) -> Result<()> {
        remove(&self.dir.join("data"))
    }

    /// Checks that RabbitMQ replies to a protocol header, which it does only after the boot and plugins.
    pub(super) async fn probe(&self) -> Result<(), String> {
        let exchange = async {
            let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
            stream.write_all(b"AMQP\x00\x00\x09\x01").await?;
            stream.read_u8().await
        };
        match exchange.await {
            // A method frame: `connection.start`.
            Ok(1) => self.sees_every_node().await,
            Ok(other) => Err(format!("the first frame has type {other}, not 1 (method)")),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Whether it sees every node of its cluster running.
    async fn sees_every_node(&self) -> Result<(), String> {
        let nodes = self.management().get("/api/nodes").await.map_err(|e| format!("{e:#}"))?;
        let running = |nodes: &Vec<serde_json::Value>| {
            nodes.iter().filter(|node| node["running"] == true).count()
        };
        match nodes.as_array().map_or(0, running) {
            count if count >= self.members.len() => Ok(()),
            count => Err(format!("{count} of {} nodes are running", self.members.len())),
        }
    }

    fn environment(&self, command: &mut Command) {
        command
            .env("HOME", self.dir.join("home"))
            .env("ERL_EPMD_PORT", self.epmd_port.to_string())
            .env("RABBITMQ_NODENAME", &self.node)
            .env("RABBITMQ_NODE_PORT", self.port.to_string())
            .env("RABBITMQ_DIST_PORT", self.distribution_port.to_string())
            .env("RABBITMQ_MNESIA_BASE", self.dir.join("data"))
            .env("RABBITMQ_LOG_BASE", &self.dir)
            .env("RABBITMQ_LOGS", "-")
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", self.dir.join("enabled_plugins"))
            .env("RABBITMQ_CONFIG_FILE", self.dir.join("rabbitmq.conf"))
            // Ignore the settings of the installed server.
            .env("RABBITMQ_CONF_ENV_FILE", "/dev/null");
    }

    fn config(&self) -> String {
        let Self { port, management_port, password, members, .. } = self;
        let mut cluster = String::new();
        if members.len() > 1 {
            cluster += "cluster_formation.peer_discovery_backend = classic_config\n";
            for (n, member) in members.iter().enumerate() {
                cluster += &format!("cluster_formation.classic_config.nodes.{n} = {member}\n");
            }
        }
        format!(
            "listeners.tcp.1 = 127.0.0.1:{port}\n\
             management.tcp.ip = 127.0.0.1\n\
             management.tcp.port = {management_port}\n\
             management_agent.disable_metrics_collector = true\n\
             default_user = {USER}\n\
             default_pass = {password}\n\
             log.console.level = info\n\
             {cluster}"
        )
    }
}

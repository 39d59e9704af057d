//! One private server: a single process, or all nodes of a cluster.

use anyhow::{Result, bail};

use super::kind::Kind;
use super::node::{Launch, Node};
use super::postgresql::BaseBackup;
use crate::management::Management;

/// One private server, with the same address after every restart. Methods apply to all its nodes.
#[derive(Debug)]
pub struct Server {
    kind: Kind,
    nodes: Vec<Node>,
}

impl Server {
    pub(super) fn new(kind: Kind, launches: Vec<Launch>) -> Self {
        let nodes = launches.into_iter().map(|launch| Node::new(kind, launch)).collect();
        Self { kind, nodes }
    }

    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Its processes: the nodes of a cluster, masters first; otherwise a single one.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Its URL with the password, for virtual host `/`, Redis database 0, or database `postgres`. For a
    /// cluster, the URLs of all nodes, separated by commas.
    #[must_use]
    pub fn url(&self) -> String {
        self.nodes.iter().map(Node::url).collect::<Vec<_>>().join(",")
    }

    /// Its port on 127.0.0.1; for a cluster, that of the first node.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.nodes[0].port()
    }

    /// RabbitMQ's HTTP interface.
    ///
    /// # Panics
    /// For another kind of server.
    #[must_use]
    pub fn management(&self) -> Management {
        match self.nodes[0].launch() {
            Launch::RabbitMq(it) => it.management(),
            _ => panic!("{} has no management interface", self.kind),
        }
    }

    /// Runs `rabbitmqctl` (`stop_app`, `set_vm_memory_high_watermark`, …) on its first node, which takes
    /// about 2 s, and returns the output.
    ///
    /// # Errors
    /// When the command fails; with its output.
    pub async fn rabbitmqctl(&self, arguments: &[&str]) -> Result<String> {
        let Launch::RabbitMq(it) = self.nodes[0].launch() else {
            bail!("{} is not RabbitMQ", self.kind)
        };
        let mut command = it.ctl(arguments)?;
        let output = tokio::task::spawn_blocking(move || command.output()).await??;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            return Ok(text);
        }
        bail!("rabbitmqctl {arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr))
    }

    /// Runs SQL on a database of PostgreSQL; returns unaligned text, one line per row.
    ///
    /// # Errors
    /// When it is another kind of server, or the statement fails; with PostgreSQL's message.
    pub async fn psql(&self, database: &str, sql: &str) -> Result<String> {
        let Launch::PostgreSql(it) = self.nodes[0].launch() else {
            bail!("{} is not PostgreSQL", self.kind)
        };
        it.psql(database, sql).await
    }

    /// A copy of a running PostgreSQL, made by `pg_basebackup`, with an address of its own. `name` is its
    /// directory beside that of the original. It is not started. It ends with the set of the original.
    ///
    /// # Errors
    /// When it is another kind of server, or the copy fails; with the output of the program.
    pub async fn base_backup(&self, name: &str, kind: BaseBackup) -> Result<Self> {
        let Launch::PostgreSql(it) = self.nodes[0].launch() else {
            bail!("{} is not PostgreSQL", self.kind)
        };
        let copy = it.base_backup(name, kind).await?;
        Ok(Self::new(self.kind, vec![Launch::PostgreSql(copy)]))
    }

    /// Its process id while it is running; for a cluster, that of the first node.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.nodes[0].pid()
    }

    /// The last lines of its log; for a cluster, of every node's.
    #[must_use]
    pub fn log_tail(&self) -> String {
        self.nodes.iter().map(Node::log_tail).collect::<Vec<_>>().join("\n")
    }

    /// Kills it and its children (`kill -9`), and returns when all of them have ended.
    ///
    /// # Errors
    /// When the signal cannot be sent, or a child does not end.
    pub async fn kill(&self) -> Result<()> {
        for node in &self.nodes {
            node.kill().await?;
        }
        Ok(())
    }

    /// Stops it as an operator would: RabbitMQ and Redis by SIGTERM, PostgreSQL by its fast shutdown.
    ///
    /// # Errors
    /// When it does not stop.
    pub async fn stop(&self) -> Result<()> {
        for node in &self.nodes {
            node.stop().await?;
        }
        Ok(())
    }

    /// Ends PostgreSQL by its immediate shutdown, without a checkpoint: the next start has to recover.
    ///
    /// # Errors
    /// When it does not end, or is another kind of server.
    pub async fn crash(&self) -> Result<()> {
        self.nodes[0].crash().await
    }

    /// Kills one of its children (`kill -9`), such as a backend of PostgreSQL.
    ///
    /// # Errors
    /// When `pid` is not one of its children.
    pub fn kill_child(&self, pid: u32) -> Result<()> {
        self.nodes[0].kill_child(pid)
    }

    /// Restarts it at the same address with its data, and waits until it responds.
    ///
    /// # Errors
    /// When it is running, or does not start.
    pub async fn start(&self) -> Result<()> {
        self.spawn()?;
        self.ready().await
    }

    /// Restarts it at the same address without its data, as after the loss of its disk.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_empty(&self) -> Result<()> {
        for node in &self.nodes {
            node.wipe()?;
        }
        self.start().await
    }

    /// Freezes it and its children: connections stay open, and it does not respond.
    ///
    /// # Errors
    /// When it is not running.
    pub fn freeze(&self) -> Result<()> {
        self.nodes.iter().try_for_each(Node::freeze)
    }

    /// Ends [`Self::freeze`].
    ///
    /// # Errors
    /// When it is not running.
    pub fn thaw(&self) -> Result<()> {
        self.nodes.iter().try_for_each(Node::thaw)
    }

    pub(super) fn spawn(&self) -> Result<()> {
        self.nodes.iter().try_for_each(Node::spawn)
    }

    pub(super) async fn ready(&self) -> Result<()> {
        for node in &self.nodes {
            node.ready().await?;
        }
        Ok(())
    }
}

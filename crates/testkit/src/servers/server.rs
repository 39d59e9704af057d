//! One private server as its users see it: one process, or the nodes of a cluster taken together.

use anyhow::{Result, bail};

use super::Kind;
use super::node::{Launch, Node};
use crate::management::Management;

/// One private server, at one address for all its restarts. What it is told, all its nodes are told.
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

    /// Which one it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Its processes: the nodes of a cluster, masters first; else just the one.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Its URL, with the password: virtual host `/`, database 0, or database `postgres`. Of a cluster,
    /// the URLs of all nodes, separated by commas.
    #[must_use]
    pub fn url(&self) -> String {
        self.nodes.iter().map(Node::url).collect::<Vec<_>>().join(",")
    }

    /// Its port on 127.0.0.1; of a cluster, the first node's.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.nodes[0].port()
    }

    /// RabbitMQ's HTTP interface.
    ///
    /// # Panics
    /// For another server.
    #[must_use]
    pub fn management(&self) -> Management {
        match self.nodes[0].launch() {
            Launch::RabbitMq(it) => it.management(),
            _ => panic!("{} has no management interface", self.kind),
        }
    }

    /// Runs `rabbitmqctl` against it (`stop_app`, `set_vm_memory_high_watermark`, …), which takes about
    /// 2 s, and returns what it printed.
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

    /// Runs SQL on one of PostgreSQL's databases; the answer is unaligned text, a line for each row.
    ///
    /// # Errors
    /// When the server is another, or the statement fails; with its message.
    pub async fn psql(&self, database: &str, sql: &str) -> Result<String> {
        let Launch::PostgreSql(it) = self.nodes[0].launch() else {
            bail!("{} is not PostgreSQL", self.kind)
        };
        it.psql(database, sql).await
    }

    /// Its process id, while it is running; of a cluster, the first node's.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.nodes[0].pid()
    }

    /// The last lines of its log, of each node's.
    #[must_use]
    pub fn log_tail(&self) -> String {
        self.nodes.iter().map(Node::log_tail).collect::<Vec<_>>().join("\n")
    }

    /// Ends it without any chance to react (`kill -9`), children included, and returns when all of
    /// them are gone.
    ///
    /// # Errors
    /// When the signal cannot be sent, or a child stays.
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

    /// Ends PostgreSQL by its immediate shutdown: without a checkpoint, so that the next start recovers.
    ///
    /// # Errors
    /// When it does not end, or is another server.
    pub async fn crash(&self) -> Result<()> {
        self.nodes[0].crash().await
    }

    /// Kills one of its children (`kill -9`), such as a backend of PostgreSQL.
    ///
    /// # Errors
    /// When it is none of its children.
    pub fn kill_child(&self, pid: u32) -> Result<()> {
        self.nodes[0].kill_child(pid)
    }

    /// Starts it again at the same address with the data it had, and waits until it answers.
    ///
    /// # Errors
    /// When it is running, or does not come up.
    pub async fn start(&self) -> Result<()> {
        self.spawn()?;
        self.ready().await
    }

    /// Starts it again at the same address, but empty, as after the loss of its disk.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_empty(&self) -> Result<()> {
        for node in &self.nodes {
            node.wipe()?;
        }
        self.start().await
    }

    /// Freezes it, children included: connections stay open, and nothing answers.
    ///
    /// # Errors
    /// When it is not running.
    pub fn freeze(&self) -> Result<()> {
        self.nodes.iter().try_for_each(Node::freeze)
    }

    /// Thaws what [`Self::freeze`] froze.
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

//! Where the contests take place: private servers with real durability, release binaries, and one
//! state from which every run begins.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use testkit::fleet::Fleet;
use testkit::place;
use testkit::process::Process;
use testkit::servers::{Durability, Kind, Server, Servers};
use testkit::wait::until;
use tokio::time::sleep;

use super::usage::cpu_of_tree;
use crate::{cargo, packages, say};

/// What users run.
pub(crate) const PRODUCTS: [&str; 4] =
    ["message-save-worker", "persistence-migration-worker", "statistics-worker", "verbatim"];

/// The servers' own work after a load (segments, checkpoints) is over within seconds.
const QUIET_LIMIT: Duration = Duration::from_secs(60);
/// Servers are quiet when they use less than a tenth of a core for this long.
const QUIET: Duration = Duration::from_millis(500);

/// Servers, binaries, and ways to bring them into a state. Dropping it ends all of it.
#[derive(Debug)]
pub(crate) struct Ground {
    pub(crate) fleet: Fleet,
    servers: Servers,
    /// RabbitMQ, Redis or Redis Cluster, PostgreSQL.
    pub(crate) kinds: [Kind; 3],
    redis_url: String,
}

/// What the messages of a run look like.
#[derive(Debug, Clone, Copy, clap::Args, serde::Serialize)]
pub(crate) struct Load {
    /// Messages in the queue
    #[arg(long, default_value_t = 100_000)]
    pub(crate) messages: u64,
    /// Conversations that they belong to, in turn
    #[arg(long, default_value_t = 500)]
    pub(crate) conversations: u64,
    /// Size of a body in bytes
    #[arg(long, default_value_t = 515)]
    pub(crate) body_bytes: usize,
    /// The number of the first message
    #[arg(skip)]
    pub(crate) from: u64,
}

impl Ground {
    /// Builds the binaries, starts the servers, creates schema and topology.
    pub(crate) async fn open() -> Result<Self> {
        Self::with(Kind::Redis).await
    }

    /// [`Self::open`] with a Redis Cluster of three masters instead of a single Redis.
    pub(crate) async fn open_with_cluster() -> Result<Self> {
        Self::with(Kind::RedisCluster).await
    }

    async fn with(redis: Kind) -> Result<Self> {
        say::note("building the release binaries");
        cargo::build_release(&[&PRODUCTS[..], &["bench-peers"]].concat()).await?;
        let kinds = [Kind::RabbitMq, redis, Kind::PostgreSql];
        packages::ensure_servers(&Kind::ALL).await?;
        say::note("starting private servers, durable as in production");
        let servers = Servers::start_with(&kinds, Durability::Durable).await?;
        let redis_url = servers.redis().url();
        let fleet = Fleet::in_dir(place::profile_dir().with_file_name("release"))?
            .with("AMQP_URL", servers.get(Kind::RabbitMq).url())
            .with("REDIS_URL", &redis_url)
            .with("DATABASE_URL", servers.get(Kind::PostgreSql).url());
        let ground = Self { fleet, servers, kinds, redis_url };
        ground.command("verbatim", &["setup"]).await?;
        Ok(ground)
    }

    /// A server.
    pub(crate) fn server(&self, kind: Kind) -> &Server {
        self.servers.get(kind)
    }

    /// The CPU time that a server has used so far.
    pub(crate) fn cpu(&self, kind: Kind) -> Result<Duration> {
        let nodes = self.server(kind).nodes().iter();
        nodes.map(|node| cpu_of_tree(node.pid().context("the server has ended")?)).sum()
    }

    /// Runs SQL; the answer is unaligned text.
    pub(crate) async fn sql(&self, sql: &str) -> Result<String> {
        self.server(Kind::PostgreSql).psql("postgres", sql).await
    }

    /// Empties both stores. The queue is emptied by whoever drains it.
    pub(crate) async fn clear(&self) -> Result<()> {
        self.sql(
            "DO $$ BEGIN EXECUTE (
                 SELECT 'TRUNCATE ' || string_agg(quote_ident(tablename), ', ') FROM pg_tables
                 WHERE schemaname = 'public' AND tablename NOT IN ('hot_epoch', '_sqlx_migrations'));
             END $$",
        )
        .await?;
        self.redis(&["FLUSHALL"]).await.map(drop)
    }

    /// How many messages Redis holds.
    pub(crate) async fn hot_messages(&self) -> Result<u64> {
        const COUNT: &str = "local n = 0 for _, key in ipairs(redis.call('KEYS', 'messages:*')) do \
                             n = n + redis.call('ZCARD', key) end return n";
        let mut messages = 0;
        for answer in self.redis(&["EVAL", COUNT, "0"]).await? {
            messages += answer.parse::<u64>().with_context(|| format!("{answer:?} is no count"))?;
        }
        Ok(messages)
    }

    /// Runs a command on each Redis server.
    async fn redis(&self, command: &[&str]) -> Result<Vec<String>> {
        let mut answers = Vec::new();
        for url in self.redis_url.split(',') {
            let mut cli = Command::new("redis-cli");
            // The password through the environment: every user can read arguments.
            let (password, port) =
                password_and_port(url).context("a Redis URL without password")?;
            cli.env("REDISCLI_AUTH", password).args(["-e", "-p", port]).args(command);
            answers.push(finish(cli).await?.trim_end().to_owned());
        }
        Ok(answers)
    }

    /// Publishes a load and waits until every message is confirmed.
    pub(crate) async fn preload(&self, load: &Load) -> Result<()> {
        let mut command = self.fleet.command("bench-peers");
        command.args(["preload", "--count", &load.messages.to_string()]);
        command.args(["--from", &load.from.to_string()]).args(load.shape());
        finish(command).await.map(drop)
    }

    /// Closes the session of every conversation of a load.
    pub(crate) async fn close_all(&self, load: &Load) -> Result<()> {
        let mut command = self.fleet.command("bench-peers");
        command.args(["preload", "--close", "--count", &load.conversations.to_string()]);
        command.args(load.shape());
        finish(command).await.map(drop)
    }

    /// Waits until the servers have done what a load left them to do.
    pub(crate) async fn settle(&self) -> Result<()> {
        self.sql("CHECKPOINT").await?;
        let used = || -> Result<Duration> { self.kinds.iter().map(|kind| self.cpu(*kind)).sum() };
        until("quiet servers", QUIET_LIMIT, async || {
            let before = used().map_err(|error| error.to_string())?;
            sleep(QUIET).await;
            let busy = used().map_err(|error| error.to_string())?.saturating_sub(before);
            if busy < QUIET / 10 { Ok(()) } else { Err(format!("{busy:?} of CPU in {QUIET:?}")) }
        })
        .await?;
        Ok(())
    }

    /// Starts a peer in one of its roles.
    pub(crate) fn peer(&self, role: &str, arguments: impl FnOnce(&mut Command)) -> Result<Process> {
        let mut command = self.fleet.command("bench-peers");
        command.arg(role);
        arguments(&mut command);
        let log = self.fleet.dir().join(format!("{role}.log"));
        // What an earlier one of its kind said is not this one's.
        std::fs::remove_file(&log).ok();
        Ok(Process::spawn(role, &mut command, &log)?)
    }

    /// Runs one of the binaries to its end; what it printed.
    pub(crate) async fn command(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let mut command = self.fleet.command(program);
        command.args(arguments);
        finish(command).await
    }
}

/// Runs a command to its end; what it printed.
async fn finish(mut command: Command) -> Result<String> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let program = command.get_program().display().to_string();
    let arguments: Vec<_> =
        command.get_args().map(|it| it.to_string_lossy().into_owned()).collect();
    let what = format!("{program} {}", arguments.join(" "));
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{what}: {}\n{said}", output.status);
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// Password and port of `redis://:password@host:port/…`.
fn password_and_port(url: &str) -> Option<(&str, &str)> {
    let (credentials, address) = url.strip_prefix("redis://")?.split_once('@')?;
    let port = address.split('/').next()?.rsplit_once(':')?.1;
    Some((credentials.split_once(':')?.1, port))
}

impl Load {
    /// The arguments that tell a peer what the messages look like.
    pub(crate) fn shape(&self) -> [String; 4] {
        let Self { conversations, body_bytes, .. } = self;
        let (conversations, body_bytes) = (conversations.to_string(), body_bytes.to_string());
        ["--conversations".to_owned(), conversations, "--body-bytes".to_owned(), body_bytes]
    }
}

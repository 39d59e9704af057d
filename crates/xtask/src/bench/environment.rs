//! The environment of the benchmarks: private servers with production durability, release binaries, and
//! methods that reset the servers before a run.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use domain::fleet;
use serde_json::Value;
use testkit::fleet::Fleet;
use testkit::place;
use testkit::process::Process;
use testkit::servers::{Durability, Kind, Server, Servers};
use testkit::wait::until;
use tokio::time::sleep;
use uuid::Uuid;

use super::usage::cpu_of_tree;
use crate::{cargo, packages, say};

/// Timeout for the servers to finish background work after a load (segments, checkpoints).
const IDLE_LIMIT: Duration = Duration::from_secs(60);
/// Servers are idle if they use less than a tenth of a core for this long.
const IDLE: Duration = Duration::from_millis(500);

/// Servers and binaries. Dropping it ends all of them.
#[derive(Debug)]
pub(crate) struct Environment {
    pub(crate) fleet: Fleet,
    servers: Servers,
    /// RabbitMQ, Redis or Redis Cluster, PostgreSQL.
    pub(crate) kinds: [Kind; 3],
    redis_url: String,
}

/// The messages of a run.
#[derive(Debug, Clone, Copy, clap::Args, serde::Serialize)]
pub(crate) struct Load {
    /// Number of messages in the queue
    #[arg(long, default_value_t = 100_000)]
    pub(crate) messages: u64,
    /// Number of conversations that the messages are distributed over
    #[arg(long, default_value_t = 500)]
    pub(crate) conversations: u64,
    /// Size of a body in bytes
    #[arg(long, default_value_t = 515)]
    pub(crate) body_bytes: usize,
    /// The number of the first message
    #[arg(skip)]
    pub(crate) from: u64,
    /// The messages of each action
    #[arg(skip = 1_u64)]
    pub(crate) batch: u64,
}

/// Messages of one kind, for one queue.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fill {
    pub(crate) count: u64,
    pub(crate) body_bytes: u64,
    /// The content is an array of zeros instead of a text.
    pub(crate) array: bool,
    pub(crate) header_bytes: usize,
}

impl Environment {
    /// Builds the binaries, starts the servers, and creates schema and topology.
    pub(crate) async fn open() -> Result<Self> {
        Self::with(Kind::Redis).await
    }

    /// [`Self::open`] with a Redis Cluster of three masters instead of a single Redis.
    pub(crate) async fn open_with_cluster() -> Result<Self> {
        Self::with(Kind::RedisCluster).await
    }

    /// [`Self::open`], with the roles of the API.
    pub(crate) async fn open_with_api() -> Result<Self> {
        let environment = Self::open().await?;
        let url = environment.server(Kind::PostgreSql).url();
        let (_, address) = url.rsplit_once('@').context("the PostgreSQL URL has no user")?;
        let secret = format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
        let fleet = environment
            .fleet
            .with("API_SECRET", secret)
            .with("API_DATABASE_URL", format!("postgres://verbatim_api:private@{address}"));
        let environment = Self { fleet, ..environment };
        environment.command("verbatim", &["setup"]).await?;
        Ok(environment)
    }

    async fn with(redis: Kind) -> Result<Self> {
        say::note("building the release binaries");
        let products = fleet::processes().into_iter().map(fleet::Process::name);
        cargo::build_release(products.chain(["bench-peers"])).await?;
        let kinds = [Kind::RabbitMq, redis, Kind::PostgreSql];
        packages::ensure_servers(&Kind::ALL).await?;
        say::note("starting private servers with production durability");
        let servers = Servers::start_with(&kinds, Durability::Durable).await?;
        let redis_url = servers.redis().url();
        let fleet = Fleet::in_dir(place::profile_dir().with_file_name("release"))?
            .with("AMQP_URL", servers.get(Kind::RabbitMq).url())
            .with("REDIS_URL", &redis_url)
            .with("DATABASE_URL", servers.get(Kind::PostgreSql).url());
        let environment = Self { fleet, servers, kinds, redis_url };
        environment.command("verbatim", &["setup"]).await?;
        Ok(environment)
    }

    /// A server.
    pub(crate) fn server(&self, kind: Kind) -> &Server {
        self.servers.get(kind)
    }

    /// The CPU time that a server has used so far.
    pub(crate) fn cpu(&self, kind: Kind) -> Result<Duration> {
        let nodes = self.server(kind).nodes().iter();
        nodes.map(|node| cpu_of_tree(node.pid().context("the server is not running")?)).sum()
    }

    /// Runs SQL; returns unaligned text.
    pub(crate) async fn sql(&self, sql: &str) -> Result<String> {
        self.server(Kind::PostgreSql).psql("postgres", sql).await
    }

    /// Deletes all data in PostgreSQL and Redis, but for API keys and the audit log. The queue is empty after a drain.
    pub(crate) async fn clear(&self) -> Result<()> {
        self.sql(
            "DO $$ BEGIN EXECUTE (
                 SELECT 'TRUNCATE ' || string_agg(quote_ident(tablename), ', ') FROM pg_tables
                 WHERE schemaname = 'public' AND tablename NOT IN ('hot_epoch', '_sqlx_migrations')
                   AND tablename NOT LIKE 'api\\_%' AND tablename NOT LIKE 'audit\\_%');
             END $$",
        )
        .await?;
        self.redis(&["FLUSHALL"]).await.map(drop)
    }

    /// The number of messages in Redis.
    pub(crate) async fn hot_messages(&self) -> Result<u64> {
        const COUNT: &str = "local n = 0 for _, key in ipairs(redis.call('KEYS', 'messages:*')) do \
                             n = n + redis.call('ZCARD', key) end return n";
        let mut messages = 0;
        for reply in self.redis(&["EVAL", COUNT, "0"]).await? {
            messages +=
                reply.parse::<u64>().with_context(|| format!("{reply:?} is not a count"))?;
        }
        Ok(messages)
    }

    /// Runs a command on each Redis server.
    async fn redis(&self, command: &[&str]) -> Result<Vec<String>> {
        let mut replies = Vec::new();
        for url in self.redis_url.split(',') {
            let mut cli = Command::new("redis-cli");
            // The password is passed in the environment: every user can read arguments.
            let (password, port) =
                password_and_port(url).context("the Redis URL has no password")?;
            cli.env("REDISCLI_AUTH", password).args(["-e", "-p", port]).args(command);
            replies.push(finish(cli).await?.trim_end().to_owned());
        }
        Ok(replies)
    }

    /// Publishes a load and waits until every message is confirmed.
    pub(crate) async fn preload(&self, load: &Load) -> Result<()> {
        let mut command = self.fleet.command("bench-peers");
        command.args(["preload", "--count", &load.messages.to_string()]);
        command.args(["--from", &load.from.to_string()]).args(load.shape());
        finish(command).await.map(drop)
    }

    /// Publishes messages to one queue, past the exchanges, and waits until every one is confirmed. Their bodies name
    /// this action; `from` is the number of the first.
    pub(crate) async fn fill(
        &self,
        queue: &str,
        action: &str,
        from: u64,
        fill: Fill,
    ) -> Result<()> {
        let mut command = self.fleet.command("bench-peers");
        command.args(["fill", "--queue", queue, "--action-type", action]);
        command.args(["--count", &fill.count.to_string(), "--from", &from.to_string()]);
        command.args(["--body-bytes", &fill.body_bytes.to_string()]);
        command.args(["--header-bytes", &fill.header_bytes.to_string()]);
        command.args(fill.array.then_some("--array"));
        finish(command).await.map(drop)
    }

    /// Deletes all messages in RabbitMQ.
    pub(crate) async fn purge(&self) -> Result<()> {
        let management = self.server(Kind::RabbitMq).management();
        let queues = management.get("/api/queues/%2F?disable_stats=true").await?;
        // An exclusive queue, such as that of the replies of the API, belongs to its connection.
        let shared =
            |queue: &&Value| queue["exclusive"] != true && queue["owner_pid_details"].is_null();
        for queue in queues.as_array().into_iter().flatten().filter(shared) {
            let name = queue["name"].as_str().context("a queue without a name")?;
            let path = format!("/api/queues/%2F/{name}/contents");
            management.request("DELETE", &path, "").await?;
        }
        Ok(())
    }

    /// Publishes the end of the session of every conversation of a load.
    pub(crate) async fn close_all(&self, load: &Load) -> Result<()> {
        let mut command = self.fleet.command("bench-peers");
        command.args(["preload", "--close", "--count", &load.conversations.to_string()]);
        command.args(load.shape());
        finish(command).await.map(drop)
    }

    /// Waits until the servers have finished the background work of a load.
    pub(crate) async fn settle(&self) -> Result<()> {
        self.sql("CHECKPOINT").await?;
        let used = || -> Result<Duration> { self.kinds.iter().map(|kind| self.cpu(*kind)).sum() };
        until("idle servers", IDLE_LIMIT, async || {
            let before = used().map_err(|error| error.to_string())?;
            sleep(IDLE).await;
            let busy = used().map_err(|error| error.to_string())?.saturating_sub(before);
            if busy < IDLE / 10 { Ok(()) } else { Err(format!("{busy:?} of CPU in {IDLE:?}")) }
        })
        .await?;
        Ok(())
    }

    /// Starts `bench-peers` in one of its roles.
    pub(crate) fn peer(&self, role: &str, arguments: impl FnOnce(&mut Command)) -> Result<Process> {
        let mut command = self.fleet.command("bench-peers");
        command.arg(role);
        arguments(&mut command);
        let log = self.fleet.dir().join(format!("{role}.log"));
        // An earlier process of this role has written to the same file.
        std::fs::remove_file(&log).ok();
        Ok(Process::spawn(role, &mut command, &log)?)
    }

    /// Runs one of the binaries to its end; returns its output.
    pub(crate) async fn command(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let mut command = self.fleet.command(program);
        command.args(arguments);
        finish(command).await
    }
}

/// Runs a command to its end; returns its standard output.
async fn finish(mut command: Command) -> Result<String> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let program = command.get_program().display().to_string();
    let arguments: Vec<_> =
        command.get_args().map(|it| it.to_string_lossy().into_owned()).collect();
    let what = format!("{program} {}", arguments.join(" "));
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{what}: {}\n{stderr}", output.status);
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
    /// The arguments for `bench-peers` that describe the messages.
    pub(crate) fn shape(&self) -> Vec<String> {
        let Self { conversations, batch, .. } = self;
        let values = [
            ("--conversations", conversations.to_string()),
            ("--body-bytes", self.body_bytes.to_string()),
            ("--batch", batch.to_string()),
        ];
        values.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect()
    }
}

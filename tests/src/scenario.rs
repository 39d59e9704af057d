//! One test's servers, prepared as `verbatim setup` does, and the processes that it starts on them.

use std::process::Output;

use broker::inspect::Inspector;
use broker::topology::WorkQueue;
use broker::{Endpoints, topology};
use testkit::TestEnv;
use testkit::environment::redis;
use testkit::fleet::{Fleet, Worker};
use testkit::management::Management;
use testkit::process::{Process, Signal};
use testkit::servers::{Kind, Server, Servers};
use testkit::wait::eventually;

use crate::reader::database;
use crate::{Agent, LIMIT, RabbitAdmin, TestReader};

/// The binary that saves messages.
pub const SAVER: &str = "message-save-worker";
/// The binary that follows sessions and archives conversations.
pub const MIGRATION: &str = "persistence-migration-worker";
/// The binary that computes statistics and keeps dead letters.
pub const STATISTICS: &str = "statistics-worker";

/// How a fleet of tests differs from one in production: by shorter waits.
const SHORT: [(&str, &str); 5] = [
    ("VERBATIM_CLOSE_GRACE", "500ms"),
    ("VERBATIM_CLOSE_INTERVAL", "100ms"),
    ("VERBATIM_STATISTICS_INTERVAL", "500ms"),
    ("VERBATIM_GAUGE_INTERVAL", "1s"),
    // A failed test shows the end of its workers' logs, to people.
    ("VERBATIM_LOG_FORMAT", "pretty"),
];

/// Servers of a test's own, and the processes of a fleet on them.
pub struct Scenario {
    /// RabbitMQ's URL.
    pub amqp_url: String,
    /// Redis's URL.
    pub redis_url: String,
    /// PostgreSQL's URL.
    pub database_url: String,
    fleet: Fleet,
    ground: Ground,
}

/// Whose the servers are.
enum Ground {
    /// RabbitMQ and PostgreSQL are shared with other tests, which see nothing of each other.
    Shared(Box<TestEnv>),
    /// Some of them are the test's alone, in place of those that it shares.
    Partly(Box<TestEnv>, Servers),
    /// They are the test's alone: it may kill them.
    Own(Servers),
}

impl Ground {
    /// A server that is the test's alone.
    fn own(&self, kinds: &[Kind]) -> Option<&Server> {
        match self {
            Self::Shared(_) => None,
            Self::Partly(_, servers) | Self::Own(servers) => {
                kinds.iter().find_map(|kind| servers.find(*kind))
            }
        }
    }

    /// What is shared; a test that shares nothing has everything for its own.
    fn shared(&self) -> &TestEnv {
        match self {
            Self::Shared(env) | Self::Partly(env, _) => env,
            Self::Own(_) => panic!("this test shares no server"),
        }
    }
}

const RABBITMQ: [Kind; 2] = [Kind::RabbitMq, Kind::RabbitMqCluster];
const REDIS: [Kind; 2] = [Kind::Redis, Kind::RedisCluster];
const POSTGRESQL: [Kind; 1] = [Kind::PostgreSql];

impl Scenario {
    /// Servers with schema and topology.
    ///
    /// # Panics
    /// When they cannot be had.
    pub async fn new() -> Self {
        let scenario = Self::unprepared().await;
        tokio::join!(scenario.migrate(), scenario.declare());
        scenario
    }

    /// [`Self::new`] on servers that nobody else uses. RabbitMQ takes some seconds to start.
    ///
    /// # Panics
    /// When they cannot be had.
    pub async fn on_own_servers() -> Self {
        let kinds = [Kind::RabbitMq, redis(), Kind::PostgreSql];
        let (servers, fleet) = tokio::join!(Servers::start(&kinds), Fleet::new());
        let servers = servers.expect("servers");
        let urls = kinds.map(|kind| servers.get(kind).url());
        let scenario = Self::on(urls, fleet, Ground::Own(servers));
        tokio::join!(scenario.migrate(), scenario.declare());
        scenario
    }

    /// [`Self::new`] with processes that end where their environment says (crate `crash-points`).
    ///
    /// # Panics
    /// When they cannot be had.
    pub async fn armed() -> Self {
        let (env, fleet) = tokio::join!(TestEnv::new(), Fleet::armed());
        let urls = [env.amqp_url.clone(), env.redis_url.clone(), env.database_url.clone()];
        let scenario = Self::on(urls, fleet, Ground::Shared(Box::new(env)));
        tokio::join!(scenario.migrate(), scenario.declare());
        scenario
    }

    /// [`Self::new`] with servers of the test's own in place of those that it would share.
    ///
    /// # Panics
    /// When the others cannot be had.
    pub async fn with_own(servers: Servers) -> Self {
        let (env, fleet) = tokio::join!(TestEnv::new(), Fleet::new());
        let url = |kinds: &[Kind], shared: &String| {
            let own = kinds.iter().find_map(|kind| servers.find(*kind));
            own.map_or_else(|| shared.clone(), Server::url)
        };
        let urls = [
            url(&RABBITMQ, &env.amqp_url),
            url(&REDIS, &env.redis_url),
            url(&POSTGRESQL, &env.database_url),
        ];
        let scenario = Self::on(urls, fleet, Ground::Partly(Box::new(env), servers));
        tokio::join!(scenario.migrate(), scenario.declare());
        scenario
    }

    /// Empty servers: no schema, no queue.
    ///
    /// # Panics
    /// When they cannot be had.
    pub async fn unprepared() -> Self {
        let (env, fleet) = tokio::join!(TestEnv::new(), Fleet::new());
        let urls = [env.amqp_url.clone(), env.redis_url.clone(), env.database_url.clone()];
        Self::on(urls, fleet, Ground::Shared(Box::new(env)))
    }

    fn on(urls: [String; 3], fleet: Fleet, ground: Ground) -> Self {
        let [amqp_url, redis_url, database_url] = urls;
        let settings = [
            ("AMQP_URL", amqp_url.as_str()),
            ("REDIS_URL", &redis_url),
            ("DATABASE_URL", &database_url),
        ];
        let settings = settings.into_iter().chain(SHORT);
        let fleet = settings.fold(fleet, |fleet, (name, value)| fleet.with(name, value));
        Self { amqp_url, redis_url, database_url, fleet, ground }
    }

    /// Its Redis, to be stopped, killed and restarted.
    #[must_use]
    pub fn redis(&self) -> &Server {
        self.ground.own(&REDIS).unwrap_or_else(|| self.ground.shared().redis())
    }

    /// One of its own servers, to be killed; the Redis, whatever it is.
    ///
    /// # Panics
    /// When others use it, too.
    #[must_use]
    pub fn server(&self, kind: Kind) -> &Server {
        match self.ground.own(&[kind]) {
            Some(own) => own,
            None if kind == Kind::Redis => self.redis(),
            None => panic!("{kind} is not this test's to break"),
        }
    }

    /// Makes the schema.
    ///
    /// # Panics
    /// When it cannot be made.
    pub async fn migrate(&self) {
        database(&self.database_url).migrate().await.expect("the schema");
    }

    /// Declares exchanges, queues and bindings.
    ///
    /// # Panics
    /// When they cannot be declared.
    pub async fn declare(&self) {
        let endpoints = Endpoints::parse(&self.amqp_url, "test").expect("RabbitMQ's URL");
        topology::declare(&endpoints).await.expect("the topology");
    }

    /// Starts a worker and waits until it is ready.
    ///
    /// # Panics
    /// When it does not become ready.
    pub async fn start(&self, program: &str) -> Worker {
        self.start_with(program, &[]).await
    }

    /// [`Self::start`] with settings that win over the scenario's.
    ///
    /// # Panics
    /// As [`Self::start`].
    pub async fn start_with(&self, program: &str, settings: &[(&str, &str)]) -> Worker {
        let worker = self.launch(program, settings);
        worker.ready(LIMIT).await.expect("a worker that becomes ready");
        worker
    }

    /// Starts a worker and waits for nothing.
    ///
    /// # Panics
    /// When there is no such program.
    #[must_use]
    pub fn launch(&self, program: &str, settings: &[(&str, &str)]) -> Worker {
        self.fleet.start_with(program, settings).expect("a worker that starts")
    }

    /// Starts one of the peers that the benchmarks compare the fleet with, in a role of its.
    ///
    /// # Panics
    /// When there is no such program.
    #[must_use]
    pub fn peer(&self, arguments: &[&str]) -> Process {
        let mut command = self.fleet.command("bench-peers");
        let log = self.fleet.dir().join(format!("{}.log", arguments[0]));
        let process = Process::spawn(arguments[0], command.args(arguments), &log);
        process.expect("a peer that starts")
    }

    /// Runs the `verbatim` command against these servers, as an operator does.
    ///
    /// # Panics
    /// When it cannot be started.
    pub async fn verbatim(&self, arguments: &[&str]) -> Output {
        self.verbatim_with(arguments, &[]).await
    }

    /// [`Self::verbatim`] with more variables.
    ///
    /// # Panics
    /// As [`Self::verbatim`].
    pub async fn verbatim_with(&self, arguments: &[&str], settings: &[(&str, &str)]) -> Output {
        let mut command = self.fleet.command("verbatim");
        command.args(arguments).envs(settings.iter().copied());
        let output = tokio::task::spawn_blocking(move || command.output()).await;
        output.expect("it does not panic").expect("the command")
    }

    /// An agent that publishes here. Belongs to the runtime of the test that makes it.
    #[must_use]
    pub fn agent(&self) -> Agent {
        Agent::of(&self.amqp_url)
    }

    /// A reader of both stores. Belongs to the runtime of the test that makes it.
    #[must_use]
    pub fn reader(&self) -> TestReader {
        TestReader::of(&self.database_url, &self.redis_url)
    }

    /// RabbitMQ as seen by others than the fleet.
    #[must_use]
    pub fn rabbit(&self) -> RabbitAdmin {
        let (management, host): (Management, &str) = match self.ground.own(&RABBITMQ) {
            Some(own) => (own.management(), "%2f"),
            None => (self.ground.shared().management().clone(), &self.ground.shared().name),
        };
        RabbitAdmin::of(management, host)
    }

    /// The value of an SQL expression.
    ///
    /// # Panics
    /// When the statement fails.
    pub async fn sql(&self, statement: &str) -> String {
        self.psql(statement).await.unwrap_or_else(|error| panic!("{statement}: {error}"))
    }

    async fn psql(&self, statement: &str) -> Result<String, String> {
        let answer = match self.ground.own(&POSTGRESQL) {
            Some(own) => own.psql("postgres", statement).await,
            None => self.ground.shared().psql(statement).await,
        };
        answer.map_err(|error| format!("{error:#}"))
    }

    /// Waits until a query gives a value. PostgreSQL itself does the waiting: a process for each
    /// look would keep a core busy.
    ///
    /// # Panics
    /// When it does not within [`LIMIT`]; with the last value seen.
    pub async fn until_sql(&self, query: &str, wanted: &str) {
        let limit = LIMIT.as_secs();
        let wait = format!(
            "DO $wait$
             DECLARE seen text; stop timestamptz := clock_timestamp() + interval '{limit} s';
             BEGIN
                 LOOP
                     EXECUTE $query${query}$query$ INTO seen;
                     EXIT WHEN seen = $wanted${wanted}$wanted$;
                     IF clock_timestamp() > stop THEN
                         RAISE EXCEPTION 'waited {limit} s; last seen: %', seen;
                     END IF;
                     PERFORM pg_sleep(0.02);
                 END LOOP;
             END $wait$"
        );
        if let Err(error) = self.psql(&wait).await {
            panic!("{query} should become {wanted}: {error}");
        }
    }

    /// What is ready in queues, by name; those that are empty are left out. What was delivered and
    /// not acknowledged is ready again once no worker runs.
    ///
    /// # Panics
    /// When RabbitMQ does not answer.
    pub async fn queued(&self) -> Vec<(&'static str, u32)> {
        let endpoints = Endpoints::parse(&self.amqp_url, "test").expect("RabbitMQ's URL");
        let depths = Inspector::new(endpoints).depths().await.expect("depths");
        let ready =
            depths.into_iter().map(|(queue, depth)| (queue, depth.map_or(0, |it| it.ready)));
        ready.filter(|(_, ready)| *ready > 0).collect()
    }

    /// Stops workers, all at once, and makes sure that each drains to the end.
    ///
    /// # Panics
    /// When one does not end with exit code 0.
    pub async fn drain(&self, workers: impl IntoIterator<Item = Worker>) {
        let workers: Vec<Worker> = workers.into_iter().collect();
        for worker in &workers {
            worker.signal(Signal::Terminate).expect("SIGTERM");
        }
        for worker in workers {
            let status = worker.wait(LIMIT).await.expect("it ends");
            assert_eq!(status.code(), Some(0), "{}:\n{}", worker.name(), worker.log_tail());
        }
    }

    /// Waits until the workers have taken all that is queued, drains them, and makes sure that nothing
    /// came back. Hints for the statistics may stay: what is stale stands in PostgreSQL.
    ///
    /// # Panics
    /// When something stays queued.
    pub async fn rest(&self, workers: impl IntoIterator<Item = Worker>) {
        let left = async || {
            let mut queued = self.queued().await;
            queued.retain(|(queue, _)| *queue != WorkQueue::Statistics.name());
            if queued.is_empty() { Ok(()) } else { Err(format!("{queued:?}")) }
        };
        eventually("empty queues", LIMIT, left).await;
        self.drain(workers).await;
        assert_eq!(left().await, Ok(()), "what was taken is acknowledged");
    }
}

//! The servers of one test, set up as by `verbatim setup`, and the processes started on them.

use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use broker::Publication;
use broker::inspect::Inspector;
use broker::topology::WorkQueue;
use domain::fleet;
use fixtures::{LIMIT, database, declared, endpoints};
use serde_json::{Value, json};
use testkit::TestEnv;
use testkit::environment::redis;
use testkit::fleet::{Fleet, Worker};
use testkit::management::Management;
use testkit::process::{Process, Signal};
use testkit::servers::{ALLOW_FSYNC_OFF, Kind, Server, Servers};
use testkit::wait::eventually;

use crate::{Agent, RabbitAdmin, TestReader};

/// The worker that saves messages.
pub const SAVER: &str = fleet::MESSAGE_SAVE_WORKER.name();
/// The worker that follows sessions and archives conversations.
pub const MIGRATION: &str = fleet::PERSISTENCE_MIGRATION_WORKER.name();
/// The worker that computes statistics.
pub const STATISTICS: &str = fleet::STATISTICS_WORKER.name();
/// The worker that stores dead letters, reroutes actions and counts queues.
pub const COLLECTOR: &str = fleet::DEAD_LETTER_WORKER.name();
/// The process that serves HTTP.
pub const API: &str = fleet::CONVERSATION_API.name();

/// The settings of all workers here: shorter intervals than in production.
const SHORT: [(&str, &str); 5] = [
    ("VERBATIM_CLOSE_GRACE", "500ms"),
    ("VERBATIM_CLOSE_INTERVAL", "100ms"),
    ("VERBATIM_STATISTICS_INTERVAL", "500ms"),
    ("VERBATIM_GAUGE_INTERVAL", "1s"),
    // A failed test prints the end of its workers' logs.
    ("VERBATIM_LOG_FORMAT", "pretty"),
];

/// The servers of a test, and the processes started on them.
pub struct Scenario {
    /// RabbitMQ's URL.
    pub amqp_url: String,
    /// Redis's URL.
    pub redis_url: String,
    /// PostgreSQL's URL.
    pub database_url: String,
    fleet: Fleet,
    /// The PostgreSQL that replaced the first one.
    promoted: Option<Server>,
    servers: TestServers,
}

/// Which servers are shared with other tests.
enum TestServers {
    /// RabbitMQ and PostgreSQL are shared with other tests, each in its own virtual host and database.
    Shared(Box<TestEnv>),
    /// Some are private to the test, in place of the shared ones.
    Partly(Box<TestEnv>, Servers),
    /// All are private: the test may kill them.
    Own(Servers),
}

impl TestServers {
    /// A private server of one of these kinds.
    fn own(&self, kinds: &[Kind]) -> Option<&Server> {
        match self {
            Self::Shared(_) => None,
            Self::Partly(_, servers) | Self::Own(servers) => {
                kinds.iter().find_map(|kind| servers.find(*kind))
            }
        }
    }

    /// The shared servers.
    ///
    /// # Panics
    /// When all servers are private.
    fn shared(&self) -> &TestEnv {
        match self {
            Self::Shared(env) | Self::Partly(env, _) => env,
            Self::Own(_) => panic!("all servers of this test are private"),
        }
    }
}

/// The first key of the advisory locks of [`Scenario::while_open`], an arbitrary number.
const GATE: i32 = 4_711;

const RABBITMQ: [Kind; 2] = [Kind::RabbitMq, Kind::RabbitMqCluster];
const REDIS: [Kind; 2] = [Kind::Redis, Kind::RedisCluster];
const POSTGRESQL: [Kind; 1] = [Kind::PostgreSql];

/// The product's programs; test builds that leave a guard out, if the variable [`failpoints::OFF`] names one.
async fn fleet() -> Fleet {
    if guard_off().is_some() { armed_fleet().await } else { Fleet::new().await }
}

async fn armed_fleet() -> Fleet {
    let fleet = Fleet::armed().await;
    match guard_off() {
        Some(guard) => fleet.with(failpoints::OFF, guard),
        None => fleet,
    }
}

#[expect(clippy::disallowed_methods, reason = "the test of all guards sets it for one test")]
fn guard_off() -> Option<String> {
    std::env::var(failpoints::OFF).ok()
}

impl Scenario {
    /// Servers with schema and topology.
    ///
    /// # Panics
    /// When they do not start.
    pub async fn new() -> Self {
        let scenario = Self::unprepared().await;
        tokio::join!(scenario.migrate(), scenario.declare());
        scenario
    }

    /// [`Self::new`] on private servers. RabbitMQ takes some seconds to start.
    ///
    /// # Panics
    /// When they do not start.
    pub async fn on_own_servers() -> Self {
        let kinds = [Kind::RabbitMq, redis(), Kind::PostgreSql];
        let (servers, fleet) = tokio::join!(Servers::start(&kinds), fleet());
        let servers = servers.expect("servers");
        let urls = kinds.map(|kind| servers.get(kind).url());
        let scenario = Self::on(urls, fleet, TestServers::Own(servers));
        tokio::join!(scenario.migrate(), scenario.declare());
        scenario
    }

    /// [`Self::new`] with test builds of the processes, which abort at the failpoint that their
    /// environment names (crate `failpoints`).
    ///
    /// # Panics
    /// When they do not start.
    pub async fn with_failpoints() -> Self {
        let (env, fleet) = tokio::join!(TestEnv::new(), armed_fleet());
        let urls = [env.amqp_url.clone(), env.redis_url.clone(), env.database_url.clone()];
        let scenario = Self::on(urls, fleet, TestServers::Shared(Box::new(env)));
        tokio::join!(scenario.migrate(), scenario.declare());
        scenario
    }

    /// [`Self::new`] with these private servers in place of the shared ones.
    ///
    /// # Panics
    /// When the others do not start.
    pub async fn with_own(servers: Servers) -> Self {
        let (env, fleet) = tokio::join!(TestEnv::new(), fleet());
        let url = |kinds: &[Kind], shared: &String| {
            let own = kinds.iter().find_map(|kind| servers.find(*kind));
            own.map_or_else(|| shared.clone(), Server::url)
        };
        let urls = [
            url(&RABBITMQ, &env.amqp_url),
            url(&REDIS, &env.redis_url),
            url(&POSTGRESQL, &env.database_url),
        ];
        let scenario = Self::on(urls, fleet, TestServers::Partly(Box::new(env), servers));
        tokio::join!(scenario.migrate(), scenario.declare());
        scenario
    }

    /// Servers without schema, exchanges and queues, for the programs in this folder.
    ///
    /// # Panics
    /// When they do not start.
    pub async fn of_programs(programs: PathBuf) -> Self {
        let env = TestEnv::new().await;
        let fleet = Fleet::in_dir(programs).expect("a folder for the logs");
        let urls = [env.amqp_url.clone(), env.redis_url.clone(), env.database_url.clone()];
        Self::on(urls, fleet, TestServers::Shared(Box::new(env)))
    }

    /// Servers without schema, exchanges and queues.
    ///
    /// # Panics
    /// When they do not start.
    pub async fn unprepared() -> Self {
        let (env, fleet) = tokio::join!(TestEnv::new(), fleet());
        let urls = [env.amqp_url.clone(), env.redis_url.clone(), env.database_url.clone()];
        Self::on(urls, fleet, TestServers::Shared(Box::new(env)))
    }

    fn on(urls: [String; 3], fleet: Fleet, servers: TestServers) -> Self {
        let [amqp_url, redis_url, database_url] = urls;
        let settings = [
            ("AMQP_URL", amqp_url.as_str()),
            ("REDIS_URL", &redis_url),
            ("DATABASE_URL", &database_url),
        ];
        let settings = settings.into_iter().chain([ALLOW_FSYNC_OFF]).chain(SHORT);
        let fleet = settings.fold(fleet, |fleet, (name, value)| fleet.with(name, value));
        Self { amqp_url, redis_url, database_url, fleet, promoted: None, servers }
    }

    /// The Redis of this test, which may be stopped, killed and restarted.
    #[must_use]
    pub fn redis(&self) -> &Server {
        self.servers.own(&REDIS).unwrap_or_else(|| self.servers.shared().redis())
    }

    /// A private server, which may be killed. Redis is always private.
    ///
    /// # Panics
    /// When the server is shared.
    #[must_use]
    pub fn server(&self, kind: Kind) -> &Server {
        match self.servers.own(&[kind]) {
            Some(own) => own,
            None if kind == Kind::Redis => self.redis(),
            None => panic!("{kind} is shared with other tests"),
        }
    }

    /// From now on the statements of the test run on this PostgreSQL, a promoted standby of the private one.
    pub fn promoted(&mut self, standby: Server) {
        self.promoted = Some(standby);
    }

    /// A directory for files of the test, with the logs of its processes.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.fleet.dir()
    }

    /// Applies the schema migrations.
    ///
    /// # Panics
    /// When one fails.
    pub async fn migrate(&self) {
        database(&self.database_url).migrate(|| {}).await.expect("the schema");
    }

    /// Declares exchanges, queues and bindings.
    ///
    /// # Panics
    /// When they cannot be declared within [`LIMIT`].
    pub async fn declare(&self) {
        declared(&self.amqp_url).await;
    }

    /// Starts a worker and waits until it is ready.
    ///
    /// # Panics
    /// When it does not become ready.
    pub async fn start(&self, program: &str) -> Worker {
        self.start_with(program, &[]).await
    }

    /// [`Self::start`] with settings that override the scenario's.
    ///
    /// # Panics
    /// As [`Self::start`].
    pub async fn start_with(&self, program: &str, settings: &[(&str, &str)]) -> Worker {
        let worker = self.launch(program, settings);
        worker.ready(LIMIT).await.expect("a worker that becomes ready");
        worker
    }

    /// Starts a worker and does not wait until it is ready.
    ///
    /// # Panics
    /// When there is no such program.
    #[must_use]
    pub fn launch(&self, program: &str, settings: &[(&str, &str)]) -> Worker {
        self.fleet.start_with(program, settings).expect("a worker that starts")
    }

    /// Starts a baseline of the benchmarks (`bench-peers`), with the role as first argument.
    ///
    /// # Panics
    /// When there is no such program.
    #[must_use]
    pub fn peer(&self, arguments: &[&str]) -> Process {
        let mut command = self.fleet.command("bench-peers");
        let log = self.fleet.dir().join(format!("{}.log", arguments[0]));
        let process = Process::spawn(arguments[0], command.args(arguments), &log);
        process.expect("a baseline that starts")
    }

    /// Runs the `verbatim` command against these servers, as an operator does.
    ///
    /// # Panics
    /// When it cannot be started.
    pub async fn verbatim(&self, arguments: &[&str]) -> Output {
        self.verbatim_with(arguments, &[]).await
    }

    /// [`Self::verbatim`] with more environment variables.
    ///
    /// # Panics
    /// As [`Self::verbatim`].
    pub async fn verbatim_with(&self, arguments: &[&str], settings: &[(&str, &str)]) -> Output {
        let mut command = self.fleet.command("verbatim");
        command.args(arguments).envs(settings.iter().copied());
        let output = tokio::task::spawn_blocking(move || command.output()).await;
        output.expect("no panic").expect("a command that starts")
    }

    /// Starts the `verbatim` command and does not wait for its end.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn launch_verbatim(&self, arguments: &[&str], settings: &[(&str, &str)]) -> Process {
        let mut command = self.fleet.command("verbatim");
        command.args(arguments).envs(settings.iter().copied());
        let log = self.fleet.dir().join("verbatim.log");
        Process::spawn("verbatim", &mut command, &log).expect("a command that starts")
    }

    /// The URL of RabbitMQ for a user of [`RabbitAdmin::agent_user`].
    ///
    /// # Panics
    /// When the URL of the server's own user has another form.
    #[must_use]
    pub fn amqp_url_of(&self, user: &str) -> String {
        let (_, place) = self.amqp_url.split_once('@').expect("a URL with a user");
        format!("amqp://{user}:{user}@{place}")
    }

    /// An agent that publishes here. Use it only in the tokio runtime of the test that makes it.
    #[must_use]
    pub fn agent(&self) -> Agent {
        Agent::of(&self.amqp_url)
    }

    /// A reader of both stores. Use it only in the tokio runtime of the test that makes it.
    #[must_use]
    pub fn reader(&self) -> TestReader {
        TestReader::of(&self.database_url, &self.redis_url)
    }

    /// The management API of this test's RabbitMQ.
    #[must_use]
    pub fn rabbit(&self) -> RabbitAdmin {
        let (management, host): (Management, &str) = match self.servers.own(&RABBITMQ) {
            Some(own) => (own.management(), "%2f"),
            None => (self.servers.shared().management().clone(), &self.servers.shared().name),
        };
        RabbitAdmin::of(management, host)
    }

    /// Publishes an action, and returns the reply to it.
    ///
    /// # Panics
    /// When RabbitMQ refuses, or no reply arrives within [`LIMIT`].
    pub async fn reply_to(&self, action: &Value) -> Value {
        let rabbit = self.rabbit();
        rabbit.queue("replies").await;
        let routing_key = action["action_type"].as_str().expect("an action_type");
        rabbit.publish(routing_key, &json!({"reply_to": "replies"}), &action.to_string()).await;
        rabbit.bodies("replies", 1).await.remove(0)
    }

    /// Runs an SQL statement with `psql` and returns its output.
    ///
    /// # Panics
    /// When the statement fails.
    pub async fn sql(&self, statement: &str) -> String {
        self.psql(statement).await.unwrap_or_else(|error| panic!("{statement}: {error}"))
    }

    /// Does `work` while a transaction is open that has run these statements, and then commits it.
    ///
    /// # Panics
    /// When the statements fail, or `work` takes longer than two minutes.
    pub async fn while_open<T>(&self, statements: &str, work: impl Future<Output = T>) -> T {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        self.sql("CREATE TABLE IF NOT EXISTS done_beside_a_transaction (number int)").await;
        let transaction = format!(
            "SET statement_timeout = '120s'; BEGIN; {statements};
             SELECT pg_advisory_xact_lock({GATE}, {number});
             DO $$ BEGIN
                 WHILE NOT EXISTS (SELECT FROM done_beside_a_transaction WHERE number = {number}) LOOP
                     PERFORM pg_sleep(0.02);
                 END LOOP;
             END $$;
             COMMIT"
        );
        let is_open = format!(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = {GATE} AND objid = {number}
             AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        );
        let work = async {
            self.until_sql(&is_open, "1").await;
            let done = work.await;
            self.sql(&format!("INSERT INTO done_beside_a_transaction VALUES ({number})")).await;
            done
        };
        tokio::join!(self.sql(&transaction), work).1
    }

    async fn psql(&self, statement: &str) -> Result<String, String> {
        let output = match self.promoted.as_ref().or_else(|| self.servers.own(&POSTGRESQL)) {
            Some(own) => own.psql("postgres", statement).await,
            None => self.servers.shared().psql(statement).await,
        };
        output.map_err(|error| format!("{error:#}"))
    }

    /// Has a dead-letter collector store these dead letters, and drains it.
    ///
    /// # Panics
    /// When it does not store them.
    pub async fn store_dead_letters(&self, dead_letters: &[Publication]) {
        let collector = self.start(COLLECTOR).await;
        self.agent().send(dead_letters.to_vec()).await;
        let stored = "SELECT count(*) FROM dead_letters";
        self.until_sql(stored, &dead_letters.len().to_string()).await;
        self.finish([collector]).await;
        // The events: tests of replays check that no other queue has messages.
        self.rabbit().take(WorkQueue::Statistics.name()).await;
    }

    /// Makes PostgreSQL refuse the messages with these comma-separated ids, with this SQLSTATE, while they
    /// are in the table `poisoned`.
    ///
    /// # Panics
    /// When PostgreSQL is unavailable.
    pub async fn poison(&self, sqlstate: &str, ids: &str) {
        let trigger = format!(
            "CREATE TABLE poisoned AS SELECT unnest('{{{ids}}}'::text[]) AS id;
             CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN
                 IF EXISTS (SELECT FROM poisoned WHERE id = NEW.id) THEN
                     RAISE EXCEPTION 'poisoned by the test' USING ERRCODE = '{sqlstate}';
                 END IF;
                 RETURN NEW;
             END $$;
             CREATE TRIGGER refuse BEFORE INSERT ON message_rows
                 FOR EACH ROW EXECUTE FUNCTION refuse()"
        );
        self.sql(&trigger).await;
    }

    /// Waits until a query returns a value. The loop runs in PostgreSQL: a `psql` process for each check
    /// would keep a core busy. Within a transaction PostgreSQL shows other sessions as they were at the first look
    /// (manual, 28.2.3 "Viewing Statistics"), so each look drops that.
    ///
    /// # Panics
    /// When it does not within [`LIMIT`]; the message has the last value.
    pub async fn until_sql(&self, query: &str, wanted: &str) {
        self.until_sql_within(LIMIT, query, wanted).await;
    }

    /// [`Self::until_sql`] with a limit of its own.
    ///
    /// # Panics
    /// When the query does not return the value within the limit; the message has the last value.
    pub async fn until_sql_within(&self, limit: Duration, query: &str, wanted: &str) {
        let limit = limit.as_secs();
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
                     PERFORM pg_sleep(0.02), pg_stat_clear_snapshot();
                 END LOOP;
             END $wait$"
        );
        if let Err(error) = self.psql(&wait).await {
            let queued = self.try_queued().await;
            panic!("{query} should become {wanted}: {error}; ready messages by queue: {queued:?}");
        }
    }

    /// The number of ready messages by queue, without empty queues. Unacknowledged deliveries are not
    /// counted: they are ready again once their consumers have ended.
    ///
    /// # Panics
    /// When RabbitMQ is unavailable.
    pub async fn queued(&self) -> Vec<(&'static str, u32)> {
        self.try_queued().await.expect("depths")
    }

    async fn try_queued(&self) -> Result<Vec<(&'static str, u32)>, broker::Error> {
        let depths = Inspector::new(endpoints(&self.amqp_url)).depths().await?;
        let ready =
            depths.into_iter().map(|(queue, depth)| (queue, depth.map_or(0, |it| it.ready)));
        Ok(ready.filter(|(_, ready)| *ready > 0).collect())
    }

    /// Sends SIGTERM to all these workers and waits until each has drained.
    ///
    /// # Panics
    /// When one does not exit with code 0.
    pub async fn drain(&self, workers: impl IntoIterator<Item = Worker>) {
        let workers: Vec<Worker> = workers.into_iter().collect();
        for worker in &workers {
            worker.signal(Signal::Terminate).expect("SIGTERM");
        }
        for worker in workers {
            let status = worker.wait(LIMIT).await.expect("a worker that exits");
            assert_eq!(status.code(), Some(0), "{}:\n{}", worker.name(), worker.log_tail());
        }
    }

    /// Waits until all queues are empty, drains the workers, and checks that nothing was requeued. Refresh
    /// triggers of the statistics may stay: PostgreSQL records which rows are stale.
    ///
    /// # Panics
    /// When a queue does not become or stay empty.
    pub async fn finish(&self, workers: impl IntoIterator<Item = Worker>) {
        let left = async || {
            let mut queued = self.queued().await;
            queued.retain(|(queue, _)| *queue != WorkQueue::Statistics.name());
            if queued.is_empty() { Ok(()) } else { Err(format!("{queued:?}")) }
        };
        eventually("empty queues", LIMIT, left).await;
        self.drain(workers).await;
        assert_eq!(left().await, Ok(()), "every delivery was acknowledged");
    }
}

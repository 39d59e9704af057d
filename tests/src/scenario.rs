//! One test's servers, prepared as `verbatim setup` does, and the processes that it starts on them.

use broker::inspect::Inspector;
use broker::{Endpoints, topology};
use testkit::TestEnv;
use testkit::fleet::{Fleet, Worker};

use crate::eyes::archive;
use crate::{Agent, Counts, Eyes, LIMIT, Side};

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
    /// The servers.
    pub env: TestEnv,
    fleet: Fleet,
}

impl Scenario {
    /// Servers with schema and topology.
    ///
    /// # Panics
    /// When they cannot be had.
    pub async fn new() -> Self {
        let scenario = Self::unprepared().await;
        let (schema, topology) = tokio::join!(scenario.migrate(), scenario.declare());
        let ((), ()) = (schema, topology);
        scenario
    }

    /// Empty servers: no schema, no queue.
    ///
    /// # Panics
    /// When they cannot be had.
    pub async fn unprepared() -> Self {
        let (env, fleet) = tokio::join!(TestEnv::new(), Fleet::new());
        let servers = [
            ("AMQP_URL", &env.amqp_url),
            ("REDIS_URL", &env.redis_url),
            ("DATABASE_URL", &env.database_url),
        ];
        let fleet = servers.into_iter().fold(fleet, |fleet, (name, url)| fleet.with(name, url));
        let fleet = SHORT.into_iter().fold(fleet, |fleet, (name, value)| fleet.with(name, value));
        Self { env, fleet }
    }

    /// Makes the schema.
    ///
    /// # Panics
    /// When it cannot be made.
    pub async fn migrate(&self) {
        archive(&self.env.database_url).migrate().await.expect("the schema");
    }

    /// Declares exchanges, queues and bindings.
    ///
    /// # Panics
    /// When they cannot be declared.
    pub async fn declare(&self) {
        let endpoints = Endpoints::parse(&self.env.amqp_url, "test").expect("RabbitMQ's URL");
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

    /// An agent that publishes here. Belongs to the runtime of the test that makes it.
    #[must_use]
    pub fn agent(&self) -> Agent {
        Agent::of(&self.env.amqp_url)
    }

    /// A reader of both stores. Belongs to the runtime of the test that makes it.
    #[must_use]
    pub fn eyes(&self) -> Eyes {
        Eyes::of(&self.env.database_url, &self.env.redis_url)
    }

    /// RabbitMQ as seen by others than the fleet.
    #[must_use]
    pub fn side(&self) -> Side<'_> {
        Side::of(&self.env)
    }

    /// The value of an SQL expression.
    ///
    /// # Panics
    /// When the statement fails.
    pub async fn sql(&self, statement: &str) -> String {
        self.env.psql(statement).await.unwrap_or_else(|error| panic!("{statement}: {error:#}"))
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
        if let Err(error) = self.env.psql(&wait).await {
            panic!("{query} should become {wanted}: {error:#}");
        }
    }

    /// What is ready in queues, by name; those that are empty are left out. What was delivered and
    /// not acknowledged is ready again once no worker runs.
    ///
    /// # Panics
    /// When RabbitMQ does not answer.
    pub async fn queued(&self) -> Vec<(&'static str, u32)> {
        let endpoints = Endpoints::parse(&self.env.amqp_url, "test").expect("RabbitMQ's URL");
        let depths = Inspector::new(endpoints).depths().await.expect("depths");
        let ready =
            depths.into_iter().map(|(queue, depth)| (queue, depth.map_or(0, |it| it.ready)));
        ready.filter(|(_, ready)| *ready > 0).collect()
    }

    /// Stops workers as a rollout does, and makes sure that each drains to the end.
    ///
    /// # Panics
    /// When one does not end with exit code 0.
    pub async fn drain(&self, workers: impl IntoIterator<Item = Worker>) {
        for worker in workers {
            let status = worker.stop(LIMIT).await.expect("it ends");
            assert_eq!(status.code(), Some(0), "{}:\n{}", worker.name(), worker.log_tail());
        }
    }

    /// Drains all workers and makes sure that no queue but those of `leftovers` holds anything.
    ///
    /// # Panics
    /// When something is queued.
    pub async fn rest(&self, workers: impl IntoIterator<Item = Worker>) {
        self.drain(workers).await;
        assert_eq!(self.queued().await, [], "nothing is left in any queue");
    }

    /// Waits until every ready message of a queue was taken.
    ///
    /// # Panics
    /// When RabbitMQ does not answer, or the count does not come.
    pub async fn settled(&self, worker: &Worker, queue: &str, deliveries: u32) -> Counts {
        let labels = [("queue", queue)];
        Counts::reach(worker, "verbatim_deliveries_total", &labels, f64::from(deliveries)).await
    }
}

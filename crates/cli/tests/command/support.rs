//! Runs the built binary with an environment of its own.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use conversation::{RandomSource, Saver, record_server};
use database::Database;
use domain::action::{Action, SaveMessage};
use domain::decode::{DEFAULT_MAX_BODY_BYTES, DecodeContext, decode};
use domain::envelope::Envelope;
use domain::failure::Done;
use domain::time::Timestamp;
use hot_store::{Address, HotStore};
use metrics::Metrics;
use serde_json::{Value, json};
use testkit::TestEnv;
use uuid::Uuid;

/// The exit code and output of a run.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// The command with the servers of a test, or with none. Its environment has nothing else.
#[derive(Debug, Clone, Default)]
pub(crate) struct Verbatim {
    variables: Vec<(String, String)>,
}

impl Verbatim {
    /// With the servers of a test.
    pub(crate) fn of(env: &TestEnv) -> Self {
        Self::default()
            .with("AMQP_URL", &env.amqp_url)
            .with("REDIS_URL", &env.redis_url)
            .with("DATABASE_URL", &env.database_url)
    }

    /// With one more variable.
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Runs it without input.
    pub(crate) async fn run(&self, arguments: &[&str]) -> Ran {
        self.run_on(arguments, b"").await
    }

    /// Runs it on some input.
    pub(crate) async fn run_on(&self, arguments: &[&str], input: &[u8]) -> Ran {
        let mut command = self.command(arguments);
        let input = input.to_vec();
        let output = tokio::task::spawn_blocking(move || {
            let mut child = command.spawn().unwrap();
            let mut stdin = child.stdin.take().unwrap();
            // A command that fails early does not read its input.
            stdin.write_all(&input).ok();
            drop(stdin);
            child.wait_with_output().unwrap()
        });
        Ran::of(output.await.unwrap())
    }

    /// Runs it, expects success, and reads what it printed as JSON.
    pub(crate) async fn json(&self, arguments: &[&str]) -> Value {
        let ran = self.run(&[arguments, &["--json"]].concat()).await;
        assert_eq!(ran.code, 0, "{ran:?}");
        ran.json()
    }

    /// The command, not yet started.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_verbatim"));
        command.args(arguments).env_clear();
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}

impl Ran {
    fn of(output: Output) -> Self {
        Self {
            code: output.status.code().expect("it was not killed"),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Its standard output, as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// Servers on which `verbatim setup` has run.
pub(crate) async fn prepared() -> (TestEnv, Verbatim) {
    let env = TestEnv::new().await;
    let verbatim = Verbatim::of(&env);
    let ran = verbatim.run(&["setup"]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    (env, verbatim)
}

pub(crate) fn database(env: &TestEnv) -> Database {
    Database::open(&database::Settings {
        url: env.database_url.clone(),
        application: "test".to_owned(),
        connections: 2,
        time_out: Duration::from_secs(10),
        lock_time_out: Duration::from_secs(2),
    })
    .unwrap()
}

/// The body of a message to save; `extra` adds or replaces fields.
pub(crate) fn body(session: &str, id: &str, extra: Value) -> Value {
    let mut body = json!({
        "action_type": "conversation.save_message", "tenant_id": "acme", "session_id": session,
        "message_id": id, "role": "user", "content": format!("content of {id}"),
        "timestamp": "2026-11-20T10:00:00Z",
    });
    if let (Value::Object(body), Value::Object(extra)) = (&mut body, extra) {
        body.extend(extra);
    }
    body
}

/// The host and process id under which [`save`] saves.
pub(crate) const SAVER: &str = "host-1:7";

/// Saves messages as a worker does.
pub(crate) async fn save(env: &TestEnv, bodies: &[Value]) {
    let database = database(env).saving_as("message-save-worker", SAVER.to_owned());
    let metrics = Metrics::new();
    let settings = hot_store::Settings::new(Address::parse(&env.redis_url).unwrap());
    let record = record_server(database.clone(), metrics.clone(), RandomSource::random());
    let hot = HotStore::open(settings, record);
    let saver = Saver::new(database, hot, metrics, RandomSource::random());
    let actions: Vec<SaveMessage> = bodies.iter().map(action).collect();
    for outcome in saver.save(&actions).await.unwrap() {
        assert_eq!(outcome, Ok(Done::Applied));
    }
}

fn action(body: &Value) -> SaveMessage {
    let context = DecodeContext {
        received_at: Timestamp::parse("2026-11-20T12:00:00Z").unwrap(),
        max_body_bytes: DEFAULT_MAX_BODY_BYTES,
        new_id: &Uuid::new_v4,
    };
    match decode(body.to_string().as_bytes(), &Envelope::default(), &context).unwrap() {
        Action::SaveMessage(save) => *save,
        other => panic!("not a message: {other:?}"),
    }
}

/// JSON lines of several values.
pub(crate) fn lines(values: &[Value]) -> Vec<u8> {
    values.iter().flat_map(|value| format!("{value}\n").into_bytes()).collect()
}

//! Runs the built binary with an environment of its own.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use fixtures::{Replica, action, applied, database, saving};
use serde_json::Value;
use testkit::TestEnv;
use testkit::servers::ALLOW_FSYNC_OFF;

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
            .with(ALLOW_FSYNC_OFF.0, ALLOW_FSYNC_OFF.1)
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

    /// Runs it on a line that is no action, with output pipes that nobody reads, and returns its exit code.
    pub(crate) async fn run_unread(&self, arguments: &[&str]) -> i32 {
        let mut command = self.command(arguments);
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        command.stdout(writer.try_clone().unwrap()).stderr(writer);
        let status = tokio::task::spawn_blocking(move || {
            let mut child = command.spawn().unwrap();
            child.stdin.take().unwrap().write_all(b"hello\n").ok();
            child.wait().unwrap()
        });
        status.await.unwrap().code().expect("it was not killed")
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

/// The host and process id under which [`save`] saves.
pub(crate) const SAVER: &str = "host-1:7";

/// Saves messages as a worker does.
pub(crate) async fn save(env: &TestEnv, bodies: &[Value]) {
    let database = database(&env.database_url).saving_as("message-save-worker", SAVER.to_owned());
    let messages: Vec<_> = bodies.iter().map(|body| saving(action(body))).collect();
    for outcome in Replica::on(database, &env.redis_url).save(&messages).await {
        assert_eq!(outcome, applied());
    }
}

/// JSON lines of several values.
pub(crate) fn lines(values: &[Value]) -> Vec<u8> {
    values.iter().flat_map(|value| format!("{value}\n").into_bytes()).collect()
}

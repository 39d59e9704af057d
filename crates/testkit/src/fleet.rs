//! The product's binaries as child processes, for whole-system tests, fault tests and the demo.
//!
//! A process gets a clean environment with the test's variables only, so that a developer's variables do not
//! affect tests. It listens on a free port of 127.0.0.1, which it writes to a file.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::sync::OnceCell;

use crate::guard::Guard;
use crate::http::{self, Response};
use crate::place;
use crate::process::{Process, Signal};
use crate::wait::until;

/// The environment variable that `cargo xtask test` sets once it has built every binary.
pub const BUILT: &str = "VERBATIM_FLEET_BUILT";

/// Timeout for a process to listen, which normally takes milliseconds.
const LISTEN_LIMIT: Duration = Duration::from_secs(20);

/// The variables that a process inherits.
const INHERITED: [&str; 5] = ["PATH", "HOME", "TMPDIR", "RUST_BACKTRACE", "LLVM_PROFILE_FILE"];

/// The variables for the address that a process listens on, and for the file that it writes it to.
const LISTEN: &str = "VERBATIM_LISTEN";
const LISTEN_FILE: &str = "VERBATIM_LISTEN_FILE";

/// A group of processes with a directory for their logs. Dropping it ends all of them.
#[derive(Debug)]
pub struct Fleet {
    guard: Guard,
    programs: PathBuf,
    environment: Vec<(OsString, OsString)>,
    started: AtomicUsize,
}

impl Fleet {
    /// An empty fleet. The first call in a process builds the binaries, unless `cargo xtask test` has.
    ///
    /// # Panics
    /// When the binaries cannot be built; with cargo's output.
    pub async fn new() -> Self {
        static ONCE: OnceCell<()> = OnceCell::const_new();
        let built = async {
            if std::env::var_os(BUILT).is_none() {
                ONCE.get_or_try_init(build).await?;
            }
            Self::of_built()
        };
        match built.await {
            Ok(fleet) => fleet,
            Err(error) => panic!("no fleet for this test: {error:#}"),
        }
    }

    /// An empty fleet of test builds, which crash at the failpoint that their environment names (crate
    /// `failpoints`).
    ///
    /// # Panics
    /// When the binaries cannot be built; with cargo's output.
    pub async fn armed() -> Self {
        static ONCE: OnceCell<()> = OnceCell::const_new();
        let built = async {
            if std::env::var_os(BUILT).is_none() {
                ONCE.get_or_try_init(build_armed).await?;
            }
            Self::in_dir(armed_dir())
        };
        match built.await {
            Ok(fleet) => fleet,
            Err(error) => panic!("no fleet for this test: {error:#}"),
        }
    }

    /// An empty fleet of binaries that are already built.
    ///
    /// # Errors
    /// When its directory cannot be created.
    pub fn of_built() -> Result<Self> {
        Self::in_dir(place::profile_dir())
    }

    /// An empty fleet of the binaries in a directory, such as those of another profile.
    ///
    /// # Errors
    /// When its directory cannot be created.
    pub fn in_dir(programs: PathBuf) -> Result<Self> {
        let guard = Guard::new(None).context("cannot create a directory for the fleet's logs")?;
        Ok(Self { guard, programs, environment: Vec::new(), started: AtomicUsize::new(0) })
    }

    /// Sets a variable for every process started later.
    #[must_use]
    pub fn with(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// The directory of its logs, which is removed with it.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.guard.dir()
    }

    /// The path of one of its binaries.
    #[must_use]
    pub fn program(&self, program: &str) -> PathBuf {
        self.programs.join(program)
    }

    /// A command for one of the product's binaries, in the fleet's environment.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = self.guard.mark().command(self.program(program));
        let inherited = INHERITED.iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
        command.env_clear().envs(inherited);
        self.guard.mark().put_on(&mut command);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Starts a binary in the fleet's environment.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&self, program: &str) -> Result<Worker> {
        self.start_with(program, &[])
    }

    /// Starts a binary with further variables, which override the fleet's.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_with(&self, program: &str, environment: &[(&str, &str)]) -> Result<Worker> {
        let number = self.started.fetch_add(1, Ordering::Relaxed) + 1;
        let name = format!("{program}-{number}");
        let listen_file = self.dir().join(format!("{name}.listen"));
        let mut command = self.command(program);
        command.env(LISTEN, "127.0.0.1:0").env(LISTEN_FILE, &listen_file);
        command.envs(environment.iter().copied());
        let log = self.dir().join(format!("{name}.log"));
        Ok(Worker { process: Process::spawn(name, &mut command, &log)?, listen_file })
    }
}

/// One running process of the product. Dropping it kills and reaps it.
#[derive(Debug)]
pub struct Worker {
    process: Process,
    listen_file: PathBuf,
}

impl Worker {
    /// Its name: the program and a number.
    #[must_use]
    pub fn name(&self) -> &str {
        self.process.name()
    }

    /// The address of its `/livez`, `/readyz` and `/metrics`; waits until it listens.
    ///
    /// # Errors
    /// When it ends, or does not listen in time; with the end of its log.
    pub async fn address(&self) -> Result<SocketAddr> {
        let address = until(format!("{} to listen", self.name()), LISTEN_LIMIT, async || {
            if let Some(status) = self.process.exited() {
                return Ok(Err(format!("{} ended: {status}", self.name())));
            }
            let text =
                std::fs::read_to_string(&self.listen_file).map_err(|error| error.to_string())?;
            text.trim().parse::<SocketAddr>().map(Ok).map_err(|error| format!("{text:?}: {error}"))
        })
        .await;
        match address {
            Ok(Ok(address)) => Ok(address),
            Ok(Err(ended)) => bail!("{ended}; the end of its log:\n{}", self.log_tail()),
            Err(timed_out) => bail!("{timed_out}; the end of its log:\n{}", self.log_tail()),
        }
    }

    /// Gets one of its pages, such as `/metrics`.
    ///
    /// # Errors
    /// When it does not listen or does not respond. Every status counts as a response.
    pub async fn get(&self, path: &str) -> Result<Response> {
        http::get(self.address().await?, path).await
    }

    /// Waits until `/readyz` has status 200.
    ///
    /// # Errors
    /// When it has not within `limit`; with the last response, and the end of its log.
    pub async fn ready(&self, limit: Duration) -> Result<()> {
        let address = self.address().await?;
        let ready =
            until(format!("{} to be ready", self.name()), limit, async || {
                match http::get(address, "/readyz").await {
                    Ok(Response { status: 200, .. }) => Ok(()),
                    Ok(Response { status, body, .. }) => Err(format!("status {status}: {body}")),
                    Err(error) => Err(format!("{error:#}")),
                }
            });
        ready.await.with_context(|| format!("the end of its log:\n{}", self.log_tail()))
    }

    /// Kills it (`kill -9`) and reaps it.
    pub fn kill(&self) {
        self.process.kill();
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When the signal cannot be sent.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(self.process.signal(signal)?)
    }

    /// Sends SIGTERM, and waits until it has drained and ended.
    ///
    /// # Errors
    /// When it still runs after `limit`; with the end of its log.
    pub async fn stop(&self, limit: Duration) -> Result<ExitStatus> {
        self.signal(Signal::Terminate)?;
        self.wait(limit).await
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// When it still runs after `limit`; with the end of its log.
    pub async fn wait(&self, limit: Duration) -> Result<ExitStatus> {
        self.process.wait(limit).await.with_context(|| self.log_tail())
    }

    /// Its exit status, if it has ended.
    #[must_use]
    pub fn exited(&self) -> Option<ExitStatus> {
        self.process.exited()
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Its complete log.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// The last lines of its log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        self.process.log_tail()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // The logs are removed with the fleet: show why the test failed.
        if std::thread::panicking() {
            eprintln!("--- the end of {}'s log:\n{}", self.name(), self.log_tail());
        }
    }
}

/// The directory of the test builds.
fn armed_dir() -> PathBuf {
    place::profile_dir().join("armed")
}

/// Builds the workers with failpoints, copies them to their own directory, and rebuilds the ordinary ones.
/// Both builds share their compiled dependencies.
///
/// # Errors
/// When they cannot be built; with cargo's output.
pub async fn build_armed() -> Result<()> {
    let _building = building().await?;
    build_with(&["--features", "failpoints/armed"]).await?;
    let (from, to) = (place::profile_dir(), armed_dir());
    std::fs::create_dir_all(&to)?;
    for entry in std::fs::read_dir(&from)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_string_lossy().ends_with("-worker")
            || name == "conversation-api"
            || name == "verbatim"
        {
            // Copy and rename: the file of a running program cannot be overwritten.
            let copy = to.join("copy");
            std::fs::copy(entry.path(), &copy)?;
            std::fs::rename(copy, to.join(name))?;
        }
    }
    build_with(&[]).await
}

/// Builds every binary of the workspace in the profile of the running program.
async fn build() -> Result<()> {
    let _building = building().await?;
    build_with(&[]).await
}

/// Waits until no other task and no other process builds the fleet: the two kinds of builds replace each other's files.
async fn building() -> Result<File> {
    let lock = place::profile_dir().join("building-the-fleet");
    let locked = move || {
        let file = File::create(lock)?;
        file.lock()?;
        Ok::<_, std::io::Error>(file)
    };
    Ok(tokio::task::spawn_blocking(locked).await??)
}

async fn build_with(arguments: &[&str]) -> Result<()> {
    let mut command = crate::cargo::command(&["build", "--quiet", "--workspace", "--bins"]);
    command.args(arguments);
    match place::profile_dir().file_name().and_then(OsStr::to_str) {
        None | Some("debug") => {}
        Some(profile) => {
            command.args(["--profile", profile]);
        }
    }
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    if !output.status.success() {
        bail!("cargo build failed:\n{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(5);

    /// A shell in place of a worker.
    fn shell(fleet: &Fleet, script: &str) -> Worker {
        let mut command = fleet.command("/bin/sh");
        let listen_file = fleet.dir().join("sh.listen");
        command.args(["-c", script]).env(LISTEN_FILE, &listen_file);
        let process = Process::spawn("sh", &mut command, &fleet.dir().join("sh.log")).unwrap();
        Worker { process, listen_file }
    }

    #[tokio::test]
    async fn a_worker_reports_its_address_and_ends_after_sigterm() {
        let fleet = Fleet::of_built().unwrap();
        let script = "trap 'exit 7' TERM; echo 127.0.0.1:4711 > $VERBATIM_LISTEN_FILE; \
                      while :; do sleep 0.01; done";
        let worker = shell(&fleet, script);
        assert_eq!(worker.address().await.unwrap().port(), 4711);
        assert_eq!(worker.stop(SOON).await.unwrap().code(), Some(7));
    }

    #[tokio::test]
    async fn a_worker_that_ends_instead_of_listening_shows_its_log() {
        let fleet = Fleet::of_built().unwrap();
        let worker = shell(&fleet, "echo test output; exit 3");
        let failure = worker.address().await.unwrap_err().to_string();
        assert!(failure.contains("exit status: 3") && failure.contains("test output"), "{failure}");
    }

    #[tokio::test]
    async fn a_worker_sees_the_fleets_variables_and_no_others() {
        let fleet = Fleet::of_built().unwrap().with("GIVEN", "yes");
        let worker = shell(&fleet, "env");
        worker.wait(SOON).await.unwrap();
        let log = worker.log();
        assert!(log.contains("GIVEN=yes"), "{log}");
        assert!(!log.contains("CARGO_MANIFEST_DIR"), "{log}");
    }
}

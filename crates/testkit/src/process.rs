//! A child process that writes to a log file, is signalled by its process id, and is always reaped.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::wait::{TimedOut, until};

/// Lines of a log that an error shows.
const TAIL_LINES: usize = 25;

/// The signals that tests send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// `kill -9`.
    Kill,
    /// A graceful shutdown.
    Terminate,
    /// Ctrl-C.
    Interrupt,
    /// PostgreSQL's immediate shutdown.
    Quit,
    /// Freezes the process: its connections stay open, and it does nothing.
    Stop,
    /// Continues after [`Self::Stop`].
    Continue,
}

impl Signal {
    fn name(self) -> &'static str {
        match self {
            Self::Kill => "KILL",
            Self::Terminate => "TERM",
            Self::Interrupt => "INT",
            Self::Quit => "QUIT",
            Self::Stop => "STOP",
            Self::Continue => "CONT",
        }
    }
}

/// A child process, running or ended. Dropping it kills and reaps it.
#[derive(Debug)]
pub struct Process {
    name: String,
    pid: u32,
    log: PathBuf,
    child: Mutex<Child>,
}

impl Process {
    /// Starts `command` with both of its outputs appended to `log`.
    ///
    /// # Errors
    /// When the log cannot be opened or the program cannot be started.
    pub fn spawn(name: impl Into<String>, command: &mut Command, log: &Path) -> io::Result<Self> {
        let name = name.into();
        let output = OpenOptions::new().create(true).append(true).open(log)?;
        let child = command
            .stdout(Stdio::from(output.try_clone()?))
            .stderr(Stdio::from(output))
            .spawn()
            .map_err(|error| {
                let program = command.get_program().display();
                io::Error::new(error.kind(), format!("{name} ({program}) cannot start: {error}"))
            })?;
        Ok(Self { name, pid: child.id(), log: log.to_owned(), child: Mutex::new(child) })
    }

    /// The name it was given.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Its exit status, if it has ended.
    #[must_use]
    pub fn exited(&self) -> Option<ExitStatus> {
        self.child().try_wait().ok().flatten()
    }

    /// Sends a signal. Does nothing if the process has ended.
    ///
    /// # Errors
    /// When the signal cannot be sent.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        // While the lock is held the child is not reaped, so its process id is not reused.
        let mut child = self.child();
        if child.try_wait()?.is_some() {
            return Ok(());
        }
        match signal {
            Signal::Kill => child.kill(),
            other => send(other, &[self.pid]),
        }
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// [`TimedOut`] when it is still running after `limit`.
    pub async fn wait(&self, limit: Duration) -> Result<ExitStatus, TimedOut> {
        until(format!("the end of {}", self.name), limit, async || {
            self.exited().ok_or_else(|| format!("running as process {}", self.pid))
        })
        .await
    }

    /// Kills it (`kill -9`) and reaps it.
    pub fn kill(&self) {
        let mut child = self.child();
        // Both fail only for a process that is already reaped.
        child.kill().ok();
        child.wait().ok();
    }

    /// Its complete output so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read(&self.log).map_or_else(
            |error| format!("({} cannot be read: {error})", self.log.display()),
            |bytes| String::from_utf8_lossy(&bytes).into_owned(),
        )
    }

    /// The last lines of its output.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }

    /// The process ids of its children.
    #[must_use]
    pub fn children(&self) -> Vec<u32> {
        let file = format!("/proc/{0}/task/{0}/children", self.pid);
        let list = fs::read_to_string(file).unwrap_or_default();
        list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Sends a signal to each of `pids`. The caller ensures that none of them is reaped, so that no id is
/// reused.
///
/// # Errors
/// When the shell cannot be started. A process that has ended meanwhile is no error.
pub(crate) fn send(signal: Signal, pids: &[u32]) -> io::Result<()> {
    if pids.is_empty() {
        return Ok(());
    }
    // The standard library sends SIGKILL only, and `unsafe` is forbidden here.
    Command::new("sh")
        .args(["-c", "kill -s \"$@\" 2>/dev/null", "kill", signal.name()])
        .args(pids.iter().map(u32::to_string))
        .status()
        .map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guard::Guard;

    const SOON: Duration = Duration::from_secs(5);

    fn sleeper(guard: &Guard) -> Process {
        Process::spawn("sleep", guard.mark().command("sleep").arg("600"), &guard.dir().join("log"))
            .unwrap()
    }

    fn state(pid: u32) -> Result<String, String> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).map_err(|e| e.to_string())?;
        Ok(stat.split_whitespace().nth(2).unwrap_or_default().to_owned())
    }

    async fn reaches(pid: u32, wanted: &str) {
        crate::wait::eventually(format!("state {wanted}"), SOON, async || {
            let seen = state(pid)?;
            if seen == wanted { Ok(()) } else { Err(seen) }
        })
        .await;
    }

    #[tokio::test]
    async fn a_stopped_process_continues_and_ends_after_sigterm() {
        let guard = Guard::new(None).unwrap();
        let process = sleeper(&guard);
        process.signal(Signal::Stop).unwrap();
        reaches(process.pid(), "T").await;
        process.signal(Signal::Continue).unwrap();
        reaches(process.pid(), "S").await;
        process.signal(Signal::Terminate).unwrap();
        assert!(!process.wait(SOON).await.unwrap().success());
    }

    #[test]
    fn a_dropped_process_is_reaped() {
        let guard = Guard::new(None).unwrap();
        let process = sleeper(&guard);
        let pid = process.pid();
        drop(process);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }
}

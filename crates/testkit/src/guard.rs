//! A directory and a group of processes that never outlive their owner.
//!
//! Tests and the demo start real servers. However the owner ends (normally, by a panic, Ctrl-C or
//! `kill -9`), no process and no file may remain. So the owner holds a pipe to a small shell process. When
//! the pipe closes (the kernel closes it when the owner dies), the shell ends every process that has the
//! owner's mark in its environment, and then removes the directory.
//!
//! There is one clean-up path, which a normal end uses too, so it is always tested. The mark is a random
//! value in the environment, which children inherit: the servers' children are found too, and an unrelated
//! process with a recycled process id is not.

use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use uuid::Uuid;

use crate::place;

/// The environment variable that marks a process.
const MARK: &str = "VERBATIM_GUARD";

/// The script of the shell.
const SCRIPT: &str = include_str!("guard.sh");

/// The value of [`MARK`] that all processes of one guard have.
#[derive(Debug, Clone)]
pub struct Mark(String);

impl Mark {
    /// A command whose process, with all its children, ends with the guard. It has its own process
    /// group, so that Ctrl-C in the terminal signals the owner only.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        self.put_on(&mut command);
        command.process_group(0).stdin(Stdio::null());
        command
    }

    /// Adds the mark to a command.
    pub fn put_on(&self, command: &mut Command) {
        command.env(MARK, &self.0);
    }
}

/// Owns a directory and all processes that have its mark.
#[derive(Debug)]
pub struct Guard {
    mark: Mark,
    dir: PathBuf,
    shell: Child,
}

impl Guard {
    /// A guard with a new directory under `target/servers`, or under the system's temporary directory if
    /// the user id `reachable_for` has no access to the former.
    ///
    /// # Errors
    /// When the directory cannot be created or the shell not started.
    pub fn new(reachable_for: Option<u32>) -> io::Result<Self> {
        let mark = Uuid::new_v4().simple().to_string();
        // 48 random bits: enough for a name.
        let dir = place::new_dir(&mark[..12], reachable_for)?;
        let shell = Command::new("sh")
            .args(["-c", SCRIPT, "verbatim-guard", &format!("{MARK}={mark}")])
            .arg(&dir)
            // An outer guard must not kill this shell before it has cleaned up.
            .env_remove(MARK)
            .process_group(0)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self { mark: Mark(mark), dir, shell })
    }

    /// The guarded directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The mark of its processes.
    #[must_use]
    pub fn mark(&self) -> &Mark {
        &self.mark
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        // Fails only if the shell is already reaped.
        self.shell.wait().ok();
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;
    use crate::process::Process;

    #[tokio::test]
    async fn a_dropped_guard_ends_its_processes_and_their_children_and_removes_its_directory() {
        let guard = Guard::new(None).unwrap();
        let dir = guard.dir().to_owned();
        let mut command = guard.mark().command("sh");
        command.args(["-c", "sleep 600 & echo $! > child; wait"]).current_dir(&dir);
        let parent = Process::spawn("sh", &mut command, &dir.join("log")).unwrap();
        let child = crate::wait::eventually("the child's id", Duration::from_secs(5), async || {
            let text = fs::read_to_string(dir.join("child")).map_err(|e| e.to_string())?;
            text.trim().parse::<u32>().map_err(|e| format!("{text:?}: {e}"))
        })
        .await;

        drop(guard);

        assert!(parent.exited().is_some(), "the parent is still running");
        assert!(!Path::new(&format!("/proc/{child}/cwd")).join(".").exists());
        assert!(!dir.exists(), "{} is still there", dir.display());
    }
}

//! A disk of a few MiB for one server, which a test can fill to the last byte.
//!
//! It is a tmpfs in a mount namespace of its own that one process holds: nobody else sees it, and it
//! goes away with that process, whatever becomes of the owner. Whoever is not root gets a user
//! namespace around it.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::postgresql::User;
use crate::guard::Mark;
use crate::process::Process;

/// What a test puts on the disk to fill it.
const BALLAST: &str = "ballast";

/// A small disk at `data` below a server's directory.
#[derive(Debug)]
pub(super) struct Disk {
    dir: PathBuf,
    holder: Process,
}

impl Disk {
    /// Mounts a disk of so many MiB, for this user, else for whoever runs this.
    pub(super) fn mount(
        mark: &Mark,
        dir: &Path,
        user: Option<User>,
        mebibytes: u32,
    ) -> Result<Self> {
        fs::create_dir_all(dir.join("data"))?;
        let script = "mount -t tmpfs -o \"$1\" tmpfs data && : >mounted && exec sleep 2147483647";
        let mut command = mark.command("unshare");
        command.arg("--mount").current_dir(dir);
        let (owner, group) = match user {
            Some(user) => (user.id, user.group),
            None => {
                command.args(["--user", "--map-root-user"]);
                (0, 0)
            }
        };
        let options = format!("size={mebibytes}m,mode=0700,uid={owner},gid={group}");
        command.args(["sh", "-c", script, "disk", &options]);
        let holder = Process::spawn("disk", &mut command, &dir.join("disk.log"))?;
        Ok(Self { dir: dir.to_owned(), holder })
    }

    /// A command that runs the program in its arguments where the disk can be seen, as this user.
    pub(super) fn command(&self, mark: &Mark, user: Option<User>) -> Result<Command> {
        let script = r#"
            until [ -e mounted ]; do
                kill -0 "$1" || { cat disk.log; exit 1; }
                sleep 0.01
            done
            shift; exec "$@"
        "#;
        let pid = self.holder.pid();
        let namespace = |kind: &str, file: &str| format!("--{kind}=/proc/{pid}/ns/{file}");
        let mut command = mark.command("sh");
        command.args(["-c", script, "disk", &pid.to_string()]).current_dir(&self.dir);
        command.arg("nsenter").arg(namespace("mount", "mnt"));
        match user {
            Some(User { id, group }) => {
                command.args(["setpriv", "--reuid", &id.to_string()]);
                command.args(["--regid", &group.to_string(), "--clear-groups"]);
            }
            None => {
                let own = fs::metadata("/proc/self")?;
                command.args(["--preserve-credentials", &namespace("user", "user")]);
                command.args(["unshare", "--user", &format!("--map-user={}", own.uid())]);
                command.arg(format!("--map-group={}", own.gid()));
            }
        }
        // Entering leads to the root directory.
        command.args(["sh", "-c", "cd \"$0\" && exec \"$@\""]).arg(&self.dir);
        Ok(command)
    }

    /// Leaves no free byte.
    pub(super) fn fill(&self) -> Result<()> {
        let path = self.ballast();
        let mut file = File::create(&path).with_context(|| path.display().to_string())?;
        let zeros = [0; 4096];
        loop {
            match file.write_all(&zeros) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(()),
                Err(error) => bail!("the disk cannot be filled: {error}"),
            }
        }
    }

    /// Takes away what [`Self::fill`] put there.
    pub(super) fn free(&self) -> Result<()> {
        let path = self.ballast();
        fs::remove_file(&path).with_context(|| path.display().to_string())
    }

    /// As it is seen from outside of the namespace.
    fn ballast(&self) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.holder.pid()));
        let dir = self.dir.strip_prefix("/").unwrap_or(&self.dir);
        root.join(dir).join("data").join(BALLAST)
    }
}

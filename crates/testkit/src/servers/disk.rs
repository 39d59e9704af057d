//! A disk of a few MiB for one server, which a test can fill completely.
//!
//! It is a tmpfs in its own mount namespace. One process holds the namespace: no other process sees the disk,
//! and it ends with that process. Without root it is inside a user namespace.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::user::User;
use crate::guard::Mark;
use crate::process::Process;

/// The name of the file that fills the disk.
const FILLER: &str = "filler";

/// A small disk, mounted at `data` in a server's directory.
#[derive(Debug)]
pub(super) struct Disk {
    /// Without symbolic links: an absolute one would lead out of the namespace, to the disk of the machine.
    dir: PathBuf,
    mebibytes: u32,
    holder: Process,
}

impl Disk {
    /// Mounts a disk of this size in MiB, owned by `user`, or by the user of this process.
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
        Ok(Self { dir: fs::canonicalize(dir)?, mebibytes, holder })
    }

    /// A command that runs the program in its arguments in the namespace of the disk, as this user.
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
        // nsenter changes to the root directory.
        command.args(["sh", "-c", "cd \"$0\" && exec \"$@\""]).arg(&self.dir);
        Ok(command)
    }

    /// Fills the disk completely.
    pub(super) fn fill(&self) -> Result<()> {
        let path = self.filler();
        let mut file = File::create(&path).with_context(|| path.display().to_string())?;
        let block = [0; 4096];
        for _ in 0..=u64::from(self.mebibytes) * 1024 * 1024 / 4096 {
            match file.write_all(&block) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(()),
                Err(error) => bail!("the disk cannot be filled: {error}"),
            }
        }
        fs::remove_file(&path)?;
        bail!("{} is not on the disk of {} MiB", path.display(), self.mebibytes)
    }

    /// Removes the file of [`Self::fill`].
    pub(super) fn free(&self) -> Result<()> {
        let path = self.filler();
        fs::remove_file(&path).with_context(|| path.display().to_string())
    }

    /// The path of the file as seen from outside the namespace.
    fn filler(&self) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.holder.pid()));
        let dir = self.dir.strip_prefix("/").unwrap_or(&self.dir);
        root.join(dir).join("data").join(FILLER)
    }
}

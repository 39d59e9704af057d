//! Another RabbitMQ than the distribution's: that of Debian 13, in a folder of its own.
//!
//! Nothing of it is installed: its packages lie under `target/rabbitmq-4`, and its programs run with that
//! folder as their root. What they mount for that, the test's own folders among it, is in a name space of
//! theirs and ends with them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use testkit::place;

use crate::{cargo, packages, say};

/// The release of Debian with RabbitMQ 4 (4.0.5).
const RELEASE: &str = "trixie";

/// What tests start, and where it lies in that release.
const PROGRAMS: [(&str, &str); 3] = [
    ("rabbitmq-server", "/usr/lib/rabbitmq/bin/rabbitmq-server"),
    ("rabbitmqctl", "/usr/lib/rabbitmq/bin/rabbitmqctl"),
    ("epmd", "/usr/bin/epmd"),
];

/// Makes sure that it is there, and returns the directory of its programs.
pub(super) async fn prepare() -> Result<PathBuf> {
    if place::user_id()? != 0 {
        bail!("RabbitMQ 4 runs in a folder as its root, which only root may do");
    }
    let base = place::workspace().join("target/rabbitmq-4");
    let root = base.join("root");
    if !root.is_dir() {
        packages::ensure(&["debootstrap"]).await?;
        say::line("fetching RabbitMQ 4 and what it runs on (once; some minutes, 400 MB)");
        let half_done = base.join("half-done");
        if half_done.exists() {
            fs::remove_dir_all(&half_done).context("an earlier attempt is in the way")?;
        }
        fs::create_dir_all(&half_done)?;
        // What it mounts in there must not stay if it is broken off.
        let mut command = Command::new("unshare");
        command.args([
            "--mount",
            "debootstrap",
            "--variant=minbase",
            "--include=rabbitmq-server",
            RELEASE,
        ]);
        command.arg(&half_done);
        cargo::run(command).await?;
        fs::rename(&half_done, &root)?;
    }
    // Node names end in `localhost`.
    fs::copy("/etc/hosts", root.join("etc/hosts")).context("/etc/hosts")?;
    let programs = base.join("bin");
    fs::create_dir_all(&programs)?;
    for (name, path) in PROGRAMS {
        let file = programs.join(name);
        fs::write(&file, wrapper(&root, path))?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?;
    }
    Ok(programs)
}

/// A script that becomes the program: the process that was started is the server itself.
fn wrapper(root: &Path, program: &str) -> String {
    let (root, target) = (root.display(), place::workspace().join("target"));
    let (target, temporary) = (target.display(), std::env::temp_dir());
    let temporary = temporary.display();
    format!(
        "#!/bin/sh
exec unshare --mount sh -c '
    set -e
    for dir in /proc /dev \"{target}\" \"{temporary}\"; do
        mkdir -p \"{root}$dir\"
        mount --rbind \"$dir\" \"{root}$dir\"
    done
    exec chroot \"{root}\" sh -c \"cd \\\"\\$0\\\" 2>/dev/null; exec \\\"\\$@\\\"\" \"$PWD\" {program} \"$@\"
' sh \"$@\"
"
    )
}

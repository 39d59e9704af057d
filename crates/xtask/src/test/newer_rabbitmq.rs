//! RabbitMQ 4 of Debian 13, for a machine whose distribution has an older version.
//!
//! It is not installed on the machine: its packages are under `target/rabbitmq-4`, and its programs run in a
//! chroot there. The mounts of the chroot (`/proc`, `/dev`, `target`, the temporary directory) are in their own
//! mount namespace and end with the programs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use testkit::place;

use crate::{cargo, packages, say};

/// The release of Debian that has RabbitMQ 4 (4.0.5).
const RELEASE: &str = "trixie";

/// The programs that tests start, and their paths in that release.
const PROGRAMS: [(&str, &str); 3] = [
    ("rabbitmq-server", "/usr/lib/rabbitmq/bin/rabbitmq-server"),
    ("rabbitmqctl", "/usr/lib/rabbitmq/bin/rabbitmqctl"),
    ("epmd", "/usr/bin/epmd"),
];

/// Downloads it if it is missing, and returns the directory of its programs.
pub(super) async fn prepare() -> Result<PathBuf> {
    if place::user_id()? != 0 {
        bail!("--rabbitmq-4 needs root: RabbitMQ 4 runs in a chroot");
    }
    let base = place::workspace().join("target/rabbitmq-4");
    let root = base.join("root");
    if !root.is_dir() {
        packages::ensure(&["debootstrap"]).await?;
        say::line("downloading RabbitMQ 4 and its dependencies (once; some minutes, 400 MB)");
        let incomplete = base.join("incomplete");
        if incomplete.exists() {
            fs::remove_dir_all(&incomplete).context("cannot remove the incomplete download")?;
        }
        fs::create_dir_all(&incomplete)?;
        // In a mount namespace: its mounts end with it even if it is interrupted.
        let mut command = Command::new("unshare");
        command.args([
            "--mount",
            "debootstrap",
            "--variant=minbase",
            "--include=rabbitmq-server",
            RELEASE,
        ]);
        command.arg(&incomplete);
        cargo::run(command).await?;
        fs::rename(&incomplete, &root)?;
    }
    // RabbitMQ resolves `localhost`, the host of its node names.
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

/// A script that executes the program in the chroot, so that the started process is the server.
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

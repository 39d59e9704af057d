//! Paths: the target directory, the product's binaries, the servers' data.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// `target/debug` or the directory of another profile: where cargo has put the running program.
#[must_use]
pub fn profile_dir() -> PathBuf {
    let beside = std::env::current_exe().ok().and_then(|exe| {
        let dir = exe.parent()?;
        let dir = if dir.ends_with("deps") { dir.parent()? } else { dir };
        dir.join("deps").is_dir().then(|| dir.to_owned())
    });
    beside.unwrap_or_else(|| workspace().join("target/debug"))
}

/// The root of the workspace.
#[must_use]
pub fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

/// The user id of this process; 0 is root.
///
/// # Errors
/// When there is no `/proc`.
pub fn user_id() -> io::Result<u32> {
    Ok(fs::metadata("/proc/self")?.uid())
}

/// Creates a directory with a random name under `target/servers`, or under the system's temporary directory
/// if the user id `reachable_for` has no access to the former.
pub(crate) fn new_dir(name: &str, reachable_for: Option<u32>) -> io::Result<PathBuf> {
    let profile = profile_dir();
    let target = profile.parent().unwrap_or(&profile);
    let dir = match reachable_for {
        Some(user) if !reachable(target, user) => {
            std::env::temp_dir().join(format!("verbatim-{name}"))
        }
        _ => target.join("servers").join(name),
    };
    fs::create_dir_all(&dir)?;
    // Independent of the umask: the servers' users can enter it, and only its owner can list it.
    fs::set_permissions(&dir, Permissions::from_mode(0o711))?;
    if let Some(parent) = dir.parent().filter(|parent| parent.ends_with("servers")) {
        fs::set_permissions(parent, Permissions::from_mode(0o711))?;
    }
    Ok(dir)
}

/// Whether `user` may enter every directory down to `dir`, by the modes of owner and others. Groups are
/// ignored: access through a group only means that the temporary directory is used without need.
fn reachable(dir: &Path, user: u32) -> bool {
    dir.ancestors().all(|dir| {
        fs::metadata(dir).is_ok_and(|it| {
            let passable = if it.uid() == user { 0o100 } else { 0o001 };
            it.mode() & passable != 0
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_below_a_private_one_is_not_reachable_for_others() {
        let dir = std::env::temp_dir().join(format!("verbatim-place-{}", std::process::id()));
        let inner = dir.join("inner");
        fs::create_dir_all(&inner).unwrap();
        let owner = fs::metadata(&dir).unwrap().uid();
        fs::set_permissions(&dir, Permissions::from_mode(0o700)).unwrap();
        assert!(!reachable(&inner, owner + 1));
        fs::set_permissions(&dir, Permissions::from_mode(0o711)).unwrap();
        assert!(reachable(&inner, owner + 1));
        fs::remove_dir_all(&dir).unwrap();
    }
}

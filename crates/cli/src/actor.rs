//! Who runs the command, for the audit log.

use std::os::unix::fs::MetadataExt as _;

use clap::Args;
use database::Actor;
use uuid::Uuid;

/// Who does what is audited.
#[derive(Debug, Clone, Args)]
pub(crate) struct ActorArgs {
    /// Who does this, for the audit log; by default the system user and host
    #[arg(long, env = "VERBATIM_ACTOR", value_name = "NAME", help_heading = "Audit")]
    #[arg(value_parser = clap::builder::NonEmptyStringValueParser::new())]
    actor: Option<String>,
}

impl ActorArgs {
    /// One run of the command by them.
    pub(crate) fn actor(&self) -> Actor {
        let name = self.actor.clone().unwrap_or_else(system_user);
        Actor { name, run: Uuid::now_v7() }
    }
}

/// The user that the system says we are, and the host, as `user@host`.
fn system_user() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    // The owner of our own process (proc(5)); elsewhere than on Linux nobody is known.
    let user = std::fs::metadata("/proc/self").map(|process| process.uid()).map_or_else(
        |_| "unknown".to_owned(),
        |uid| name_of(uid, &read("/etc/passwd")).unwrap_or_else(|| format!("uid {uid}")),
    );
    match read("/proc/sys/kernel/hostname").trim() {
        "" => user,
        host => format!("{user}@{host}"),
    }
}

/// The name of a user, by passwd(5).
fn name_of(uid: u32, passwd: &str) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, id) = (fields.next()?, fields.nth(1)?);
        (id.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_known_by_name_where_the_system_has_one() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\nops:x:1000:1000::/home/ops:/bin/sh\n";
        assert_eq!(name_of(1000, passwd).as_deref(), Some("ops"));
        assert_eq!(name_of(10, passwd), None);
        let arguments = ActorArgs { actor: Some("night shift".to_owned()) };
        assert_eq!(arguments.actor().name, "night shift");
        assert!(!system_user().is_empty());
    }
}

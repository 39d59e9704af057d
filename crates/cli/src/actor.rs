//! The actor: the name under which the audit log records a command.

use std::os::unix::fs::MetadataExt as _;

use clap::Args;
use database::Actor;
use uuid::Uuid;

/// The actor of a command that the audit log records.
#[derive(Debug, Clone, Args)]
pub(crate) struct ActorArgs {
    /// Name recorded in the audit log; default: the system user and host (user@host)
    #[arg(long, env = "VERBATIM_ACTOR", value_name = "NAME", help_heading = "Audit")]
    #[arg(value_parser = clap::builder::NonEmptyStringValueParser::new())]
    actor: Option<String>,
}

impl ActorArgs {
    /// The actor, with a new run id.
    pub(crate) fn actor(&self) -> Actor {
        let name = self.actor.clone().unwrap_or_else(system_user);
        Actor { name, run: Uuid::now_v7(), tenant: None }
    }
}

fn system_user() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    // The owner of this process (proc(5)); unknown on systems other than Linux.
    let user = std::fs::metadata("/proc/self").map(|process| process.uid()).map_or_else(
        |_| "unknown".to_owned(),
        |uid| name_of(uid, &read("/etc/passwd")).unwrap_or_else(|| format!("uid {uid}")),
    );
    match read("/proc/sys/kernel/hostname").trim() {
        "" => user,
        host => format!("{user}@{host}"),
    }
}

/// The name of a user id, from passwd(5).
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
    fn a_user_id_becomes_a_name_where_passwd_has_one() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\nops:x:1000:1000::/home/ops:/bin/sh\n";
        assert_eq!(name_of(1000, passwd).as_deref(), Some("ops"));
        assert_eq!(name_of(10, passwd), None);
        let arguments = ActorArgs { actor: Some("night shift".to_owned()) };
        assert_eq!(arguments.actor().name, "night shift");
        assert!(!system_user().is_empty());
    }
}

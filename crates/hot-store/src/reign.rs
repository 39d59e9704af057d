//! Which server process we talk to, as it says itself.
//!
//! A server that restarts has a new run id; a replica that is promoted, or a server that took over
//! another's data, has a new replication id. Either may have forgotten writes that were
//! acknowledged, so either is a new reign, under which no older mark holds.

use std::collections::BTreeSet;
use std::fmt;

use crate::error::Error;

/// The processes that rule the hot copies: one master, or each master of a cluster. Its text is what
/// is kept in PostgreSQL and compared there.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reign(BTreeSet<Master>);

/// One master.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Master {
    run_id: String,
    replication_id: String,
}

impl Reign {
    /// Reads the replies of `INFO server` and `INFO replication`. A server that is not a master is
    /// refused: it would refuse writes, or lose them when its master comes back.
    pub(crate) fn of_server(server: &str, replication: &str) -> Result<Self, Error> {
        let role = field(replication, "role")?;
        if role != "master" {
            return Err(Error::NotMaster(
                if role == "slave" { "replica" } else { role }.to_owned(),
            ));
        }
        Ok(Self(BTreeSet::from([Master {
            run_id: field(server, "run_id")?.to_owned(),
            replication_id: field(replication, "master_replid")?.to_owned(),
        }])))
    }
}

impl fmt::Display for Reign {
    /// `run id:replication id`, of several masters in byte order with commas between them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, master) in self.0.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            write!(f, "{comma}{}:{}", master.run_id, master.replication_id)?;
        }
        Ok(())
    }
}

fn field<'a>(info: &'a str, name: &str) -> Result<&'a str, Error> {
    info.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(str::trim)
        .filter(|value| !value.is_empty())
        .ok_or_else(|| Error::NotServing(format!("its INFO has no {name}").into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVER: &str = "# Server\r\nredis_version:7.0.15\r\nrun_id:aaaa\r\n";

    #[test]
    fn a_master_has_a_reign() {
        let replication =
            "# Replication\r\nrole:master\r\nmaster_replid:bbbb\r\nmaster_replid2:0\r\n";
        assert_eq!(Reign::of_server(SERVER, replication).unwrap().to_string(), "aaaa:bbbb");
    }

    #[test]
    fn a_replica_is_refused() {
        let error = Reign::of_server(SERVER, "role:slave\r\nmaster_replid:bbbb\r\n").unwrap_err();
        assert_eq!(error.to_string(), "the Redis server is a replica, not a master");
    }

    #[test]
    fn an_answer_without_ids_is_refused() {
        assert!(Reign::of_server("", "role:master\r\nmaster_replid:bbbb\r\n").is_err());
        assert!(Reign::of_server(SERVER, "role:master\r\nmaster_replid:\r\n").is_err());
    }
}

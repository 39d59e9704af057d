//! The identity of the Redis server: its run id and replication id (`INFO server`, `INFO
//! replication`).
//!
//! A server that restarts has a new run id. A replica that is promoted, or a server that loaded
//! another server's data, has a new replication id. In both cases acknowledged writes may be lost,
//! so both give a new server identity, which invalidates every older marker.
//!
//! In a cluster a slot with a new owner also gives a new server identity. A copy that was migrated,
//! or that an aborted migration left behind, may lack rows that were appended on the other server
//! meanwhile. Only a copy that stayed on one server is known to have all rows.

use std::collections::BTreeSet;
use std::fmt;

use crate::error::Error;

/// The identity of the server processes that have the hot copies: one master, or each master of a
/// cluster with its slots. Its text is stored in PostgreSQL and compared there.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServerIdentity(pub(crate) BTreeSet<Master>);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Master {
    run_id: String,
    replication_id: String,
    /// Its slots in a cluster; `None` for a single server.
    slots: Option<String>,
}

impl Master {
    /// Reads the replies to `INFO server` and `INFO replication`. A server that is not a master is
    /// refused: it would refuse writes, or lose them when it synchronises with its master.
    pub(crate) fn of(server: &str, replication: &str) -> Result<Self, Error> {
        let role = field(replication, "role")?;
        if role != "master" {
            return Err(Error::NotMaster(
                if role == "slave" { "replica" } else { role }.to_owned(),
            ));
        }
        Ok(Self {
            run_id: field(server, "run_id")?.to_owned(),
            replication_id: field(replication, "master_replid")?.to_owned(),
            slots: None,
        })
    }

    pub(crate) fn of_slots(self, slots: String) -> Self {
        Self { slots: Some(slots), ..self }
    }
}

impl fmt::Display for ServerIdentity {
    /// `run id:replication id`; in a cluster `run id:replication id:slots` of each master, in byte
    /// order, separated by commas.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let masters = self.0.iter().map(|Master { run_id, replication_id, slots }| match slots {
            Some(slots) => format!("{run_id}:{replication_id}:{slots}"),
            None => format!("{run_id}:{replication_id}"),
        });
        f.write_str(&masters.collect::<Vec<_>>().join(","))
    }
}

/// A field of the reply to INFO or CLUSTER INFO.
pub(crate) fn field<'a>(info: &'a str, name: &str) -> Result<&'a str, Error> {
    info.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(str::trim)
        .filter(|value| !value.is_empty())
        .ok_or_else(|| Error::NotServing(format!("its reply to INFO has no field {name}").into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVER: &str = "# Server\r\nredis_version:7.0.15\r\nrun_id:aaaa\r\n";

    #[test]
    fn a_master_has_a_server_identity() {
        let replication =
            "# Replication\r\nrole:master\r\nmaster_replid:bbbb\r\nmaster_replid2:0\r\n";
        let master = Master::of(SERVER, replication).unwrap();
        assert_eq!(ServerIdentity(BTreeSet::from([master])).to_string(), "aaaa:bbbb");
    }

    #[test]
    fn a_replica_is_refused() {
        let error = Master::of(SERVER, "role:slave\r\nmaster_replid:bbbb\r\n").unwrap_err();
        assert_eq!(
            error.to_string(),
            "the Redis server is a replica, not a master; the Redis URL must lead to a master"
        );
    }

    #[test]
    fn a_reply_without_ids_is_refused() {
        assert!(Master::of("", "role:master\r\nmaster_replid:bbbb\r\n").is_err());
        assert!(Master::of(SERVER, "role:master\r\nmaster_replid:\r\n").is_err());
    }

    #[test]
    fn a_cluster_has_one_server_identity_whatever_the_order_and_another_when_a_slot_moves() {
        let master = |run_id: &str, slots: &str| {
            let server = format!("run_id:{run_id}\r\n");
            let master = Master::of(&server, "role:master\r\nmaster_replid:r\r\n").unwrap();
            master.of_slots(slots.to_owned())
        };
        let server_identity =
            ServerIdentity(BTreeSet::from([master("b", "10-16383"), master("a", "0-9")]));
        assert_eq!(server_identity.to_string(), "a:r:0-9,b:r:10-16383");
        assert_eq!(
            server_identity,
            ServerIdentity(BTreeSet::from([master("a", "0-9"), master("b", "10-16383")]))
        );
        assert_ne!(
            server_identity,
            ServerIdentity(BTreeSet::from([master("a", "0-8"), master("b", "9-16383")]))
        );
    }
}

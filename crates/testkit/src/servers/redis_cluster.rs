//! A Redis Cluster of three masters that is complete from the start.
//!
//! Each node gets a prepared `nodes.conf` with all nodes and slots, so no `CLUSTER MEET` is needed. The nodes
//! announce only ports to clients, no host: a client connects to every node at the host at which it reached
//! the first one, which may be that of a proxy. Requires Redis 7.

use std::path::Path;

use anyhow::Result;

use super::binaries;
use super::files::secret;
use super::kind::Durability;
use super::redis::{Member, Membership, Redis};
use crate::guard::Guard;

/// The slots of each master.
const SLOTS: [&str; 3] = ["0-5460", "5461-10922", "10923-16383"];

/// Whether masters have replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Replicas {
    /// No replicas.
    #[default]
    None,
    /// One replica of the first master; it is the last node.
    OfTheFirst,
}

/// Prepares the nodes.
pub(super) fn prepare(
    guard: &Guard,
    dir: &Path,
    durability: Durability,
    replicas: Replicas,
) -> Result<Vec<Redis>> {
    binaries::redis()?;
    let mut members: Vec<Member> =
        SLOTS.map(|slots| Member::new("master -".to_owned(), slots)).into();
    if replicas == Replicas::OfTheFirst {
        members.push(Member::new(format!("slave {}", members[0].id), ""));
    }
    // Clients use the same password for all nodes.
    let password = secret();
    (0..members.len())
        .map(|own| {
            let dir = dir.join(own.to_string());
            std::fs::create_dir_all(&dir)?;
            Ok(Redis {
                port: members[own].port,
                mark: guard.mark().clone(),
                dir,
                password: password.clone(),
                durability,
                membership: Some(Membership::of(&members, own)),
            })
        })
        .collect()
}

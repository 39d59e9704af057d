//! A Redis Cluster of three masters that is complete from the start.
//!
//! Each node gets a prepared `nodes.conf` with all nodes and slots, so no `CLUSTER MEET` is needed. The nodes
//! announce only ports to clients, no host: a client connects to every node at the host at which it reached
//! the first one, which may be that of a proxy. Requires Redis 7.

use std::path::Path;

use anyhow::Result;
use uuid::Uuid;

use super::Redis;
use crate::guard::Guard;
use crate::ports;
use crate::servers::{Durability, binaries, secret};

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

/// The role of a node in its cluster.
#[derive(Debug)]
pub(super) struct Membership {
    bus_port: u16,
    /// The initial `nodes.conf`.
    nodes: String,
}

struct Member {
    id: String,
    port: u16,
    bus_port: u16,
    role: String,
    slots: &'static str,
}

pub(in crate::servers) fn prepare(
    guard: &Guard,
    dir: &Path,
    durability: Durability,
    replicas: Replicas,
) -> Result<Vec<Redis>> {
    binaries::redis()?;
    let mut members: Vec<Member> = SLOTS.map(|slots| member("master -".to_owned(), slots)).into();
    if replicas == Replicas::OfTheFirst {
        members.push(member(format!("slave {}", members[0].id), ""));
    }
    // Clients use the same password for all nodes.
    let password = secret();
    (0..members.len())
        .map(|own| {
            let dir = dir.join(own.to_string());
            std::fs::create_dir_all(&dir)?;
            let membership =
                Membership { bus_port: members[own].bus_port, nodes: nodes(&members, own) };
            Ok(Redis {
                port: members[own].port,
                mark: guard.mark().clone(),
                dir,
                password: password.clone(),
                durability,
                membership: Some(membership),
            })
        })
        .collect()
}

impl Membership {
    /// The settings of a node. At the first start this also writes its `nodes.conf`.
    pub(super) fn settings(&self, dir: &Path) -> Result<String> {
        let file = dir.join("data/nodes.conf");
        if !file.exists() {
            std::fs::write(&file, &self.nodes)?;
        }
        Ok(format!(
            "cluster-enabled yes\n\
             cluster-port {}\n\
             cluster-config-file {}\n\
             cluster-preferred-endpoint-type unknown-endpoint\n\
             # A replica synchronizes without delay.\n\
             repl-diskless-sync-delay 0\n",
            self.bus_port,
            file.display()
        ))
    }
}

fn member(role: String, slots: &'static str) -> Member {
    // 40 hexadecimal digits.
    let id = format!("{}{}", Uuid::new_v4().simple(), &Uuid::new_v4().simple().to_string()[..8]);
    Member { id, port: ports::free(), bus_port: ports::free(), role, slots }
}

fn nodes(members: &[Member], own: usize) -> String {
    let lines = members.iter().enumerate().map(|(i, member)| {
        let Member { id, port, bus_port, role, slots } = member;
        let myself = if i == own { "myself," } else { "" };
        let epoch = if slots.is_empty() { 1 } else { i + 1 };
        format!("{id} 127.0.0.1:{port}@{bus_port} {myself}{role} 0 0 {epoch} connected {slots}\n")
    });
    lines.chain(["vars currentEpoch 3 lastVoteEpoch 0\n".to_owned()]).collect()
}

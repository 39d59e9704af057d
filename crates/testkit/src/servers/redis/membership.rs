//! The role of a node in its cluster, and its `nodes.conf`.

use std::path::Path;

use anyhow::Result;
use uuid::Uuid;

use crate::ports;

/// The role of a node in its cluster.
#[derive(Debug)]
pub(in crate::servers) struct Membership {
    bus_port: u16,
    /// The initial `nodes.conf`.
    nodes: String,
}

/// A node of a cluster.
pub(in crate::servers) struct Member {
    pub(in crate::servers) id: String,
    pub(in crate::servers) port: u16,
    bus_port: u16,
    role: String,
    slots: &'static str,
}

impl Membership {
    /// The role of one of these nodes.
    pub(in crate::servers) fn of(members: &[Member], own: usize) -> Self {
        Self { bus_port: members[own].bus_port, nodes: nodes(members, own) }
    }

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

impl Member {
    /// A node with free ports. `slots` is empty for a replica.
    pub(in crate::servers) fn new(role: String, slots: &'static str) -> Self {
        // 40 hexadecimal digits.
        let id =
            format!("{}{}", Uuid::new_v4().simple(), &Uuid::new_v4().simple().to_string()[..8]);
        Self { id, port: ports::free(), bus_port: ports::free(), role, slots }
    }
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

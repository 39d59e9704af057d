//! The server processes of one connection: one server, or all masters of a cluster.
//!
//! A connection is made only if every process is reached, and ends when one of them is lost or a
//! slot moves. So [`Servers::server_identity`] is valid for every key, and a new slot map is never
//! used under an old server identity.
//!
//! The slot map of a cluster comes from any of the named nodes. It is accepted only if every master
//! in it reports the same map and the cluster state `ok` (it reaches a majority). A master that is
//! separated from the others by a network partition keeps its old map, and so is detected.

use futures_util::future::try_join_all;
use redis::{ConnectionAddr, ConnectionInfo, Value, from_redis_value};

use crate::address::Target;
use crate::error::Error;
use crate::node::Node;
use crate::server_identity::{Master, ServerIdentity, field};
use crate::settings::Settings;
use crate::slots::{Endpoint, SlotMap, slot_of};

pub(crate) struct Servers {
    nodes: Vec<Node>,
    /// `None`: one server has every key.
    cluster: Option<Cluster>,
}

struct Cluster {
    map: SlotMap,
    ids: Vec<String>,
    /// The last slot of each range, in order, and which of `nodes` owns it.
    ranges: Vec<(u16, usize)>,
}

impl Servers {
    pub(crate) async fn connect(settings: &Settings) -> Result<(Self, ServerIdentity), Error> {
        let servers = match settings.address.target() {
            Target::Server(info) => {
                let node = Node::connect(info, &settings.address.to_string(), settings).await?;
                Self { nodes: vec![node], cluster: None }
            }
            Target::Cluster(seeds) => return Self::discover_through_any(seeds, settings).await,
        };
        let server_identity = servers.server_identity().await?;
        Ok((servers, server_identity))
    }

    /// Reads the current server identity. It is an error if a server does not reply, is not a master or, in
    /// a cluster, reports another slot map.
    pub(crate) async fn server_identity(&self) -> Result<ServerIdentity, Error> {
        let masters = match &self.cluster {
            None => vec![single(&self.nodes[0]).await?],
            Some(cluster) => {
                let masters = self.nodes.iter().zip(&cluster.ids);
                try_join_all(masters.map(|(node, id)| member(node, id, &cluster.map))).await?
            }
        };
        Ok(ServerIdentity(masters.into_iter().collect()))
    }

    pub(crate) fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The index within [`Servers::nodes`] of the server that has a key.
    pub(crate) fn index_of(&self, key: &str) -> usize {
        let Some(Cluster { ranges, .. }) = &self.cluster else { return 0 };
        let slot = slot_of(key);
        ranges.get(ranges.partition_point(|(last, _)| *last < slot)).map_or(0, |(_, node)| *node)
    }

    /// Discovers the cluster through the first named node for which this succeeds. If it fails for
    /// all of them, the error lists every different fault once.
    async fn discover_through_any(
        seeds: &[ConnectionInfo],
        settings: &Settings,
    ) -> Result<(Self, ServerIdentity), Error> {
        let mut faults: Vec<String> = Vec::new();
        for seed in seeds {
            let fault = match Self::discover(seed, settings).await.map_err(Error::while_connecting)
            {
                Ok(found) => return Ok(found),
                Err(Error::NotConnected(reason)) => reason.to_string(),
                Err(other) => other.to_string(),
            };
            if !faults.contains(&fault) {
                faults.push(fault);
            }
        }
        Err(Error::NotConnected(faults.join("; ").into()))
    }

    async fn discover(
        seed: &ConnectionInfo,
        settings: &Settings,
    ) -> Result<(Self, ServerIdentity), Error> {
        let named = Node::connect(seed, &seed.addr().to_string(), settings).await?;
        let map = named.send([&["CLUSTER", "MYID"], &["CLUSTER", "SLOTS"]]).await;
        let [id, slots] = map.map_err(explain_single_server)?;
        let own_id: String = from_redis_value(id).map_err(redis::RedisError::from)?;
        let (map, masters) = SlotMap::read(&slots).map_err(|error| error.at(named.name()))?;
        let ids: Vec<String> = masters.keys().cloned().collect();
        let nodes = try_join_all(masters.iter().map(async |(id, endpoint)| {
            if *id == own_id {
                return Ok(named.clone());
            }
            let info = other_node(seed, endpoint);
            Node::connect(&info, &info.addr().to_string(), settings).await
        }))
        .await?;
        let index = |owner: &str| ids.iter().position(|id| id == owner);
        let ranges = map.owners().filter_map(|(last, owner)| Some((last, index(owner)?))).collect();
        let servers = Self { nodes, cluster: Some(Cluster { map, ids, ranges }) };
        let server_identity = servers.server_identity().await?;
        Ok((servers, server_identity))
    }
}

/// The identity of a single server. PING detects a server that is still loading, which INFO alone
/// does not.
async fn single(node: &Node) -> Result<Master, Error> {
    let [_, server, replication] =
        node.send([&["PING"], &["INFO", "server"], &["INFO", "replication"]]).await?;
    let server = text(server)?;
    if field(&server, "redis_mode").is_ok_and(|mode| mode == "cluster") {
        let fault = "it is a node of a Redis Cluster; set the URLs of several nodes, separated by \
                     commas (or this URL twice)";
        return Err(Error::NotServing(fault.into()).at(node.name()));
    }
    Master::of(&server, &text(replication)?).map_err(|error| error.at(node.name()))
}

/// The identity of a master of a cluster. Its slot map must equal `map`.
async fn member(node: &Node, id: &str, map: &SlotMap) -> Result<Master, Error> {
    let [_, server, replication, info, slots] = node
        .send([
            &["PING"],
            &["INFO", "server"],
            &["INFO", "replication"],
            &["CLUSTER", "INFO"],
            &["CLUSTER", "SLOTS"],
        ])
        .await?;
    let checked = || {
        let master = Master::of(&text(server)?, &text(replication)?)?;
        let state = text(info)?;
        let state = field(&state, "cluster_state")?;
        if state != "ok" {
            return Err(Error::NotServing(format!("the cluster state is {state}, not ok").into()));
        }
        let (seen, _) = SlotMap::read(&slots)?;
        if seen != *map {
            return Err(Error::NotServing(
                "slots have moved, or the nodes report different owners of slots".into(),
            ));
        }
        Ok(master.of_slots(map.of(id)))
    };
    checked().map_err(|error| error.at(node.name()))
}

fn text(reply: Value) -> Result<String, Error> {
    Ok(from_redis_value(reply).map_err(redis::RedisError::from)?)
}

/// The connection settings for another node of the cluster of `seed`.
fn other_node(seed: &ConnectionInfo, endpoint: &Endpoint) -> ConnectionInfo {
    let addr = match (seed.addr().clone(), endpoint.host.clone(), endpoint.port) {
        (ConnectionAddr::Tcp(same, _), host, port) => {
            ConnectionAddr::Tcp(host.unwrap_or(same), port)
        }
        (ConnectionAddr::TcpTls { host: same, insecure, tls_params, .. }, host, port) => {
            ConnectionAddr::TcpTls { host: host.unwrap_or(same), port, insecure, tls_params }
        }
        // An address refuses sockets in a cluster.
        (socket, _, _) => socket,
    };
    seed.clone().set_addr(addr)
}

/// Adds the remedy to the error of a server that is not in cluster mode.
fn explain_single_server(error: Error) -> Error {
    match error {
        Error::Command(text) if text.contains("cluster support disabled") => Error::NotServing(
            format!(
                "{text}; several Redis URLs mean Redis Cluster, so set one URL for a single server"
            )
            .into(),
        ),
        other => other,
    }
}

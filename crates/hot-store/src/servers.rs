//! The server processes that one connection holds: one server, or the masters of a cluster.
//!
//! All or nothing: it is made when every process is reached, and over when one of them is lost or a
//! slot has moved. So what [`Servers::server_identity`] says is true of every key, and a new map of the slots is
//! never used under an old server identity.
//!
//! A cluster's map comes from any of its named nodes, and is believed when every master in it sees
//! the same one and has a majority behind it. One that was cut off from the others keeps its old
//! map, and so is found out.

use futures_util::future::try_join_all;
use redis::{ConnectionAddr, ConnectionInfo, Value, from_redis_value};

use crate::address::Place;
use crate::error::Error;
use crate::node::Node;
use crate::server_identity::{Master, ServerIdentity, field};
use crate::settings::Settings;
use crate::slots::{Endpoint, SlotMap, slot_of};

/// The connections to all server processes that hold hot copies.
pub(crate) struct Servers {
    nodes: Vec<Node>,
    /// `None`: one server has every key.
    cluster: Option<Cluster>,
}

struct Cluster {
    map: SlotMap,
    /// The ids of `nodes`.
    ids: Vec<String>,
    /// The last slot of each range, in order, and which of `nodes` owns it.
    ranges: Vec<(u16, usize)>,
}

impl Servers {
    /// Connects to every one of them and asks who they are.
    pub(crate) async fn connect(settings: &Settings) -> Result<(Self, ServerIdentity), Error> {
        let servers = match settings.address.place() {
            Place::Server(info) => {
                let node = Node::connect(info, &settings.address.to_string(), settings).await?;
                Self { nodes: vec![node], cluster: None }
            }
            Place::Cluster(seeds) => return Self::through_any(seeds, settings).await,
        };
        let server_identity = servers.server_identity().await?;
        Ok((servers, server_identity))
    }

    /// Who rules the hot copies now.
    ///
    /// # Errors
    /// A server does not answer, is no master, or, in a cluster, sees another map of the slots.
    pub(crate) async fn server_identity(&self) -> Result<ServerIdentity, Error> {
        match &self.cluster {
            None => Ok(ServerIdentity::from_iter([single(&self.nodes[0]).await?])),
            Some(cluster) => {
                let masters = self.nodes.iter().zip(&cluster.ids);
                let asked = masters.map(|(node, id)| member(node, id, &cluster.map));
                Ok(try_join_all(asked).await?.into_iter().collect())
            }
        }
    }

    /// The server processes.
    pub(crate) fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Which of [`Servers::nodes`] has a key.
    pub(crate) fn index_of(&self, key: &str) -> usize {
        let Some(Cluster { ranges, .. }) = &self.cluster else { return 0 };
        let slot = slot_of(key);
        ranges.get(ranges.partition_point(|(last, _)| *last < slot)).map_or(0, |(_, node)| *node)
    }

    /// The first of the named nodes through which a whole cluster is found. What kept the others from
    /// it is told together, each fault once.
    async fn through_any(
        seeds: &[ConnectionInfo],
        settings: &Settings,
    ) -> Result<(Self, ServerIdentity), Error> {
        let mut faults: Vec<String> = Vec::new();
        for seed in seeds {
            let fault = match Self::through(seed, settings).await.map_err(Error::in_connecting) {
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

    async fn through(
        seed: &ConnectionInfo,
        settings: &Settings,
    ) -> Result<(Self, ServerIdentity), Error> {
        let asked = Node::connect(seed, &seed.addr().to_string(), settings).await?;
        let map = asked.ask([&["CLUSTER", "MYID"], &["CLUSTER", "SLOTS"]]).await;
        let [id, slots] = map.map_err(no_cluster)?;
        let own_id: String = from_redis_value(id).map_err(redis::RedisError::from)?;
        let (map, masters) = SlotMap::read(&slots).map_err(|error| error.at(asked.place()))?;
        let ids: Vec<String> = masters.keys().cloned().collect();
        let nodes = try_join_all(masters.iter().map(async |(id, endpoint)| {
            if *id == own_id {
                return Ok(asked.clone());
            }
            let info = neighbour(seed, endpoint);
            Node::connect(&info, &info.addr().to_string(), settings).await
        }))
        .await?;
        let place = |owner: &str| ids.iter().position(|id| id == owner);
        let ranges = map.owners().filter_map(|(last, owner)| Some((last, place(owner)?))).collect();
        let servers = Self { nodes, cluster: Some(Cluster { map, ids, ranges }) };
        let server_identity = servers.server_identity().await?;
        Ok((servers, server_identity))
    }
}

/// A server of its own. INFO alone is answered while it loads; PING is not.
async fn single(node: &Node) -> Result<Master, Error> {
    let [_, server, replication] =
        node.ask([&["PING"], &["INFO", "server"], &["INFO", "replication"]]).await?;
    let server = text(server)?;
    if field(&server, "redis_mode").is_ok_and(|mode| mode == "cluster") {
        let fault = "it is a node of a Redis Cluster: name several nodes, with commas between their \
                     URLs (or this one twice)";
        return Err(Error::NotServing(fault.into()).at(node.place()));
    }
    Master::of(&server, &text(replication)?).map_err(|error| error.at(node.place()))
}

/// A master of a cluster that must see the map that we have.
async fn member(node: &Node, id: &str, map: &SlotMap) -> Result<Master, Error> {
    let [_, server, replication, info, slots] = node
        .ask([
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
            return Err(Error::NotServing(format!("the state of the cluster is {state}").into()));
        }
        let (seen, _) = SlotMap::read(&slots)?;
        if seen != *map {
            return Err(Error::NotServing(
                "slots have moved, or the nodes do not agree on who owns which".into(),
            ));
        }
        Ok(master.of_slots(map.of(id)))
    };
    checked().map_err(|error| error.at(node.place()))
}

fn text(reply: Value) -> Result<String, Error> {
    Ok(from_redis_value(reply).map_err(redis::RedisError::from)?)
}

/// How to reach another node of the cluster that `seed` belongs to.
fn neighbour(seed: &ConnectionInfo, endpoint: &Endpoint) -> ConnectionInfo {
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

/// Says what it means that a server knows no cluster.
fn no_cluster(error: Error) -> Error {
    match error {
        Error::Command(text) if text.contains("cluster support disabled") => Error::NotServing(
            format!("{text}; several Redis URLs mean Redis Cluster, and a single server has one")
                .into(),
        ),
        other => other,
    }
}

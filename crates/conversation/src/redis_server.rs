//! Admitting a Redis server: its server identity is compared with the one that PostgreSQL remembers.
//!
//! A server that restarted or was promoted may have forgotten writes, so every hot copy made
//! before is void: a new epoch says so before the connection is used.

use std::future::Future;
use std::pin::Pin;

use database::{Database, EpochChange};
use hot_store::ServerIdentity;
use metrics::{Counter, Metrics};

use crate::RandomSource;

type Admitted = Pin<Box<dyn Future<Output = Result<(), database::Error>> + Send>>;

/// Why a visitor may not use a Redis.
#[derive(Debug, thiserror::Error)]
pub enum UnknownServer {
    /// The workers use another one, or it has restarted and none of them has noticed yet.
    #[error("it is not the Redis that the fleet uses")]
    NotRecorded,
    /// PostgreSQL, which knows, could not be asked.
    #[error(transparent)]
    Database(#[from] database::Error),
}

/// What [`hot_store::HotStore::open`] asks before it uses a connection, and every second after.
pub fn record_server(
    database: Database,
    metrics: Metrics,
    random: RandomSource,
) -> impl Fn(ServerIdentity) -> Admitted + Send + Sync + 'static {
    move |server_identity| {
        let (database, metrics, random) = (database.clone(), metrics.clone(), random.clone());
        Box::pin(async move {
            if database.record_server_identity(&server_identity.to_string(), random.next()).await?
                == EpochChange::Changed
            {
                metrics.add(Counter::HotEpochChanges, 1);
                tracing::warn!(%server_identity, "Redis is not the server it was: every hot copy is void");
            }
            Ok(())
        })
    }
}

/// The admission of those who only look: it compares and changes nothing, so that a mistyped URL does
/// not void the fleet's hot copies.
pub fn check_server(
    database: Database,
) -> impl Fn(ServerIdentity) -> Pin<Box<dyn Future<Output = Result<(), UnknownServer>> + Send>>
+ Send
+ Sync
+ 'static {
    move |server_identity| {
        let database = database.clone();
        Box::pin(async move {
            if database.is_recorded_server_identity(&server_identity.to_string()).await? {
                Ok(())
            } else {
                Err(UnknownServer::NotRecorded)
            }
        })
    }
}

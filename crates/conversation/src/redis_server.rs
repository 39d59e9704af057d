//! Checking which Redis server is connected: its identity (run id and replication id) is compared with
//! the one recorded in PostgreSQL.
//!
//! A server that restarted or was promoted may have lost writes. So when the identity changes, a new epoch
//! invalidates all hot copies made before, and only then is the connection used.

use std::pin::Pin;

use database::{Database, EpochChange};
use hot_store::ServerIdentity;
use metrics::{Counter, Metrics};

use crate::RandomSource;

type Recorded = Pin<Box<dyn Future<Output = Result<(), database::Error>> + Send>>;

/// Why a program that only reads must not use this Redis server.
#[derive(Debug, thiserror::Error)]
pub enum UnknownServer {
    /// The workers use another server, or this one restarted and no worker has recorded that yet.
    #[error(
        "its identity (run id, replication id) is not the one that the workers recorded: REDIS_URL names \
         another server than theirs, or the server just restarted"
    )]
    NotRecorded,
    /// The recorded identity could not be read from PostgreSQL.
    #[error(transparent)]
    Database(#[from] database::Error),
}

/// The check of a worker. [`hot_store::HotStore::open`] calls it before it uses a connection, and every
/// second after. It records the identity of the server in PostgreSQL; if that changed, the epoch changes with
/// it, which invalidates all hot copies.
pub fn record_server(
    database: Database,
    metrics: Metrics,
    random: RandomSource,
) -> impl Fn(ServerIdentity) -> Recorded + Send + Sync + 'static {
    move |server_identity| {
        let (database, metrics, random) = (database.clone(), metrics.clone(), random.clone());
        Box::pin(async move {
            let identity = server_identity.to_string();
            match database.record_server_identity(&identity, random.next()).await? {
                EpochChange::Same => {}
                EpochChange::First => {
                    metrics.add(Counter::HotEpochChanges, 1);
                    tracing::info!(%server_identity, "first Redis server recorded");
                }
                EpochChange::Changed => {
                    metrics.add(Counter::HotEpochChanges, 1);
                    tracing::warn!(
                        %server_identity,
                        "Redis server changed (run id, replication id); all hot copies invalidated"
                    );
                }
            }
            Ok(())
        })
    }
}

/// The check of a program that only reads: it compares the identity with the recorded one and changes
/// nothing, so that a mistyped URL does not invalidate the fleet's hot copies.
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

//! A Redis for each test. Clusters are started in advance.
//!
//! The masters of a cluster reject commands in their first 2 s. So the clusters for the next tests are started
//! while a test runs.

use std::sync::{Arc, LazyLock, Mutex, PoisonError, mpsc};
use std::thread;

use anyhow::{Result, anyhow};

use crate::servers::{Kind, Servers};

/// The environment variable that `cargo xtask test --redis-cluster` sets.
pub const REDIS_CLUSTER: &str = "VERBATIM_TEST_REDIS_CLUSTER";

/// The kind of Redis that tests use by default: a single server, or with [`REDIS_CLUSTER`] a cluster.
#[must_use]
pub fn redis() -> Kind {
    if std::env::var_os(REDIS_CLUSTER).is_some() { Kind::RedisCluster } else { Kind::Redis }
}

/// Clusters started in advance: enough for four concurrent tests of one second each not to wait.
const SPARES: usize = 8;

type Receiver = mpsc::Receiver<Result<Servers>>;

/// A new Redis for one test: a single server, or a cluster if tests run on clusters.
///
/// # Errors
/// As [`Servers::start`].
pub async fn own_redis() -> Result<Servers> {
    static FIRST: Mutex<bool> = Mutex::new(true);
    let is_first =
        std::mem::replace(&mut *FIRST.lock().unwrap_or_else(PoisonError::into_inner), false);
    // A process may need only one: the first is not started in advance.
    if redis() == Kind::Redis || is_first {
        return Servers::start(&[redis()]).await;
    }
    static WAITING: LazyLock<Arc<Mutex<Receiver>>> =
        LazyLock::new(|| Arc::new(Mutex::new(start_ahead())));
    let waiting = Arc::clone(&WAITING);
    let next = move || waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
    tokio::task::spawn_blocking(next)
        .await?
        .map_err(|_| anyhow!("the threads that start Redis have ended"))?
}

/// Starts threads that each keep one cluster ready. Unused clusters end with the process.
fn start_ahead() -> Receiver {
    let (ready, waiting) = mpsc::sync_channel(0);
    for _ in 0..SPARES {
        let ready = ready.clone();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let start = || {
                Ok(runtime.as_ref().map_err(|error| anyhow!("{error}"))?)
                    .and_then(|runtime| runtime.block_on(Servers::start(&[redis()])))
            };
            while ready.send(start()).is_ok() {}
        });
    }
    waiting
}

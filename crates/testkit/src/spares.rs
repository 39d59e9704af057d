//! A Redis for each test, started before the test asks for it where starting takes long.
//!
//! The masters of a cluster refuse commands in their first 2 s and are idle meanwhile. So while a test
//! runs, the clusters of the next ones are started beside it.

use std::sync::{Arc, LazyLock, Mutex, PoisonError, mpsc};
use std::thread;

use anyhow::{Result, anyhow};

use crate::environment::redis;
use crate::servers::{Kind, Servers};

/// So many are on their way at once: two tests at a time that last a second each do not wait for them.
const SPARES: usize = 4;

type Receiver = mpsc::Receiver<Result<Servers>>;

/// A fresh Redis that nobody else uses: a single server, or a cluster where tests run on one.
///
/// # Errors
/// As [`Servers::start`].
pub async fn own_redis() -> Result<Servers> {
    static FIRST: Mutex<bool> = Mutex::new(true);
    let is_first =
        std::mem::replace(&mut *FIRST.lock().unwrap_or_else(PoisonError::into_inner), false);
    // A process may well ask for one alone.
    if redis() == Kind::Redis || is_first {
        return Servers::start(&[redis()]).await;
    }
    static WAITING: LazyLock<Arc<Mutex<Receiver>>> =
        LazyLock::new(|| Arc::new(Mutex::new(start_ahead())));
    let waiting = Arc::clone(&WAITING);
    let next = move || waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
    tokio::task::spawn_blocking(next).await?.map_err(|_| anyhow!("nobody starts Redis any more"))?
}

/// Threads that each keep one ready. Those that nobody takes end with the process.
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

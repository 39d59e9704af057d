//! Catching a panic, so that it ends one piece of work and not the task that does many.
//!
//! A panic is a bug. The process's panic hook counts it and logs its location. The panic message is in no
//! other line, because it may quote a body.

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;

/// Does a piece of work. `None`: it panicked, and the caller must drop what the work may have left half
/// changed.
pub(crate) async fn catch_panic<T>(what: &'static str, work: impl Future<Output = T>) -> Option<T> {
    let done = AssertUnwindSafe(work).catch_unwind().await;
    if done.is_err() {
        tracing::error!(
            what,
            "caught a panic while {what}; the log line of the panic hook before this one names the location"
        );
    }
    done.ok()
}

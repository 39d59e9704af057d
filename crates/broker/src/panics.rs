//! Panics that end one piece of work and not the task that does many.
//!
//! A panic is a bug. The process's panic hook counts it and logs its place; its words stay out of every
//! other line, because they may quote a message.

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;

/// Does a piece of work; `None` when it panicked. What the work was about to change may be half changed:
/// the caller lets go of it.
pub(crate) async fn catch_panic<T>(what: &'static str, work: impl Future<Output = T>) -> Option<T> {
    let done = AssertUnwindSafe(work).catch_unwind().await;
    if done.is_err() {
        tracing::error!(what, "a panic was catch_panic; the line before says where it was");
    }
    done.ok()
}

//! The `verbatim` command, run as users run it, on real servers.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a helper that fails fails its test")]

mod conversations;
mod dead_letters;
mod help;
mod keys;
mod publishing;
mod queues;
mod settings;
mod setup;
mod support;
mod trace;
mod verify;

//! The `verbatim` command, run as users run it, on real servers.

mod conversations;
mod dead_letters;
mod help;
mod publishing;
mod queues;
mod settings;
mod setup;
mod support;

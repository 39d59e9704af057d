//! The broker crate against a RabbitMQ that runs. The names of the tests are its promises.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a helper that fails fails its test")]

mod consuming;
mod faults;
mod holding;
mod publishing;
mod settling;
mod support;
mod suspects;
mod topology;
mod unreadable;

//! Tests of the broker crate against a running RabbitMQ. Each test name states a guarantee.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a helper that fails fails its test")]

mod consuming;
mod faults;
mod holding;
mod memory;
mod publishing;
mod replying;
mod settling;
mod slow;
mod support;
mod suspects;
mod topology;
mod unreadable;

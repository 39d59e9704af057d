//! Real servers, faults and bounded waiting for tests; the same servers for `cargo xtask`.
//!
//! Nothing is mocked: what a test says about RabbitMQ, Redis or PostgreSQL, it says to one that runs.
//!
//! How to write a test that needs servers:
//!
//! 1. `let env = TestEnv::new().await;` gives it a virtual host, a database and a Redis of its own, as
//!    URLs. They go away with `env`.
//! 2. A test that breaks a server owns it: [`servers::Servers::start`].
//! 3. A test that breaks the network puts a [`proxy::Proxy`] between.
//! 4. A test of whole processes starts them from a [`fleet::Fleet`].
//! 5. Alerts: [`monitoring::Monitor`] is a private Prometheus or Alertmanager, [`webhook::Webhook`] gets
//!    what it sends.
//! 6. Wait with [`wait::eventually`]; never with a plain sleep.

pub mod cargo;
pub mod environment;
pub mod fleet;
pub mod guard;
pub mod http;
pub mod management;
pub mod monitoring;
pub mod place;
pub mod ports;
pub mod process;
pub mod proxy;
pub mod servers;
mod spares;
pub mod wait;
pub mod webhook;

pub use environment::TestEnv;

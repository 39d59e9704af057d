//! Real servers, faults and bounded waiting for tests; the same servers for `cargo xtask`.
//!
//! No server is mocked: tests use a running RabbitMQ, Redis and PostgreSQL.
//!
//! How to write a test that needs servers:
//!
//! 1. `let env = TestEnv::new().await;` gives the URLs of a virtual host, a database and a Redis of its
//!    own. They are removed with `env`.
//! 2. A test that breaks a server starts its own: [`servers::Servers::start`].
//! 3. A test that breaks the network connects through a [`proxy::Proxy`].
//! 4. A test of whole processes starts them from a [`fleet::Fleet`].
//! 5. A test of alerts uses [`monitoring::Monitor`], a private Prometheus or Alertmanager, and
//!    [`webhook::Webhook`], which receives the notifications.
//! 6. A test through a pooler starts a [`servers::PgBouncer`].
//! 7. A test that needs the body of an action takes one of the crate `fixtures`.
//! 8. Wait with [`wait::eventually`], never with a plain sleep.

pub mod cargo;
pub mod clients;
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
pub mod raw_amqp;
pub mod schemathesis;
pub mod servers;
mod spares;
pub mod wait;
pub mod webhook;

pub use environment::TestEnv;

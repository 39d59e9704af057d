//! Who may do what over HTTP: API keys, their scopes, and the secret that all replicas of the API share.
//!
//! `key.rs` is the text of a key, `authenticator.rs` decides whether a key is accepted, `signature.rs` reads signed
//! requests, `secret.rs` derives the keys of the signatures of the API itself, `anomalies.rs` notices callers that behave unusually,
//! `refusals.rs` limits refused credentials by address. What PostgreSQL enforces beneath is in the crate `database`
//! (`api_database.rs`, `api_role.rs`).

mod anomalies;
mod authenticator;
mod caller;
mod key;
mod refusals;
mod scope;
mod secret;
mod signature;

pub use anomalies::{Anomalies, Anomaly, AnomalySettings};
pub use authenticator::{Authenticator, AuthenticatorSettings, NotAuthenticated};
pub use caller::{Caller, TenantOfCaller};
pub use key::{ApiKey, InvalidKey, PATTERN};
pub use refusals::RefusalLimits;
pub use scope::Scope;
pub use secret::{Purpose, Secrets};
pub use signature::{InvalidSignature, RequestSignature, SCHEME, authorization};

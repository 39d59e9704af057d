//! What is slow by itself, or locked: it delays nothing else, and is done when that is possible.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod closing;
mod errors_of_outages;
mod locks;
mod slowness;
mod statistics;

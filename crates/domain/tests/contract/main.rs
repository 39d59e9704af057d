//! Tests of the wire contract: examples, refusals, rules, schemas.

#![expect(clippy::expect_used, reason = "the text of expect is the test's failure message")]

mod agreement;
mod documents;
mod elements;
mod events;
mod examples;
mod golden;
mod malformed;
mod properties;
mod rules;
mod schemas;
mod shapes;
mod sync;
mod validator;

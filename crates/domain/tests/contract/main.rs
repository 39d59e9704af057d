//! The contract, as its readers see it: examples, refusals, rules, schemas.

#![expect(clippy::expect_used, reason = "tests say what they expected")]

mod events;
mod examples;
mod malformed;
mod rules;
mod schemas;
mod support;
mod validator;

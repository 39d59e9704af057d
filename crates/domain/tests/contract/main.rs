//! The contract, as its readers see it: examples, refusals, rules, schemas.

#![expect(clippy::expect_used, reason = "tests say what they expected")]

mod events;
mod examples;
mod golden;
mod malformed;
mod properties;
mod rules;
mod schemas;
mod support;
mod validator;

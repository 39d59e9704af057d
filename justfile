# Each recipe is one command that works without `just` as well.

# List the recipes.
default:
    @just --list --unsorted

# Show what Verbatim does, in half a minute.
demo:
    cargo demo

# Run servers and fleet until Ctrl-C.
up:
    cargo xtask up

# Run private RabbitMQ, Redis and PostgreSQL servers until Ctrl-C.
services:
    cargo xtask services

# Run every test on real servers; arguments are passed to `cargo test`.
test *arguments:
    cargo xtask test {{ arguments }}

# Run every test with larger loads and more rounds in the fault tests.
test-deep *arguments:
    cargo xtask test --deep {{ arguments }}

# Run the tests that use Redis, on private Redis Clusters.
test-redis-cluster *arguments:
    cargo xtask test --redis-cluster {{ arguments }}

# Format the code.
format:
    cargo fmt --all

# Lint everything.
lint:
    cargo clippy --workspace --all-targets -- -D warnings

# Build the documentation, private items included.
doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items

# Run a benchmark: save, latency, close, scale, start or memory.
bench what="save" *arguments:
    cargo xtask bench {{ what }} {{ arguments }}

# Break processes, servers and connections at random under load.
chaos *arguments:
    cargo xtask chaos {{ arguments }}

# Count the product's lines of Rust, by crate.
lines:
    cargo xtask lines

# Write one more worker: just new-worker webhook.
new-worker name:
    cargo xtask new worker {{ name }}

# Run every check that a change has to pass.
ci:
    cargo xtask ci

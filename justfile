# Each verb is one line, and each works without `just` as well.

# List the verbs.
default:
    @just --list --unsorted

# Show what Verbatim does, in half a minute.
demo:
    cargo demo

# Keep servers and fleet up until Ctrl-C.
up:
    cargo xtask up

# Keep private RabbitMQ, Redis and PostgreSQL up until Ctrl-C.
services:
    cargo xtask services

# Run every test on real servers; arguments go to `cargo test`.
test *arguments:
    cargo xtask test {{ arguments }}

# The same with larger loads and more rounds in the fault tests.
test-deep *arguments:
    cargo xtask test --deep {{ arguments }}

# The tests that touch Redis, on private Redis Clusters.
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

# Measure: save, latency, close, scale or start
bench what="save" *arguments:
    cargo xtask bench {{ what }} {{ arguments }}

# Every check that a change has to pass.
ci:
    cargo xtask ci

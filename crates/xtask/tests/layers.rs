//! The layers of the workspace: which crate may depend on which, and which one may use which client.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::collections::{BTreeMap, BTreeSet};

use domain::fleet;
use serde_json::Value;

/// The workspace crates that each crate may depend on. Every crate must be listed, but workers: they are in the
/// table of the fleet.
const MAY_DEPEND_ON: &[(&str, &[&str])] = &[
    ("domain", &[]),
    ("metrics", &["domain"]),
    ("tokens", &[]),
    ("failpoints", &[]),
    ("broker", &["failpoints", "domain", "metrics"]),
    ("hot-store", &["domain", "metrics"]),
    ("database", &["domain", "failpoints", "metrics"]),
    ("access", &["database", "domain"]),
    (
        "conversation-api",
        &["access", "broker", "database", "dead-letters", "domain", "metrics", "service", "stores"],
    ),
    (
        "conversation",
        &["database", "broker", "failpoints", "domain", "hot-store", "metrics", "tokens"],
    ),
    ("dead-letters", &["broker", "conversation", "database", "domain", "failpoints", "metrics"]),
    ("inspect", &["broker", "conversation", "database", "domain", "hot-store"]),
    ("service", &["domain", "metrics"]),
    (
        "stores",
        &[
            "access",
            "database",
            "broker",
            "conversation",
            "domain",
            "hot-store",
            "metrics",
            "service",
        ],
    ),
    ("worker", &["broker", "conversation", "domain", "metrics", "service", "stores"]),
    (
        "verbatim",
        &[
            "access",
            "database",
            "broker",
            "conversation",
            "dead-letters",
            "domain",
            "hot-store",
            "inspect",
            "metrics",
            "service",
            "stores",
        ],
    ),
    ("testkit", &[]),
    ("xtask", &["domain", "testkit"]),
    (
        FIXTURES,
        &["broker", "conversation", "database", "domain", "hot-store", "metrics", "testkit"],
    ),
    // The baselines of the benchmarks: the same clients, without crates of the product.
    (BASELINE, &[]),
    // Whole-system tests may use every crate; no crate depends on them.
    (
        "system-tests",
        &[
            "access",
            "database",
            "broker",
            "conversation",
            "dead-letters",
            "failpoints",
            "fixtures",
            "domain",
            "hot-store",
            "inspect",
            "metrics",
            "service",
            "stores",
            "testkit",
        ],
    ),
];

const WORKER: &[&str] = &[
    "database",
    "broker",
    "conversation",
    "dead-letters",
    "failpoints",
    "domain",
    "hot-store",
    "metrics",
    "service",
    "stores",
    "tokens",
    "worker",
];

/// What the tests of several crates share.
const FIXTURES: &str = "fixtures";

/// The baselines of the benchmarks. They may use every client, because they are not part of the product.
const BASELINE: &str = "bench-peers";

/// The tests of the whole system. Their agent uses an AMQP client, as agents do.
const SYSTEM_TESTS: &str = "system-tests";

/// Clients and registries that only one crate may depend on. Tests of other crates may use them as
/// dev-dependencies.
const USED_BY_ONE: &[(&str, &str)] = &[
    ("lapin", "broker"),
    ("redis", "hot-store"),
    ("sqlx", "database"),
    ("prometheus", "metrics"),
    ("bpe-openai", "tokens"),
];

struct Package {
    name: String,
    /// Normal dependencies, by name.
    dependencies: BTreeSet<String>,
    is_binary: bool,
}

fn packages() -> Vec<Package> {
    let mut metadata =
        testkit::cargo::command(&["metadata", "--format-version", "1", "--no-deps", "--offline"]);
    let output = metadata.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let package = |package: &Value| {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let dependencies = package["dependencies"].as_array().unwrap().iter();
        let targets = package["targets"].as_array().unwrap();
        let has = |kind: &str| targets.iter().any(|target| target["kind"][0] == kind);
        Package {
            name: text(&package["name"]),
            dependencies: dependencies
                .filter(|dependency| dependency["kind"].is_null())
                .map(|dependency| text(&dependency["name"]))
                .collect(),
            is_binary: has("bin") && !has("lib"),
        }
    };
    metadata["packages"].as_array().unwrap().iter().map(package).collect()
}

#[test]
fn every_crate_depends_only_on_the_layers_below_it() {
    let workers = fleet::WORKERS.iter().map(|worker| (worker.name(), WORKER));
    let allowed: BTreeMap<&str, &[&str]> = MAY_DEPEND_ON.iter().copied().chain(workers).collect();
    let packages = packages();
    let ours: BTreeSet<&str> = packages.iter().map(|package| package.name.as_str()).collect();
    assert_eq!(
        ours,
        allowed.keys().copied().collect(),
        "MAY_DEPEND_ON must list every crate of the workspace"
    );
    for package in &packages {
        let own = package.dependencies.iter().filter(|name| ours.contains(name.as_str()));
        for dependency in own {
            assert!(
                allowed[package.name.as_str()].contains(&dependency.as_str()),
                "{} must not depend on {dependency}",
                package.name
            );
        }
    }
}

#[test]
fn each_client_is_used_by_one_crate() {
    for package in packages().iter().filter(|package| package.name != BASELINE) {
        for (client, owner) in USED_BY_ONE {
            let by_agent = package.name == SYSTEM_TESTS && *client == "lapin";
            assert!(
                package.name == *owner || by_agent || !package.dependencies.contains(*client),
                "only {owner} may depend on {client}, not {}",
                package.name
            );
        }
    }
}

#[test]
fn no_crate_depends_on_a_binary_or_on_test_support() {
    let packages = packages();
    let binaries: Vec<&str> =
        packages.iter().filter(|p| p.is_binary).map(|p| p.name.as_str()).collect();
    assert!(binaries.contains(&"message-save-worker"), "{binaries:?}");
    for package in &packages {
        for binary in &binaries {
            assert!(
                !package.dependencies.contains(*binary),
                "{} must not depend on the binary {binary}",
                package.name
            );
        }
        let may_test = ["xtask", FIXTURES, "system-tests"].contains(&package.name.as_str());
        for support in ["testkit", FIXTURES] {
            assert!(
                may_test || !package.dependencies.contains(support),
                "{} may use {support} only as a dev-dependency",
                package.name
            );
        }
    }
}

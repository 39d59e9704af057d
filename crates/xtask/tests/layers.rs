//! The layers of the house, held by a test: who may depend on whom, and who may name which client.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// What each crate may depend on within the workspace. A crate that is not here is not in the house.
const MAY_DEPEND_ON: &[(&str, &[&str])] = &[
    ("domain", &[]),
    ("metrics", &["domain"]),
    ("tokens", &[]),
    ("failpoints", &[]),
    ("broker", &["failpoints", "domain", "metrics"]),
    ("hot-store", &["domain", "metrics"]),
    ("database", &["domain", "metrics"]),
    (
        "conversation",
        &["database", "broker", "failpoints", "domain", "hot-store", "metrics", "tokens"],
    ),
    ("service", &["domain", "metrics"]),
    (
        "worker",
        &[
            "database",
            "broker",
            "conversation",
            "failpoints",
            "domain",
            "hot-store",
            "metrics",
            "service",
        ],
    ),
    ("message-save-worker", WORKER),
    ("persistence-migration-worker", WORKER),
    ("statistics-worker", WORKER),
    (
        "verbatim",
        &["database", "broker", "conversation", "domain", "hot-store", "metrics", "service"],
    ),
    ("testkit", &[]),
    ("xtask", &["testkit"]),
    // The baselines of the benchmarks: the same clients, without anything of ours.
    (BASELINE, &[]),
    // Whole-system scenarios may look at everything; nothing depends on them.
    (
        "system-tests",
        &[
            "database",
            "broker",
            "conversation",
            "failpoints",
            "domain",
            "hot-store",
            "metrics",
            "service",
            "testkit",
        ],
    ),
];

const WORKER: &[&str] = &[
    "database",
    "broker",
    "conversation",
    "failpoints",
    "domain",
    "hot-store",
    "metrics",
    "service",
    "tokens",
    "worker",
];

/// The package that may name every client, since it stands beside the fleet.
const BASELINE: &str = "bench-peers";

/// Clients and registries that one crate alone may name; tests of others may, to look from outside.
const NAMED_BY_ONE: &[(&str, &str)] = &[
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
    let allowed: BTreeMap<&str, &[&str]> = MAY_DEPEND_ON.iter().copied().collect();
    let packages = packages();
    let ours: BTreeSet<&str> = packages.iter().map(|package| package.name.as_str()).collect();
    assert_eq!(ours, allowed.keys().copied().collect(), "the table lists every crate of the house");
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
fn each_client_is_named_by_one_crate() {
    for package in packages().iter().filter(|package| package.name != BASELINE) {
        for (client, owner) in NAMED_BY_ONE {
            assert!(
                package.name == *owner || !package.dependencies.contains(*client),
                "only {owner} names {client}, not {}",
                package.name
            );
        }
    }
}

#[test]
fn no_crate_depends_on_a_binary_or_on_the_testkit() {
    let packages = packages();
    let binaries: Vec<&str> =
        packages.iter().filter(|p| p.is_binary).map(|p| p.name.as_str()).collect();
    assert!(binaries.contains(&"message-save-worker"), "{binaries:?}");
    for package in &packages {
        for binary in &binaries {
            assert!(!package.dependencies.contains(*binary), "{} on {binary}", package.name);
        }
        let may_test = ["xtask", "system-tests"].contains(&package.name.as_str());
        assert!(
            may_test || !package.dependencies.contains("testkit"),
            "testkit is a dev-dependency of {}",
            package.name
        );
    }
}

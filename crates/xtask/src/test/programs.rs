//! Finds the test programs of all packages that depend on a crate.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::cargo;

/// The names of the test programs that link a crate, from `cargo metadata`, so that new ones are included.
pub(super) async fn that_link(name: &str) -> Result<Vec<String>> {
    let mut command = cargo::command(&["metadata", "--format-version=1", "--no-deps"]);
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
    Ok(of(&metadata, name))
}

fn of(metadata: &Value, name: &str) -> Vec<String> {
    let packages = || metadata["packages"].as_array().into_iter().flatten();
    let mut linked = BTreeSet::from([name]);
    loop {
        let before = linked.len();
        for package in packages() {
            let mut needs = package["dependencies"].as_array().into_iter().flatten();
            if needs.any(|it| it["name"].as_str().is_some_and(|it| linked.contains(it))) {
                linked.extend(package["name"].as_str());
            }
        }
        if linked.len() == before {
            break;
        }
    }
    let mut programs = BTreeSet::new();
    for package in packages().filter(|it| it["name"].as_str().is_some_and(|it| linked.contains(it)))
    {
        let targets = package["targets"].as_array().into_iter().flatten();
        let tests = targets.filter(|target| target["kind"][0] == "test");
        programs.extend(tests.filter_map(|target| Some(target["name"].as_str()?.to_owned())));
    }
    programs.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_test_programs_of_all_dependants_of_a_crate_are_found() {
        let package = |name: &str, needs: &[&str], tests: &[&str]| {
            let needs: Vec<_> = needs.iter().map(|it| json!({ "name": it })).collect();
            let mut targets: Vec<_> =
                tests.iter().map(|it| json!({ "name": it, "kind": ["test"] })).collect();
            targets.push(json!({ "name": name, "kind": ["lib"] }));
            json!({ "name": name, "dependencies": needs, "targets": targets })
        };
        let metadata = json!({ "packages": [
            package("fleet", &["worker"], &["scenarios"]),
            package("worker", &["store", "serde"], &[]),
            package("store", &[], &["real", "golden"]),
            package("other", &["serde"], &["unrelated"]),
        ] });
        assert_eq!(of(&metadata, "store"), ["golden", "real", "scenarios"]);
        assert_eq!(of(&metadata, "worker"), ["scenarios"]);
    }
}

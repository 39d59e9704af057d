//! Which tests prove something on a Redis Cluster that they do not prove on a single server.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::cargo;

/// Modules and tests of the [`programs`] that neither read nor write Redis, that start the kind of Redis that
/// they are about, or in which Redis works and another part fails: they prove the same in both runs.
pub(super) const SAME_ON_BOTH: [&str; 35] = [
    // The command: what it does without messages.
    "dead_letters::",
    "help::",
    "publishing::",
    "settings::",
    // The hot store and savers on clusters of their own.
    "cluster::",
    "slots::",
    "a_copy_that_an_aborted_slot_migration_left_behind_is_not_used",
    "a_lagging_replica_that_is_promoted_misleads_no_reader",
    "a_redis_cluster_master_that_dies_under_load_is_replaced_by_its_replica",
    "a_redis_that_is_full_demoted_or_restored_from_an_old_file_misleads_no_reader",
    "a_stale_replica_that_replaces_its_master_misleads_no_reader",
    // Alerts about queues and dead letters.
    "a_missing_queue_is_distinguished_from_an_empty_one",
    "a_missing_queue_raises_a_critical_alert_until_setup_declares_it",
    "dead_letter_counters_start_at_zero",
    // Dead letters and replays that no saver receives, or that it refuses.
    "a_body_without_an_id_that_is_dead_lettered_twice_is_one_dead_letter",
    "a_cancelled_replay_releases_its_claims_and_records_what_it_published",
    "a_collector_killed_midway_stores_every_dead_letter_and_none_twice",
    "a_failure_that_shows_only_after_retries_ends_a_replay",
    "a_replay_ends_after_one_dead_letter_if_the_cause_persists",
    "a_replay_that_fails_as_a_discarded_dead_letter_reopens_it_and_ends",
    "a_replayed_dead_letter_whose_queue_is_missing_stays_open_with_the_error",
    "dead_letters_refused_by_a_full_queue_stay_open_with_the_error",
    "dead_letters_that_cannot_be_announced_for_a_while_are_stored_and_announced_once",
    "two_concurrent_replays_publish_each_dead_letter_once",
    // Faults of RabbitMQ, of PostgreSQL, and of single messages.
    "a_node_of_a_rabbitmq_cluster_killed_and_brought_back_under_load_loses_nothing",
    "consumer_timeout::",
    "mutated::",
    "poison::",
    "queues::",
    "rabbitmq_killed_again_and_again_while_the_prefetch_is_full_makes_no_dead_letter",
    "slow::",
    "stops::",
    // A worker of no message.
    "one_more_worker_touches_six_files_builds_consumes_and_is_listed",
    // Workers that do not start.
    "a_worker_exits_if_setup_has_not_run_and_names_the_setup_command",
    "an_invalid_setting_is_named_and_no_secret_is_logged",
];

/// The names of the test programs that link the hot store, from `cargo metadata`, so that new ones are included.
pub(super) async fn programs() -> Result<Vec<String>> {
    let mut command = cargo::command(&["metadata", "--format-version=1", "--no-deps"]);
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
    Ok(that_link(&metadata, "hot-store"))
}

/// An optional dependency is linked by dependants that enable a feature.
fn that_link(metadata: &Value, name: &str) -> Vec<String> {
    let packages = || metadata["packages"].as_array().into_iter().flatten();
    let (mut linked, mut optionally) = (BTreeSet::from([name]), BTreeSet::new());
    loop {
        let before = linked.len() + optionally.len();
        for package in packages() {
            let needs = package["dependencies"].as_array().into_iter().flatten();
            for need in needs {
                let Some(needed) = need["name"].as_str() else { continue };
                let with_features = need["features"].as_array().is_some_and(|it| !it.is_empty());
                if linked.contains(needed) || with_features && optionally.contains(needed) {
                    let is_optional = need["optional"] == true;
                    let linked = if is_optional { &mut optionally } else { &mut linked };
                    linked.extend(package["name"].as_str());
                }
            }
        }
        if linked.len() + optionally.len() == before {
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
    use std::path::Path;

    use serde_json::json;
    use testkit::place::workspace;

    use super::*;

    #[test]
    fn every_name_that_is_not_run_again_exists() {
        fn read(dir: &Path, sources: &mut String) {
            for path in std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
                if path.is_dir() && !path.ends_with("target") {
                    read(&path, sources);
                } else if path.extension().is_some_and(|extension| extension == "rs") {
                    sources.push_str(&std::fs::read_to_string(path).unwrap());
                }
            }
        }
        let mut sources = String::new();
        for dir in ["crates", "tests"] {
            read(&workspace().join(dir), &mut sources);
        }
        for name in SAME_ON_BOTH {
            let defined = match name.strip_suffix("::") {
                Some(module) => format!("mod {module};"),
                None => format!("fn {name}("),
            };
            assert!(sources.contains(&defined), "no test has the name {name}");
        }
    }

    #[test]
    fn an_optional_dependency_is_linked_by_those_who_enable_a_feature() {
        let program = |name: &str| json!([{ "name": name, "kind": ["test"] }]);
        let need = |features: Value| json!([{ "name": "fixtures", "features": features }]);
        let optional = json!([{ "name": "store", "optional": true }]);
        let metadata = json!({ "packages": [
            { "name": "fixtures", "dependencies": optional, "targets": program("unit") },
            { "name": "some", "dependencies": need(json!(["servers"])), "targets": program("real") },
            { "name": "none", "dependencies": need(json!([])), "targets": program("pure") },
        ] });
        assert_eq!(that_link(&metadata, "store"), ["real"]);
    }

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
        assert_eq!(that_link(&metadata, "store"), ["golden", "real", "scenarios"]);
        assert_eq!(that_link(&metadata, "worker"), ["scenarios"]);
    }
}

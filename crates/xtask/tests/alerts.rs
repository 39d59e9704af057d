//! Alerts, their tests, their runbooks and the metrics that they read are consistent.
//!
//! Syntax, and when each rule fires, is checked by `promtool` in `cargo xtask ci`.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use metrics::{Definition, Kind, definitions};
use serde_json::Value;
use testkit::place::workspace;

/// The labels that Prometheus adds to every sample (`prometheus.yml`).
const TARGET_LABELS: [&str; 2] = ["job", "instance"];
/// Series that are not in the catalogue: one of Prometheus, one of the process collector.
const FOREIGN: [&str; 2] = ["up", "process_start_time_seconds"];

struct Alert {
    name: String,
    expression: String,
    rule: Value,
}

#[test]
fn every_alert_has_a_severity_a_summary_a_description_and_a_runbook() {
    let sections = runbooks();
    for Alert { name, rule, .. } in alerts() {
        let text = |path: &str| rule.pointer(path).and_then(Value::as_str).unwrap_or_default();
        assert!(["critical", "warning"].contains(&text("/labels/severity")), "{name}");
        assert!(!text("/annotations/summary").is_empty(), "{name} has no summary");
        assert!(!text("/annotations/description").is_empty(), "{name} has no description");
        let url = format!("docs/operations.md#{}", name.to_lowercase());
        assert_eq!(text("/annotations/runbook_url"), url, "{name}");
        assert!(sections.contains(&name), "docs/operations.md has no section `### {name}`");
    }
}

#[test]
fn every_runbook_and_every_inhibition_names_an_existing_alert() {
    let names: BTreeSet<String> = alerts().into_iter().map(|alert| alert.name).collect();
    let orphans: Vec<_> = runbooks().difference(&names).cloned().collect();
    assert!(
        orphans.is_empty(),
        "docs/operations.md explains alerts that do not exist: {orphans:?}"
    );
    let routes = std::fs::read_to_string(workspace().join("deploy/alertmanager/alertmanager.yml"));
    let routes = routes.unwrap();
    let named: BTreeSet<String> =
        words(&routes).filter(|word| word.starts_with("Verbatim")).map(str::to_owned).collect();
    let unknown_keys: Vec<_> = named.iter().filter(|it| !names.contains(*it)).collect();
    assert!(named.len() > 5 && unknown_keys.is_empty(), "{unknown_keys:?} of {named:?}");
}

#[test]
fn every_alert_has_a_test_in_which_it_fires_and_one_in_which_it_does_not() {
    let mut seen: BTreeMap<String, BTreeSet<bool>> = BTreeMap::new();
    for file in yaml_files("deploy/prometheus/tests") {
        for test in file["tests"].as_array().unwrap() {
            for expected in test["promql_expr_test"].as_array().unwrap() {
                let expression = expected["expr"].as_str().unwrap();
                let name = expression.split('"').nth(1).unwrap().to_owned();
                let fires = !expected["exp_samples"].as_array().unwrap().is_empty();
                seen.entry(name).or_default().insert(fires);
            }
        }
    }
    for Alert { name, .. } in alerts() {
        let both = BTreeSet::from([true, false]);
        assert_eq!(
            seen.remove(&name),
            Some(both),
            "{name} needs a test in which it fires and one in which it does not"
        );
    }
    assert!(seen.is_empty(), "tests of alerts that do not exist: {seen:?}");
}

#[test]
fn every_metric_and_label_of_a_rule_is_in_the_catalogue() {
    let labels: BTreeSet<&str> = definitions()
        .iter()
        .flat_map(|definition| definition.labels.iter().map(|label| label.name))
        .chain(TARGET_LABELS)
        .collect();
    for Alert { name, expression, .. } in alerts() {
        let mut catalogued = 0;
        for (metric, selector) in selectors(&expression) {
            if FOREIGN.contains(&metric) {
                continue;
            }
            let definition = definition(metric)
                .unwrap_or_else(|| panic!("{name} reads {metric}, which no process exports"));
            catalogued += 1;
            for matcher in selector.into_iter().flat_map(matchers) {
                assert_can_match(&name, definition, &matcher);
            }
        }
        let alive = expression.contains("up{");
        assert!(
            catalogued > 0 || alive || expression.contains(FOREIGN[1]),
            "{name} reads no metric"
        );
        for label in grouped_by(&expression) {
            assert!(labels.contains(label), "{name} groups by {label}, which no metric has");
        }
    }
}

#[test]
fn every_essential_metric_is_read_by_an_alert() {
    let read: BTreeSet<String> = alerts()
        .iter()
        .flat_map(|alert| selectors(&alert.expression).into_iter().map(|(it, _)| it.to_owned()))
        .collect();
    for name in [
        "verbatim_dead_letters",
        "verbatim_queue_messages",
        "verbatim_queue_consumers",
        "verbatim_queue_exists",
        "verbatim_deliveries_total",
        "verbatim_publishes_total",
        "verbatim_acks_lost_total",
        "verbatim_dependency_up",
        "verbatim_ready",
        "verbatim_close_lag_seconds",
        "verbatim_counted_timestamp_seconds",
        "up",
    ] {
        assert!(read.contains(name), "no alert reads {name}");
    }
}

fn alerts() -> Vec<Alert> {
    let mut alerts = Vec::new();
    for file in yaml_files("deploy/prometheus/rules") {
        for group in file["groups"].as_array().unwrap() {
            for rule in group["rules"].as_array().unwrap() {
                let text = |name: &str| rule[name].as_str().unwrap().to_owned();
                alerts.push(Alert {
                    name: text("alert"),
                    expression: text("expr"),
                    rule: rule.clone(),
                });
            }
        }
    }
    assert!(alerts.len() > 15, "only {} rules were found", alerts.len());
    alerts
}

fn yaml_files(folder: &str) -> Vec<Value> {
    let folder = workspace().join(folder);
    let entries = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|file| read_yaml(&file)).collect()
}

fn read_yaml(file: &Path) -> Value {
    let text = std::fs::read_to_string(file).unwrap();
    serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// The alerts that have a section in the runbook.
fn runbooks() -> BTreeSet<String> {
    let text = std::fs::read_to_string(workspace().join("docs/operations.md")).unwrap();
    let sections = text.lines().filter_map(|line| line.strip_prefix("### Verbatim"));
    sections.map(|rest| format!("Verbatim{rest}")).collect()
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':')
}

/// Every series that an expression reads, with its selector.
fn selectors(expression: &str) -> Vec<(&str, Option<&str>)> {
    let mut found = Vec::new();
    let mut rest = expression;
    // Strings are label values: skipped.
    while let Some(start) = rest.find(|c: char| c.is_ascii_alphabetic() || c == '"') {
        rest = &rest[start..];
        if let Some(string) = rest.strip_prefix('"') {
            rest = &string[string.find('"').unwrap() + 1..];
            continue;
        }
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        rest = after;
        if word.starts_with("verbatim_") || FOREIGN.contains(&word) {
            let braces = after.strip_prefix('{').map(|inner| &inner[..closing(inner)]);
            rest = &after[braces.map_or(0, |braces| braces.len() + 2)..];
            found.push((word, braces));
        }
    }
    found
}

/// The index of the closing brace; braces in strings are skipped.
fn closing(text: &str) -> usize {
    let mut in_string = false;
    let end = text.find(|c: char| {
        in_string ^= c == '"';
        c == '}' && !in_string
    });
    end.unwrap()
}

struct Matcher {
    label: String,
    is_pattern: bool,
    value: String,
}

fn matchers(braces: &str) -> Vec<Matcher> {
    // `label="value"`: no value contains a quotation mark.
    let parts: Vec<&str> = braces.split('"').collect();
    let pairs = parts.chunks_exact(2);
    pairs
        .map(|pair| Matcher {
            label: words(pair[0]).find(|word| !word.is_empty()).unwrap().to_owned(),
            is_pattern: pair[0].contains('~'),
            value: pair[1].to_owned(),
        })
        .collect()
}

fn definition(metric: &str) -> Option<&'static Definition> {
    let all = definitions();
    let named = |name: &str| all.iter().copied().find(|definition| definition.name == name);
    named(metric).or_else(|| {
        let parts = ["_bucket", "_sum", "_count"];
        let base = parts.iter().find_map(|part| metric.strip_suffix(part))?;
        named(base).filter(|definition| definition.kind == Kind::Histogram)
    })
}

/// Checks that the label exists, and that its values can occur.
fn assert_can_match(alert: &str, definition: &Definition, matcher: &Matcher) {
    let Matcher { label, is_pattern, value } = matcher;
    if TARGET_LABELS.contains(&label.as_str()) {
        return;
    }
    let found = definition.labels.iter().find(|it| it.name == label);
    let found = found.unwrap_or_else(|| panic!("{alert}: {} has no {label}", definition.name));
    let Some(values) = found.values else { return };
    let wanted = if *is_pattern { value.split('|').collect() } else { vec![value.as_str()] };
    for wanted in wanted {
        assert!(
            values.contains(&wanted),
            "{alert}: {label} of {} is never {wanted}",
            definition.name
        );
    }
}

/// The labels in `by (…)` and `on (…)`.
fn grouped_by(expression: &str) -> Vec<&str> {
    let lists = ["by (", "on ("].iter().flat_map(|word| {
        expression.match_indices(word).map(|(at, _)| {
            let list = &expression[at + word.len()..];
            &list[..list.find(')').unwrap()]
        })
    });
    lists.flat_map(|list| list.split(',').map(str::trim)).collect()
}

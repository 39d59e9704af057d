//! `docs/metrics.md` is generated from the catalogue that the code uses.

use std::path::Path;

use metrics::{Counter, Definition, Gauge, Size, Timing};

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "the variable is a switch for the person who runs the test"
)]
fn the_documentation_page_is_what_the_catalogue_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/metrics.md");
    let generated = page_of_the_catalogue();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, generated).expect("docs/metrics.md is writable");
        return;
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == generated,
        "docs/metrics.md is out of date: run `UPDATE_DOCS=1 cargo test -p metrics` and commit it"
    );
}

#[test]
fn the_page_names_the_metrics_that_alerts_and_autoscalers_use() {
    let page = page_of_the_catalogue();
    for name in [
        "verbatim_queue_messages{queue,state}",
        "verbatim_queue_consumers{queue}",
        "verbatim_dead_letters{queue,reason}",
        "verbatim_messages_saved_total",
        "verbatim_deliveries_total{queue,outcome}",
        "verbatim_retries_total{queue,class}",
        "verbatim_batch_seconds",
        "verbatim_dependency_up{dependency}",
        "verbatim_conversations_active",
        "verbatim_close_lag_seconds",
        "verbatim_acks_lost_total",
        "verbatim_messages_without_identity_total",
    ] {
        assert!(page.contains(name), "{name} is missing");
    }
}

/// The page for operators.
fn page_of_the_catalogue() -> String {
    let mut page = String::from(
        "# Metrics\n\n\
         <!-- Generated from crates/metrics/src by `UPDATE_DOCS=1 cargo test -p metrics`. -->\n\n\
         Every worker serves these metrics over HTTP at `/metrics` of its `VERBATIM_LISTEN` address (port 9464 by\n\
         default), together with the operating system's metrics of the process (`process_cpu_seconds_total`,\n\
         `process_resident_memory_bytes`, `process_open_fds`, …). No metric has a tenant or a conversation as a label.\n\n\
         | scope | metrics | in rules |\n\
         |---|---|---|\n\
         | shared: every replica of the dead-letter-worker exports the same value | `verbatim_queue_messages{state=\"ready\"}`, \
         `verbatim_queue_exists`, `verbatim_queue_consumers`, `verbatim_dead_letters`, `verbatim_conversations_active`, \
         `verbatim_close_lag_seconds` | `max by (…)`, never `sum` |\n\
         | one process | all others | `sum by (…)` for counters and numbers of messages |\n\n\
         Labels that occur often: `queue` is the name of a queue of RabbitMQ, `dependency` a server that the process needs. What to \
         do with each reason of a dead letter is in [VerbatimDeadLettersPresent](operations.md#verbatimdeadletterspresent).\n",
    );
    let kinds = [
        (
            "Counters",
            "Counters start at 0 with the process and only grow: use `rate()` or `increase()`.\nA queue's counters exist once the process consumes the queue.",
            Counter::DEFINITIONS,
        ),
        (
            "Gauges",
            "The last value that was set. A gauge that was never set is absent, not 0.",
            Gauge::DEFINITIONS,
        ),
        ("Histograms of durations", "In seconds.", Timing::DEFINITIONS),
        ("Histograms of sizes", "Numbers of things handled together.", Size::DEFINITIONS),
    ];
    for (title, note, definitions) in kinds {
        page.push_str(&format!("\n## {title}\n\n{note}\n"));
        for definition in definitions {
            describe(&mut page, definition);
        }
    }
    page
}

fn describe(page: &mut String, definition: &Definition) {
    let labels: Vec<&str> = definition.labels.iter().map(|label| label.name).collect();
    let labels = match labels.as_slice() {
        [] => String::new(),
        labels => format!("{{{}}}", labels.join(",")),
    };
    let Definition { name, unit, help, .. } = definition;
    page.push_str(&format!("\n### `{name}{labels}`\n\n{} Unit: {unit}.\n", help.trim()));
    for label in definition.labels {
        let Some(values) = label.values else { continue };
        if label.meanings.is_empty() {
            page.push_str(&format!("\n- `{}`: `{}`\n", label.name, values.join("`, `")));
            continue;
        }
        page.push_str(&format!("\n| `{}` | |\n|---|---|\n", label.name));
        for (value, meaning) in values.iter().zip(label.meanings) {
            let meaning = meaning.trim();
            page.push_str(&format!("| `{value}` | {} |\n", meaning.trim_end_matches('.')));
        }
    }
    if !definition.buckets.is_empty() {
        let bounds: Vec<String> = definition.buckets.iter().map(ToString::to_string).collect();
        page.push_str(&format!("\n- buckets up to {}\n", bounds.join(", ")));
    }
}

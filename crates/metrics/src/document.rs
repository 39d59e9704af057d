//! `docs/metrics.md`, written from the catalogue.

use crate::{Counter, Definition, Gauge, Size, Timing};

/// The page for operators.
#[must_use]
pub fn markdown() -> String {
    let mut page = String::from(
        "# Metrics\n\n\
         <!-- Generated from crates/metrics/src/catalogue.rs by `UPDATE_DOCS=1 cargo test -p metrics`. -->\n\n\
         Every process serves these at `/metrics` of its `VERBATIM_LISTEN` address, together with the\n\
         operating system's view of it (`process_cpu_seconds_total`, `process_resident_memory_bytes`,\n\
         `process_open_fds`, …). No metric has a tenant or a conversation as a label.\n\n\
         Gauges of shared things (queues, dead letters, active conversations, close lag) are exported\n\
         by every replica of the statistics worker alike: rules use `max by (…)`, never `sum`.\n",
    );
    let kinds = [
        (
            "Counters",
            "They start at 0 with the process and only grow: use `rate()` or `increase()`.\nThose of a queue exist from the moment at which the process consumes it.",
            Counter::DEFINITIONS,
        ),
        (
            "Gauges",
            "The last value that was set. One that was never set is absent, not 0.",
            Gauge::DEFINITIONS,
        ),
        ("Histograms of durations", "In seconds.", Timing::DEFINITIONS),
        ("Histograms of sizes", "How many there were at once.", Size::DEFINITIONS),
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
        if let Some(values) = label.values {
            page.push_str(&format!("\n- `{}`: `{}`\n", label.name, values.join("`, `")));
        }
    }
    if !definition.buckets.is_empty() {
        let bounds: Vec<String> = definition.buckets.iter().map(ToString::to_string).collect();
        page.push_str(&format!("\n- buckets up to {}\n", bounds.join(", ")));
    }
}

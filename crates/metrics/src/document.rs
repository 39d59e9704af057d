//! `docs/metrics.md`, written from the catalogue.

use crate::{Counter, Definition, Gauge, Size, Timing};

/// The page for operators.
#[must_use]
pub fn markdown() -> String {
    let mut page = String::from(
        "# Metrics\n\n\
         <!-- Generated from crates/metrics/src/catalogue.rs by `UPDATE_DOCS=1 cargo test -p metrics`. -->\n\n\
         Every process serves these metrics at `/metrics` of its `VERBATIM_LISTEN` address, and the operating\n\
         system's metrics of the process (`process_cpu_seconds_total`, `process_resident_memory_bytes`,\n\
         `process_open_fds`, …). No metric has a tenant or a conversation as a label.\n\n\
         Every replica of the statistics worker exports the gauges of what the fleet shares (queues,\n\
         dead letters, active conversations, close lag), all with the same values: rules use\n\
         `max by (…)`, never `sum`.\n",
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
        if let Some(values) = label.values {
            page.push_str(&format!("\n- `{}`: `{}`\n", label.name, values.join("`, `")));
        }
    }
    if !definition.buckets.is_empty() {
        let bounds: Vec<String> = definition.buckets.iter().map(ToString::to_string).collect();
        page.push_str(&format!("\n- buckets up to {}\n", bounds.join(", ")));
    }
}

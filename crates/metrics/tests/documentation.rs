//! `docs/metrics.md` is generated from the catalogue that the code uses.

use std::path::Path;

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "the variable is a switch for the person who runs the test"
)]
fn the_documentation_page_is_what_the_catalogue_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/metrics.md");
    let generated = metrics::markdown();
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
    let page = metrics::markdown();
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

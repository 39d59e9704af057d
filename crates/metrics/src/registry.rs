//! The metric values of one process.
//!
//! Recording never fails and never blocks for long: a look-up under a read lock, then an atomic add.
//! Hot loops record once per batch with a number, not once per message.

use std::sync::Arc;
use std::time::Duration;

use prometheus::process_collector::ProcessCollector;
use prometheus::{
    GaugeVec, HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry, TextEncoder,
};

use crate::{Counter, Definition, Gauge, LabelDefinition, Size, Timing};

/// The metrics of one process. Clones share their values.
#[derive(Clone)]
pub struct Metrics(Arc<Families>);

struct Families {
    registry: Registry,
    counters: Vec<IntCounterVec>,
    gauges: Vec<GaugeVec>,
    timings: Vec<HistogramVec>,
    sizes: Vec<HistogramVec>,
}

impl Metrics {
    /// The content type of [`Self::render`]'s text.
    pub const CONTENT_TYPE: &'static str = "text/plain; version=0.0.4; charset=utf-8";

    /// A new registry with every metric of the catalogue and the operating system's metrics of this
    /// process (`process_*`). Counters whose labels form a closed set start at 0.
    #[must_use]
    pub fn new() -> Self {
        let registry = Registry::new();
        let families = Families {
            counters: families(&registry, Counter::DEFINITIONS, |definition, labels| {
                IntCounterVec::new(Opts::new(definition.name, definition.help.trim()), labels)
            }),
            gauges: families(&registry, Gauge::DEFINITIONS, |definition, labels| {
                GaugeVec::new(Opts::new(definition.name, definition.help.trim()), labels)
            }),
            timings: families(&registry, Timing::DEFINITIONS, histogram),
            sizes: families(&registry, Size::DEFINITIONS, histogram),
            registry,
        };
        #[cfg(target_os = "linux")]
        register(&families.registry, ProcessCollector::for_self());
        let metrics = Self(Arc::new(families));
        metrics.start_at_zero(None);
        metrics
    }

    /// Creates the counters of a queue at 0, so that Prometheus sees their first increase. Every
    /// consumer of a queue calls it once.
    pub fn start_queue(&self, queue: &'static str) {
        self.start_at_zero(Some(queue));
    }

    /// Adds to a counter.
    pub fn add(&self, counter: Counter, n: u64) {
        let family = &self.0.counters[counter.family()];
        counter.with_labels(|labels| family.with_label_values(labels).inc_by(n));
    }

    /// Sets a gauge.
    pub fn set(&self, gauge: Gauge, value: f64) {
        let family = &self.0.gauges[gauge.family()];
        gauge.with_labels(|labels| family.with_label_values(labels).set(value));
    }

    /// Records how long something took.
    pub fn observe(&self, timing: Timing, duration: Duration) {
        let family = &self.0.timings[timing.family()];
        timing.with_labels(|labels| {
            family.with_label_values(labels).observe(duration.as_secs_f64());
        });
    }

    /// Records a number of things handled together.
    pub fn measure(&self, size: Size, n: usize) {
        let family = &self.0.sizes[size.family()];
        // Exact up to 2^53, far above any batch.
        size.with_labels(|labels| family.with_label_values(labels).observe(n as f64));
    }

    /// The value of a counter, for tests and for the summary when a process ends.
    #[must_use]
    pub fn count(&self, counter: Counter) -> u64 {
        let family = &self.0.counters[counter.family()];
        counter.with_labels(|labels| family.with_label_values(labels).get())
    }

    /// All metrics in Prometheus' text exposition format, version 0.0.4.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = String::new();
        for family in self.0.registry.gather() {
            let rendered = text.len();
            if TextEncoder::new().encode_utf8(std::slice::from_ref(&family), &mut text).is_err() {
                // A family that cannot be rendered must not hide the others.
                text.truncate(rendered);
            }
        }
        text
    }

    fn start_at_zero(&self, queue: Option<&'static str>) {
        for (definition, family) in Counter::DEFINITIONS.iter().zip(&self.0.counters) {
            let of_a_queue = definition.labels.iter().any(|label| label.name == "queue");
            if of_a_queue == queue.is_some() {
                for values in combinations(definition.labels, queue) {
                    family.with_label_values(&values);
                }
            }
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

/// Every combination of label values, or none if a set is open. `queue` is the one value of that label.
fn combinations(labels: &[LabelDefinition], queue: Option<&'static str>) -> Vec<Vec<&'static str>> {
    labels.iter().fold(vec![Vec::new()], |rows, label| {
        let queue = queue.as_slice();
        let values = if label.name == "queue" { queue } else { label.values.unwrap_or_default() };
        rows.iter()
            .flat_map(|row| {
                values.iter().map(move |value| row.iter().copied().chain([*value]).collect())
            })
            .collect()
    })
}

fn histogram(definition: &Definition, labels: &[&str]) -> prometheus::Result<HistogramVec> {
    let options = HistogramOpts::new(definition.name, definition.help.trim());
    HistogramVec::new(options.buckets(definition.buckets.to_vec()), labels)
}

#[expect(clippy::expect_used, reason = "the catalogue is constant; a test makes a registry of it")]
fn families<C: prometheus::core::Collector + Clone + 'static>(
    registry: &Registry,
    definitions: &[Definition],
    make: impl Fn(&Definition, &[&str]) -> prometheus::Result<C>,
) -> Vec<C> {
    definitions
        .iter()
        .map(|definition| {
            let labels: Vec<&str> = definition.labels.iter().map(|label| label.name).collect();
            let family = make(definition, &labels).expect("a valid name and labels");
            register(registry, family.clone());
            family
        })
        .collect()
}

#[expect(clippy::expect_used, reason = "the catalogue is constant; a test makes a registry of it")]
fn register(registry: &Registry, collector: impl prometheus::core::Collector + 'static) {
    registry.register(Box::new(collector)).expect("unique names");
}

#[cfg(test)]
mod tests {
    use crate::RetryClass;
    use domain::failure::{DeadLetterReason, Dependency};

    use super::*;
    use crate::{DeadLetterState, HotRead, QueueState};

    fn lines(metrics: &Metrics, prefix: &str) -> Vec<String> {
        let text = metrics.render();
        text.lines().filter(|line| line.starts_with(prefix)).map(str::to_owned).collect()
    }

    #[test]
    fn counters_over_closed_label_sets_exist_at_zero_from_the_start() {
        let metrics = Metrics::new();
        assert_eq!(
            lines(&metrics, "verbatim_messages_saved_total"),
            ["verbatim_messages_saved_total 0"]
        );
        assert_eq!(
            lines(&metrics, "verbatim_hot_reads_total"),
            [
                "verbatim_hot_reads_total{result=\"hit\"} 0",
                "verbatim_hot_reads_total{result=\"miss\"} 0",
                "verbatim_hot_reads_total{result=\"stale\"} 0",
                "verbatim_hot_reads_total{result=\"unavailable\"} 0",
            ]
        );
    }

    #[test]
    fn a_queues_counters_exist_at_zero_once_it_is_consumed() {
        let metrics = Metrics::new();
        assert_eq!(lines(&metrics, "verbatim_retries_total"), Vec::<String>::new());
        metrics.start_queue("q");
        assert_eq!(
            lines(&metrics, "verbatim_retries_total"),
            [
                "verbatim_retries_total{class=\"retryable\",queue=\"q\"} 0",
                "verbatim_retries_total{class=\"unavailable\",queue=\"q\"} 0",
            ]
        );
    }

    #[test]
    fn a_gauge_that_was_never_set_is_absent_rather_than_zero() {
        let metrics = Metrics::new();
        assert_eq!(lines(&metrics, "verbatim_dependency_up"), Vec::<String>::new());
        assert_eq!(lines(&metrics, "verbatim_conversations_active"), Vec::<String>::new());
        metrics.set(Gauge::DependencyUp { dependency: Dependency::Redis }, 1.0);
        metrics.set(Gauge::ConversationsActive, 7.0);
        assert_eq!(
            lines(&metrics, "verbatim_dependency_up"),
            ["verbatim_dependency_up{dependency=\"redis\"} 1"]
        );
        assert_eq!(
            lines(&metrics, "verbatim_conversations_active"),
            ["verbatim_conversations_active 7"]
        );
    }

    #[test]
    fn clones_share_their_counts_and_two_registries_do_not() {
        let (one, other) = (Metrics::new(), Metrics::new());
        let counter = Counter::Retries { queue: "q", class: RetryClass::Retryable };
        one.clone().add(counter, 2);
        one.add(counter, 1);
        assert_eq!((one.count(counter), other.count(counter)), (3, 0));
    }

    #[test]
    fn labels_come_in_the_order_of_their_names_not_of_their_values() {
        let metrics = Metrics::new();
        let state = QueueState::Ready;
        metrics.set(Gauge::QueueMessages { queue: "conversation.save_message", state }, 12.0);
        let reason = DeadLetterState::Stored(DeadLetterReason::TooLarge);
        metrics.set(Gauge::DeadLetters { queue: "q", reason }, 1.0);
        assert_eq!(
            lines(&metrics, "verbatim_queue_messages"),
            ["verbatim_queue_messages{queue=\"conversation.save_message\",state=\"ready\"} 12"]
        );
        assert_eq!(
            lines(&metrics, "verbatim_dead_letters{"),
            ["verbatim_dead_letters{queue=\"q\",reason=\"too_large\"} 1"]
        );
    }

    #[test]
    fn histograms_record_seconds_and_messages() {
        let metrics = Metrics::new();
        metrics.observe(Timing::Batch { queue: "q" }, Duration::from_millis(20));
        metrics.measure(Size::Batch { queue: "q" }, 500);
        let text = metrics.render();
        for line in [
            "verbatim_batch_seconds_bucket{queue=\"q\",le=\"0.01\"} 0",
            "verbatim_batch_seconds_bucket{queue=\"q\",le=\"0.025\"} 1",
            "verbatim_batch_seconds_sum{queue=\"q\"} 0.02",
            "verbatim_batch_messages_bucket{queue=\"q\",le=\"256\"} 0",
            "verbatim_batch_messages_bucket{queue=\"q\",le=\"512\"} 1",
            "verbatim_batch_messages_count{queue=\"q\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
        }
    }

    #[test]
    fn the_process_exports_its_memory_and_descriptors() {
        let text = Metrics::new().render();
        assert!(text.contains("process_resident_memory_bytes"), "{text}");
        assert!(text.contains("process_open_fds"), "{text}");
    }

    #[test]
    fn recording_every_metric_succeeds() {
        let metrics = Metrics::new();
        metrics.add(Counter::HotReads { result: HotRead::Hit }, 1);
        metrics.set(Gauge::BuildInfo { process: "p", version: "1" }, 1.0);
        metrics.observe(Timing::Publish, Duration::from_secs(1));
        assert!(metrics.render().contains("verbatim_build_info{process=\"p\",version=\"1\"} 1"));
    }
}

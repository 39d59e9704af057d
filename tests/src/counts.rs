//! A worker's metrics, as read from `/metrics`.

use testkit::fleet::Worker;
use testkit::wait::eventually;

use crate::LIMIT;

/// The samples of one response of `/metrics`.
#[derive(Debug)]
pub struct Counts(String);

impl Counts {
    /// Reads the metrics of a worker.
    ///
    /// # Panics
    /// When the worker does not respond with status 200.
    pub async fn of(worker: &Worker) -> Self {
        Self::try_of(worker).await.expect("/metrics")
    }

    /// Reads the metrics of a worker that may not respond.
    ///
    /// # Errors
    /// The body of a response with another status, or the connection's error.
    pub async fn try_of(worker: &Worker) -> Result<Self, String> {
        match worker.get("/metrics").await {
            Ok(response) if response.status == 200 => Ok(Self(response.body)),
            Ok(response) => Err(response.body),
            Err(error) => Err(format!("{error:#}")),
        }
    }

    /// The sum of all samples of a metric that have these labels; 0 without any.
    ///
    /// # Panics
    /// When a sample is not a number, or the product has no such label or label value.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        check_labels(name, labels);
        let carries = |sample: &str| {
            labels.iter().all(|(name, value)| sample.contains(&format!("{name}=\"{value}\"")))
        };
        let samples = self.0.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let (labels, value) = rest.rsplit_once(' ')?;
            let whole_name = labels.is_empty() || labels.starts_with('{');
            (whole_name && carries(labels)).then(|| value.parse::<f64>().expect("a number"))
        });
        samples.sum()
    }

    /// Whether the metric has samples.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.0
            .lines()
            .any(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])))
    }

    /// Waits until a sum is at least `least`, and returns the samples that show it.
    ///
    /// # Panics
    /// When it does not within [`LIMIT`].
    pub async fn reach(worker: &Worker, name: &str, labels: &[(&str, &str)], least: f64) -> Self {
        let what = format!("{name} {labels:?} of {} to reach {least}", worker.name());
        eventually(what, LIMIT, async || {
            let counts = Self::of(worker).await;
            let sum = counts.sum(name, labels);
            if sum >= least { Ok(counts) } else { Err(sum.to_string()) }
        })
        .await
    }
}

/// Checks the labels of the product's metrics: a sum over a misspelt label is 0, and a test that expects 0
/// would prove nothing.
fn check_labels(name: &str, labels: &[(&str, &str)]) {
    let family = name.strip_suffix("_count").or_else(|| name.strip_suffix("_sum"));
    let definitions = metrics::definitions();
    let find = |name: &str| definitions.iter().find(|definition| definition.name == name);
    let Some(definition) = find(name).or_else(|| family.and_then(find)) else { return };
    for (label, value) in labels {
        let known = definition.labels.iter().find(|it| it.name == *label);
        let known = known.unwrap_or_else(|| panic!("{name} has no label {label}"));
        let is_known = known.values.is_none_or(|values| values.contains(value));
        assert!(is_known, "the label {label} of {name} has no value {value}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_takes_the_samples_of_one_metric_that_carry_the_labels() {
        let text = "# HELP a_total of a\na_total{queue=\"q\",outcome=\"x\"} 2\n\
                    a_total{queue=\"q\",outcome=\"y\"} 3\na_total_else{queue=\"q\"} 7\nb_total 5\n";
        let counts = Counts(text.to_owned());
        assert_eq!(counts.sum("a_total", &[]), 5.0);
        assert_eq!(counts.sum("a_total", &[("outcome", "y"), ("queue", "q")]), 3.0);
        assert_eq!(counts.sum("b_total", &[]), 5.0);
        assert_eq!(counts.sum("c_total", &[]), 0.0);
        assert!(counts.has("a_total") && !counts.has("a") && !counts.has("c_total"));
    }

    #[test]
    #[should_panic(expected = "the label outcome of verbatim_deliveries_total has no value lost")]
    fn a_sum_over_an_unknown_label_value_fails() {
        let counts = Counts(String::new());
        assert_eq!(counts.sum("verbatim_deliveries_total", &[("outcome", "lost")]), 0.0);
    }
}

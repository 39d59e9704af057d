//! Log lines on standard error: JSON for machines, one line of text for people.
//!
//! Every line contains the process and its version. A panic is logged as a line too, and counted.

use std::fmt;
use std::io::IsTerminal as _;

use anyhow::Context as _;
use metrics::{Counter, Metrics};
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

use crate::process::VERSION;
use crate::settings::{LogFormat, LogSettings};
use crate::tasks::payload_text;
use domain::fleet::Process;

/// Sends the log lines of this process to standard error. Call it once per process: a second call fails.
pub(crate) fn init(process: Process, settings: &LogSettings) -> anyhow::Result<()> {
    let terminal = std::io::stderr().is_terminal();
    let pretty = match settings.log_format {
        LogFormat::Auto => terminal,
        LogFormat::Json => false,
        LogFormat::Pretty => true,
    };
    let filter = EnvFilter::try_new(directives(&settings.log_level))?;
    let subscriber: Box<dyn Subscriber + Send + Sync> = if pretty {
        Box::new(pretty_lines(process, filter, terminal, std::io::stderr))
    } else {
        Box::new(json_lines(process, filter, std::io::stderr))
    };
    tracing::subscriber::set_global_default(subscriber).context("logging is already set up")
}

/// Log targets of clients that are off unless a directive names them, because their lines contain secrets
/// or message bodies: the AMQP client logs returned messages with their bodies, and the PostgreSQL
/// client logs the values of unknown URL parameters, such as `sslpassword`. The fleet's own lines report
/// the same events.
const OFF_BY_DEFAULT: [(&str, &str); 2] = [("lapin", "off"), ("sqlx_postgres::options", "off")];

fn directives(level: &str) -> String {
    OFF_BY_DEFAULT
        .iter()
        .filter(|(target, _)| !level.contains(target))
        .fold(level.to_owned(), |directives, (target, off)| format!("{directives},{target}={off}"))
}

/// Logs every panic as one line with its location, and counts it.
pub(crate) fn catch_panics(metrics: Metrics) {
    std::panic::set_hook(Box::new(move |panic| {
        metrics.add(Counter::Panics, 1);
        let location = panic.location().map_or_else(|| "unknown".to_owned(), ToString::to_string);
        let reason = payload_text(panic.payload());
        let thread = std::thread::current().name().unwrap_or("unnamed").to_owned();
        tracing::error!(location, thread, reason, "panic at {location}: {reason}");
    }));
}

fn json_lines<W>(process: Process, filter: EnvFilter, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let json = tracing_subscriber::fmt::format().json().flatten_event(true);
    // Process names and versions contain no character that JSON escapes.
    let stamp = format!(r#"{{"process":"{}","version":"{VERSION}","#, process.name());
    let lines = tracing_subscriber::fmt().json().with_env_filter(filter).with_writer(writer);
    lines.event_format(Stamped { inner: json, replaces: "{", stamp }).finish()
}

fn pretty_lines<W>(
    process: Process,
    filter: EnvFilter,
    terminal: bool,
    writer: W,
) -> impl Subscriber + Send + Sync
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let text = tracing_subscriber::fmt::format().compact().with_ansi(terminal);
    let stamp = format!("{} {VERSION} ", process.name());
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(terminal);
    lines.with_writer(writer).event_format(Stamped { inner: text, replaces: "", stamp }).finish()
}

/// A format whose lines begin with process and version.
struct Stamped<F> {
    inner: F,
    /// The beginning of the inner format's lines, which the stamp replaces.
    replaces: &'static str,
    stamp: String,
}

impl<S, N, F> FormatEvent<S, N> for Stamped<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'w> FormatFields<'w> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut line = String::new();
        let inner = Writer::new(&mut line);
        self.inner.format_event(context, inner, event)?;
        writer.write_str(&self.stamp)?;
        writer.write_str(line.strip_prefix(self.replaces).unwrap_or(&line))
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no panic").extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Captured {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().expect("no panic").clone()).expect("UTF-8")
        }
    }

    fn filter() -> EnvFilter {
        EnvFilter::new("info")
    }

    #[test]
    fn clients_that_log_secrets_or_bodies_are_off_unless_a_directive_names_them() {
        assert_eq!(directives("debug"), "debug,lapin=off,sqlx_postgres::options=off");
        let named = "info,lapin=warn,sqlx_postgres::options=warn";
        assert_eq!(directives(named), named);
    }

    #[test]
    fn a_json_line_contains_process_version_level_message_and_fields() {
        let captured = Captured::default();
        let writer = captured.clone();
        let subscriber =
            json_lines(domain::fleet::STATISTICS_WORKER, filter(), move || writer.clone());
        tracing::subscriber::with_default(subscriber, || {
            let span = tracing::info_span!("batch", queue = "q");
            let _inside = span.enter();
            tracing::warn!(messages = 3, "held \"back\"");
            tracing::debug!("below the level");
        });
        let text = captured.text();
        assert_eq!(text.lines().count(), 1, "{text}");
        let line: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(line["process"], "statistics-worker");
        assert_eq!(line["version"], VERSION);
        assert_eq!(line["level"], "WARN");
        assert_eq!(line["message"], "held \"back\"");
        assert_eq!(line["messages"], 3);
        assert_eq!(line["span"]["queue"], "q");
        assert!(line["timestamp"].as_str().is_some_and(|time| time.ends_with('Z')), "{line}");
    }

    #[test]
    fn a_pretty_line_starts_with_the_process_and_has_colours_only_on_a_terminal() {
        let captured = Captured::default();
        let writer = captured.clone();
        let subscriber =
            pretty_lines(domain::fleet::VERBATIM, filter(), false, move || writer.clone());
        tracing::subscriber::with_default(subscriber, || tracing::info!(port = 1, "ready"));
        let text = captured.text();
        assert!(text.starts_with(&format!("verbatim {VERSION} ")), "{text}");
        assert!(text.contains("INFO") && text.contains("ready port=1"), "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
    }
}

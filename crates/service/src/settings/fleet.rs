//! Settings of the workers: servers, consumers, closing, background work. They are allowed at the top level
//! of the file.

use std::sync::LazyLock;
use std::time::Duration;

use domain::failure_policy::{HOLD_LIMIT, STALL_LIMIT};

use super::groups::{AmqpUserSettings, ConnectionSettings, DurabilitySettings};
use super::values::{bytes, duration, positive_duration, share};

/// The connections to the three servers, and their timeouts.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Servers")]
pub struct StoreSettings {
    /// Their URLs.
    #[command(flatten)]
    pub connections: ConnectionSettings,

    /// What PostgreSQL must promise.
    #[command(flatten)]
    pub durability: DurabilitySettings,

    /// Maximum number of connections to PostgreSQL. At least one for each batch in flight and two more. Slow messages
    /// take up to two more for each queue
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(2..))]
    pub database_connections: u32,

    /// Timeout of one transaction, including the wait for a connection. Without an answer, and if a test write
    /// fails too, PostgreSQL counts as unavailable
    #[arg(long, default_value = "10s", value_name = "DURATION", value_parser = positive_duration)]
    pub database_timeout: Duration,

    /// Timeout of a statement that waits for a row lock. After it the batch is split; a message that is
    /// locked by itself goes to the slow queue
    #[arg(long, default_value = "2s", value_name = "DURATION", value_parser = positive_duration)]
    pub database_lock_timeout: Duration,

    /// Timeout of a Redis reply. After it Redis counts as unavailable
    #[arg(long, default_value = "1s", value_name = "DURATION", value_parser = positive_duration)]
    pub redis_timeout: Duration,

    /// How long a hot copy stays in Redis after its last message or load. PostgreSQL keeps its messages
    #[arg(long, default_value = "24h", value_name = "DURATION", value_parser = positive_duration)]
    pub hot_expiry: Duration,
}

/// The defaults that the failure policy has, as they are written in settings.
static HOLD: LazyLock<String> = LazyLock::new(|| written(HOLD_LIMIT));
static STALL: LazyLock<String> = LazyLock::new(|| written(STALL_LIMIT));

fn written(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

/// Batches, limits and timeouts of a consumer.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Consuming")]
pub struct ConsumerSettings {
    /// Maximum number of messages in a batch
    #[arg(long, default_value_t = 500, value_parser = size)]
    pub batch_size: usize,

    /// How long an incomplete batch waits for more messages while other batches are in flight. While
    /// none is, it does not wait
    #[arg(long, default_value = "5ms", value_name = "DURATION", value_parser = duration)]
    pub linger: Duration,

    /// Maximum number of batches in flight
    #[arg(long, default_value_t = 4, value_parser = size)]
    pub batches_in_flight: usize,

    /// Maximum total size of the bodies that a consumer holds unacknowledged. The prefetch is adjusted
    /// to it
    #[arg(long, default_value = "64MiB", value_name = "BYTES", value_parser = bytes)]
    pub max_inflight_bytes: usize,

    /// Maximum size of a body. A message with a larger one becomes a dead letter, reason too_large
    #[arg(long, default_value = "1MiB", value_name = "BYTES", value_parser = bytes)]
    pub max_body_bytes: usize,

    /// Who may send for which tenant.
    #[command(flatten)]
    pub users: AmqpUserSettings,

    /// How long a batch is held unacknowledged while a server is unavailable, before it is requeued.
    /// Keep it well below RabbitMQ's consumer_timeout (30 min)
    #[arg(long, default_value = HOLD.as_str(), value_name = "DURATION")]
    #[arg(value_parser = positive_duration)]
    pub hold_limit: Duration,

    /// How long a consumer may receive nothing while messages are ready. After that it is restarted
    #[arg(long, default_value = STALL.as_str(), value_name = "DURATION")]
    #[arg(value_parser = positive_duration)]
    pub stall_limit: Duration,
}

/// After which times conversations are closed. The variables are named because the command line, which names
/// none by itself, has these settings too.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct ClosingTimes {
    /// How long a conversation waits for a reconnection after its last session has closed
    #[arg(long, env = "VERBATIM_CLOSE_GRACE", default_value = "30s", value_name = "DURATION")]
    #[arg(value_parser = duration, help_heading = "Closing")]
    pub close_grace: Duration,

    /// How long a conversation may be without a message before it is closed. Activity is recorded to the
    /// minute, so this may take a minute longer
    #[arg(long, env = "VERBATIM_CLOSE_IDLE", default_value = "30m", value_name = "DURATION")]
    #[arg(value_parser = positive_duration, help_heading = "Closing")]
    pub close_idle: Duration,
}

/// How conversations are closed.
#[derive(Debug, Clone, Copy, clap::Args)]
#[command(next_help_heading = "Closing")]
pub struct ClosingSettings {
    /// When they are due to close.
    #[command(flatten)]
    pub due: ClosingTimes,

    /// Lease on the conversations that a process is closing. If the process does not extend it in time,
    /// another one takes them over
    #[arg(long, default_value = "30s", value_name = "DURATION", value_parser = positive_duration)]
    pub close_lease: Duration,

    /// Interval between two sweeps for conversations that are due to close
    #[arg(long, default_value = "1s", value_name = "DURATION", value_parser = positive_duration)]
    pub close_interval: Duration,

    /// Maximum number of conversations that one sweep closes, of each kind: close requested, idle, taken
    /// over. Larger sweeps cost less in total, and slow down saving more
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub close_batch: u32,
}

/// Work that may be delayed.
#[derive(Debug, Clone, Copy, clap::Args)]
#[command(next_help_heading = "Background")]
pub struct BackgroundSettings {
    /// Share of the time in which a process handles session events, closing or statistics, 0.01 to 1. It
    /// pauses after each step, for one second at most, so that saving stays fast. With 1 it never pauses
    #[arg(long, default_value_t = 0.33, value_name = "SHARE", value_parser = share)]
    pub background_share: f64,
}

fn size(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(size @ 1..=100_000) => Ok(size),
        Ok(_) => Err("it must be 1 to 100000".to_owned()),
        Err(_) => Err("it is not a whole number".to_owned()),
    }
}

//! Settings of the fleet's workers: their stores, the pace of a consumer, closing, background work. They
//! may stand at the top level of the file.

use std::time::Duration;

use super::groups::ConnectionSettings;
use super::values::{bytes, duration, part, positive_duration};

/// The three servers and how long to wait for them.
#[derive(Debug, Clone, clap::Args)]
pub struct StoreSettings {
    /// Where they are.
    #[command(flatten)]
    pub connections: ConnectionSettings,

    /// Connections to PostgreSQL at most: one for each batch in flight, and two to spare
    #[arg(long, env = "VERBATIM_DATABASE_CONNECTIONS", default_value_t = 8)]
    #[arg(value_parser = clap::value_parser!(u32).range(2..), help_heading = "Servers")]
    pub database_connections: u32,

    /// How long one transaction may take, waiting for a connection included, before PostgreSQL
    /// counts as away
    #[arg(long, env = "VERBATIM_DATABASE_TIMEOUT", default_value = "10s", value_name = "DURATION")]
    #[arg(value_parser = positive_duration, help_heading = "Servers")]
    pub database_timeout: Duration,

    /// How long a statement waits for a row lock before it is retried
    #[arg(long, env = "VERBATIM_DATABASE_LOCK_TIMEOUT", default_value = "2s")]
    #[arg(value_name = "DURATION", value_parser = positive_duration, help_heading = "Servers")]
    pub database_lock_timeout: Duration,

    /// How long Redis may take to answer before it counts as away
    #[arg(long, env = "VERBATIM_REDIS_TIMEOUT", default_value = "1s", value_name = "DURATION")]
    #[arg(value_parser = positive_duration, help_heading = "Servers")]
    pub redis_timeout: Duration,

    /// How long a hot copy lives after the last message or load; nothing is lost when it goes
    #[arg(long, env = "VERBATIM_HOT_EXPIRY", default_value = "24h", value_name = "DURATION")]
    #[arg(value_parser = positive_duration, help_heading = "Servers")]
    pub hot_expiry: Duration,
}

/// The pace of a consumer.
#[derive(Debug, Clone, clap::Args)]
pub struct ConsumerSettings {
    /// Messages of a batch at most
    #[arg(long, env = "VERBATIM_BATCH_SIZE", default_value_t = 500)]
    #[arg(value_parser = size, help_heading = "Consuming")]
    pub batch_size: usize,

    /// How long a batch waits for more messages while others are being handled; when none is, it
    /// does not wait
    #[arg(long, env = "VERBATIM_LINGER", default_value = "5ms", value_name = "DURATION")]
    #[arg(value_parser = duration, help_heading = "Consuming")]
    pub linger: Duration,

    /// Batches handled at the same time
    #[arg(long, env = "VERBATIM_BATCHES_IN_FLIGHT", default_value_t = 4)]
    #[arg(value_parser = size, help_heading = "Consuming")]
    pub batches_in_flight: usize,

    /// Bytes of bodies under way in this process at most; the prefetch follows it
    #[arg(
        long,
        env = "VERBATIM_MAX_INFLIGHT_BYTES",
        default_value = "64MiB",
        value_name = "BYTES"
    )]
    #[arg(value_parser = bytes, help_heading = "Consuming")]
    pub max_inflight_bytes: usize,

    /// The largest body; one byte more is a dead letter with reason too_large
    #[arg(long, env = "VERBATIM_MAX_BODY_BYTES", default_value = "1MiB", value_name = "BYTES")]
    #[arg(value_parser = bytes, help_heading = "Consuming")]
    pub max_body_bytes: usize,

    /// How long a batch is held for a store that is away before it goes back to the queue. Keep it
    /// well below RabbitMQ's consumer_timeout (30 min)
    #[arg(long, env = "VERBATIM_HOLD_LIMIT", default_value = "5m", value_name = "DURATION")]
    #[arg(value_parser = positive_duration, help_heading = "Consuming")]
    pub hold_limit: Duration,

    /// How long nothing may come while messages are ready before the consumer is built anew
    #[arg(long, env = "VERBATIM_STALL_LIMIT", default_value = "20s", value_name = "DURATION")]
    #[arg(value_parser = positive_duration, help_heading = "Consuming")]
    pub stall_limit: Duration,
}

/// When conversations are due to close.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct ClosingTimes {
    /// How long a conversation whose last session closed waits for a reconnection
    #[arg(long, env = "VERBATIM_CLOSE_GRACE", default_value = "30s", value_name = "DURATION")]
    #[arg(value_parser = duration, help_heading = "Closing")]
    pub close_grace: Duration,

    /// After how long without a message a conversation closes by itself; the coarseness of the
    /// activity time, one minute, comes on top
    #[arg(long, env = "VERBATIM_CLOSE_IDLE", default_value = "30m", value_name = "DURATION")]
    #[arg(value_parser = positive_duration, help_heading = "Closing")]
    pub close_idle: Duration,
}

/// When conversations close, and how.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct ClosingSettings {
    /// When they are due.
    #[command(flatten)]
    pub due: ClosingTimes,

    /// How long a closer may be silent before another takes its conversations over
    #[arg(long, env = "VERBATIM_CLOSE_LEASE", default_value = "30s", value_name = "DURATION")]
    #[arg(value_parser = positive_duration, help_heading = "Closing")]
    pub close_lease: Duration,

    /// How often due conversations are looked for
    #[arg(long, env = "VERBATIM_CLOSE_INTERVAL", default_value = "1s", value_name = "DURATION")]
    #[arg(value_parser = positive_duration, help_heading = "Closing")]
    pub close_interval: Duration,

    /// Conversations closed together at most, of each kind: asked for, idle, taken over. Larger sweeps
    /// cost less in all, and disturb saving more
    #[arg(long, env = "VERBATIM_CLOSE_BATCH", default_value_t = 20)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..), help_heading = "Closing")]
    pub close_batch: u32,
}

/// What nobody waits for.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct BackgroundSettings {
    /// What part of its time a process spends on session events, closing or statistics, 0.01 to 1. It
    /// rests after each step, for a second at most, so that saving stays fast; with 1 it never rests
    #[arg(long, env = "VERBATIM_BACKGROUND_SHARE", default_value_t = 0.33, value_name = "PART")]
    #[arg(value_parser = part, help_heading = "Background")]
    pub background_share: f64,
}

fn size(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(size @ 1..=100_000) => Ok(size),
        Ok(_) => Err("must be 1 to 100000".to_owned()),
        Err(_) => Err("is not a whole number".to_owned()),
    }
}

//! Values of arguments: a time, one of several names, or servers that a command can do without.

use chrono::{DateTime, Utc};
use clap::Args;
use domain::time::Timestamp;
use service::settings::{ServerUrl, duration};

/// A moment, or a duration before now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    At(Timestamp),
    Ago(std::time::Duration),
}

/// A moment, or a duration after now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum After {
    At(Timestamp),
    In(std::time::Duration),
}

impl After {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if let Ok(moment) = Timestamp::parse(text) {
            return Ok(Self::At(moment));
        }
        duration(text).map(Self::In).map_err(|_| {
            "it must be a moment such as 2027-01-31T09:30:00Z, or a duration such as 24h or 90d"
                .to_owned()
        })
    }

    /// The moment, counted from `now`; [`Timestamp::LATEST`] where it would lie after that.
    pub(crate) fn from(self, now: Timestamp) -> Timestamp {
        match self {
            Self::At(moment) => moment,
            Self::In(span) => chrono::Duration::from_std(span)
                .ok()
                .and_then(|span| DateTime::<Utc>::from(now).checked_add_signed(span))
                .and_then(|moment| Timestamp::try_from(moment).ok())
                .unwrap_or(Timestamp::LATEST),
        }
    }
}

/// Redis, for a command that can do without it.
#[derive(Debug, Args)]
pub(crate) struct OptionalRedis {
    /// Redis; several nodes of one Redis Cluster are separated by commas.
    /// REDIS_URL_FILE may name a file that holds it
    #[arg(long, env = "REDIS_URL", value_name = "redis://:password@host:6379/0")]
    #[arg(value_delimiter = ',', value_parser = ServerUrl::redis, help_heading = "Servers")]
    pub(crate) redis_url: Vec<ServerUrl>,
}

impl When {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if let Ok(moment) = Timestamp::parse(text) {
            return Ok(Self::At(moment));
        }
        duration(text).map(Self::Ago).map_err(|_| {
            "it must be a moment such as 2026-01-31T09:30:00Z, or a duration such as 2h or 30min"
                .to_owned()
        })
    }

    /// The moment, counted back from `now`; [`Timestamp::EARLIEST`] where it would lie before that.
    pub(crate) fn before(self, now: Timestamp) -> Timestamp {
        match self {
            Self::At(moment) => moment,
            Self::Ago(ago) => DateTime::<Utc>::from(now)
                .checked_sub_signed(
                    chrono::Duration::from_std(ago).unwrap_or(chrono::Duration::MAX),
                )
                .and_then(|moment| Timestamp::try_from(moment).ok())
                .unwrap_or(Timestamp::EARLIEST),
        }
    }
}

/// The value with this name, or an error that lists all names.
pub(crate) fn one_of<T: Copy, const N: usize>(
    text: &str,
    all: [T; N],
    name: fn(T) -> &'static str,
) -> Result<T, String> {
    let found = all.into_iter().find(|value| name(*value) == text);
    found.ok_or_else(|| format!("it must be one of {}", all.map(name).join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_moment_or_how_long_ago_it_was() {
        let at = |text: &str| Timestamp::parse(text).unwrap();
        let now = at("2026-11-20T12:00:00Z");
        let before = |text: &str| When::parse(text).map(|when| when.before(now));
        assert_eq!(before("2026-11-20T11:00:00Z"), Ok(at("2026-11-20T11:00:00Z")));
        assert_eq!(before("2h 30min"), Ok(at("2026-11-20T09:30:00Z")));
        assert_eq!(before("100000years"), Ok(Timestamp::EARLIEST));
        assert!(before("yesterday").is_err_and(|error| error.contains("such as 2h or 30min")));
    }
}

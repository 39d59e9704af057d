//! Whose a header is: the sender's, the fleet's or RabbitMQ's; and which headers are nested too deep to be kept.

use lapin::types::{AMQPValue, FieldTable};

use crate::fleet_headers::{FleetHeaders, RAW_BYTES, SENT};

/// Whether a message is a copy that the fleet published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Copied {
    ByFleet,
    Never,
}

/// How deep lists and tables may be nested. JSON that is nested deeper than 128 cannot be read back
/// (`serde_json`), and each level is a call.
pub(crate) const MAX_DEPTH: usize = 16;

/// Whose header a name is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    Sender,
    Fleet,
    /// RabbitMQ's history of dead-lettering.
    RabbitMqDeaths,
    /// RabbitMQ's counts of deliveries.
    RabbitMqCounts,
}

impl Owner {
    /// The owner of this header. RabbitMQ's names: <https://www.rabbitmq.com/docs/dlx#effects>,
    /// <https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling>.
    pub(crate) fn of(header: &str) -> Self {
        match header {
            "x-death" => Self::RabbitMqDeaths,
            "x-delivery-count" | "x-acquired-count" => Self::RabbitMqCounts,
            _ if header.starts_with("x-first-death-") || header.starts_with("x-last-death-") => {
                Self::RabbitMqDeaths
            }
            _ if FleetHeaders::owns(header) => Self::Fleet,
            _ => Self::Sender,
        }
    }
}

/// The headers of a delivery that say how it was delivered: RabbitMQ's and the fleet's; of a copy all, but not those
/// that carry what the sender set. Those that are nested too deep were forged.
pub(crate) fn not_of_the_sender(headers: &FieldTable, copy: Copied) -> FieldTable {
    let mut kept = FieldTable::default();
    for (name, value) in headers {
        let of_sender = match copy {
            Copied::ByFleet => [SENT, RAW_BYTES].contains(&name.as_str()),
            Copied::Never => Owner::of(name.as_str()) == Owner::Sender,
        };
        if !of_sender && is_shallow(value) {
            kept.insert(name.clone(), value.clone());
        }
    }
    kept
}

/// The headers of a delivery that are neither RabbitMQ's nor the fleet's.
pub(crate) fn of_the_sender(headers: &FieldTable) -> FieldTable {
    let mut kept = FieldTable::default();
    for (name, value) in headers {
        if Owner::of(name.as_str()) == Owner::Sender && is_shallow(value) {
            kept.insert(name.clone(), value.clone());
        }
    }
    kept
}

/// Whether a value is not nested too deep.
pub(crate) fn is_shallow(value: &AMQPValue) -> bool {
    let mut unlimited = usize::MAX;
    fits(value, MAX_DEPTH, &mut unlimited)
}

/// Whether a value is nested at most `depth` deep and has at most `values` values, which are subtracted.
pub(crate) fn fits(value: &AMQPValue, depth: usize, values: &mut usize) -> bool {
    let Some(left) = values.checked_sub(1) else { return false };
    *values = left;
    let Some(depth) = depth.checked_sub(1) else { return false };
    match value {
        AMQPValue::FieldArray(list) => list.as_slice().iter().all(|it| fits(it, depth, values)),
        AMQPValue::FieldTable(table) => table.inner().values().all(|it| fits(it, depth, values)),
        _ => true,
    }
}

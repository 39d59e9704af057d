//! Declaring the topology, and verifying that RabbitMQ has it.
//!
//! Verifying redeclares what exists, because AMQP has no request for arguments: RabbitMQ replies 406 if an
//! argument differs, and closes the channel. Policies, which can weaken a queue without changing its
//! arguments, are not visible over AMQP.

use lapin::ExchangeKind;
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};

use super::difference::{Difference, Kind};
use super::table::{
    Argument, Binding, EXCHANGES, Exchange, Queue, Routing, UNROUTED, bindings, queues,
};
use crate::connection::{Connection, Endpoints, Error, request};

/// Why the topology could not be declared or verified.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    /// RabbitMQ is unavailable.
    #[error(transparent)]
    Unavailable(#[from] Error),
    /// Exchanges or queues are missing or have other arguments. The fleet must not run on them, because
    /// messages could be lost.
    #[error("RabbitMQ's topology differs from the expected one: {}", listed(.0))]
    Differs(Vec<Difference>),
}

/// Creates missing exchanges, queues and bindings. Idempotent; changes nothing that exists.
///
/// # Errors
/// RabbitMQ is unavailable, or something exists with other arguments.
pub async fn declare(endpoints: &Endpoints) -> Result<(), TopologyError> {
    let connection = endpoints.connect_for_requests("setup").await?;
    let mut differences = Vec::new();
    for exchange in EXCHANGES {
        let declared = declare_exchange(&connection, &exchange, Mode::Create).await;
        record(&mut differences, Kind::Exchange, exchange.name, declared)?;
    }
    for queue in queues() {
        let declared = declare_queue(&connection, &queue, Mode::Create).await;
        record(&mut differences, Kind::Queue, queue.name, declared)?;
    }
    if differences.is_empty() {
        for binding in bindings() {
            let bound = bind(&connection, binding).await;
            record(&mut differences, Kind::Queue, binding.queue, bound)?;
        }
    }
    connection.close().await;
    into_result(differences)
}

/// Verifies every exchange and queue with all arguments. Creates nothing.
///
/// # Errors
/// RabbitMQ is unavailable, or something is missing or has other arguments. All differences are reported.
pub async fn verify(endpoints: &Endpoints) -> Result<(), TopologyError> {
    let connection = endpoints.connect_for_requests("verify").await?;
    let mut differences = Vec::new();
    for exchange in EXCHANGES {
        for mode in [Mode::Passive, Mode::Create] {
            let found = declare_exchange(&connection, &exchange, mode).await;
            if !record(&mut differences, Kind::Exchange, exchange.name, found)? {
                break;
            }
        }
    }
    for queue in queues() {
        for mode in [Mode::Passive, Mode::Create] {
            let found = declare_queue(&connection, &queue, mode).await;
            if !record(&mut differences, Kind::Queue, queue.name, found)? {
                break;
            }
        }
    }
    connection.close().await;
    into_result(differences)
}

/// What a worker does at its start: [`verify`], then binds the queue [`UNROUTED`] again, which receives
/// actions with an unknown routing key. Without this binding RabbitMQ confirms such an action and drops it,
/// unless the agent published it as mandatory. AMQP cannot show whether a binding exists, and binding again
/// changes nothing.
///
/// # Errors
/// As [`verify`]; or RabbitMQ refuses the binding.
pub async fn verify_and_bind(endpoints: &Endpoints) -> Result<(), TopologyError> {
    verify(endpoints).await?;
    let connection = endpoints.connect_for_requests("verify").await?;
    let mut differences = Vec::new();
    for binding in bindings().into_iter().filter(|it| it.exchange == UNROUTED) {
        let bound = bind(&connection, binding).await;
        record(&mut differences, Kind::Queue, binding.queue, bound)?;
    }
    connection.close().await;
    into_result(differences)
}

/// How to declare.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// A passive declaration: checks whether the name exists; arguments are not compared.
    Passive,
    /// Creates what is missing; compares the arguments of what exists.
    Create,
}

async fn declare_exchange(
    connection: &Connection,
    exchange: &Exchange,
    mode: Mode,
) -> Result<(), Error> {
    let kind = match exchange.routing {
        Routing::Topic => ExchangeKind::Topic,
        Routing::Fanout => ExchangeKind::Fanout,
    };
    let mut arguments = FieldTable::default();
    if let Some(alternate) = exchange.alternate {
        arguments.insert("alternate-exchange".into(), AMQPValue::LongString(alternate.into()));
    }
    let passive = mode == Mode::Passive;
    let options = ExchangeDeclareOptions { passive, durable: true, ..Default::default() };
    // RabbitMQ closes the channel when it refuses, so each declaration opens its own.
    let channel = connection.channel().await?;
    let declare = channel.exchange_declare(exchange.name.into(), kind, options, arguments);
    request("declare an exchange", declare).await
}

async fn declare_queue(connection: &Connection, queue: &Queue, mode: Mode) -> Result<(), Error> {
    let passive = mode == Mode::Passive;
    let options = QueueDeclareOptions { passive, durable: true, ..Default::default() };
    let channel = connection.channel().await?;
    let declare = channel.queue_declare(queue.name.into(), options, table(queue));
    request("declare a queue", declare).await.map(drop)
}

async fn bind(connection: &Connection, binding: Binding) -> Result<(), Error> {
    let channel = connection.channel().await?;
    let bind = channel.queue_bind(
        binding.queue.into(),
        binding.exchange.into(),
        binding.key.into(),
        QueueBindOptions::default(),
        FieldTable::default(),
    );
    request("bind a queue", bind).await
}

fn table(queue: &Queue) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, argument) in queue.arguments() {
        let value = match argument {
            Argument::Text(text) => AMQPValue::LongString(text.into()),
            Argument::Number(number) => AMQPValue::LongLongInt(number),
        };
        table.insert(name.into(), value);
    }
    table
}

/// Records a refusal by RabbitMQ as a difference; returns other errors. `false`: there is a difference.
fn record(
    differences: &mut Vec<Difference>,
    kind: Kind,
    name: &str,
    result: Result<(), Error>,
) -> Result<bool, Error> {
    let Err(error) = result else { return Ok(true) };
    match error.reply() {
        Some((code, text)) => {
            differences.push(Difference::from_reply(kind, name, code, &text));
            Ok(false)
        }
        None => Err(error),
    }
}

fn into_result(differences: Vec<Difference>) -> Result<(), TopologyError> {
    if differences.is_empty() { Ok(()) } else { Err(TopologyError::Differs(differences)) }
}

fn listed(differences: &[Difference]) -> String {
    differences.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

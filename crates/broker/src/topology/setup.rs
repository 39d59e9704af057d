//! Declaring the topology, and checking that a broker has it.
//!
//! Checking redeclares what exists, because AMQP offers no other way to see an argument: RabbitMQ
//! answers 406 if anything differs, and closes the channel. Policies, which can weaken a queue
//! without touching its arguments, do not show over AMQP.

use lapin::ExchangeKind;
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};

use super::difference::{Difference, Kind};
use super::{Argument, BINDINGS, Binding, EXCHANGES, Exchange, Queue, Routing, UNROUTED, queues};
use crate::connection::{Connection, Endpoints, Error, request};

/// The broker does not have the topology.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    /// The broker could not be asked.
    #[error(transparent)]
    Unavailable(#[from] Error),
    /// It has other exchanges or queues than the fleet needs. Nobody may work on them: they would
    /// lose messages.
    #[error("RabbitMQ's topology is not the fleet's: {}", listed(.0))]
    Differs(Vec<Difference>),
}

/// Creates what is missing. Idempotent; changes nothing that exists.
///
/// # Errors
/// The broker is away, or something exists with other arguments.
pub async fn declare(endpoints: &Endpoints) -> Result<(), TopologyError> {
    let connection = endpoints.connect_for_requests("setup").await?;
    let mut differences = Vec::new();
    for exchange in EXCHANGES {
        let declared = declare_exchange(&connection, &exchange, Mode::Create).await;
        note(&mut differences, Kind::Exchange, exchange.name, declared)?;
    }
    for queue in queues() {
        let declared = declare_queue(&connection, &queue, Mode::Create).await;
        note(&mut differences, Kind::Queue, queue.name, declared)?;
    }
    if differences.is_empty() {
        for binding in BINDINGS {
            bind(&connection, binding).await?;
        }
    }
    connection.close().await;
    dead_letter_info(differences)
}

/// Checks every exchange and queue, down to the last argument; creates nothing.
///
/// # Errors
/// The broker is away, or something is missing or has other arguments. All of it is reported.
pub async fn verify(endpoints: &Endpoints) -> Result<(), TopologyError> {
    let connection = endpoints.connect_for_requests("verify").await?;
    let mut differences = Vec::new();
    for exchange in EXCHANGES {
        for mode in [Mode::Look, Mode::Create] {
            let found = declare_exchange(&connection, &exchange, mode).await;
            if !note(&mut differences, Kind::Exchange, exchange.name, found)? {
                break;
            }
        }
    }
    for queue in queues() {
        for mode in [Mode::Look, Mode::Create] {
            let found = declare_queue(&connection, &queue, mode).await;
            if !note(&mut differences, Kind::Queue, queue.name, found)? {
                break;
            }
        }
    }
    connection.close().await;
    dead_letter_info(differences)
}

/// What a worker does before it works: [`verify`], and then binds once more what catches actions with
/// a mistyped key. Of all bindings that one alone can lose what was confirmed: without it an agent that
/// did not ask for returns hears nothing. AMQP cannot show whether it is there, and to bind again changes
/// nothing.
///
/// # Errors
/// As [`verify`]; or the broker refuses the binding.
pub async fn verify_and_bind(endpoints: &Endpoints) -> Result<(), TopologyError> {
    verify(endpoints).await?;
    let connection = endpoints.connect_for_requests("verify").await?;
    let mut differences = Vec::new();
    for binding in BINDINGS.into_iter().filter(|binding| binding.exchange == UNROUTED) {
        let bound = bind(&connection, binding).await;
        note(&mut differences, Kind::Queue, binding.queue, bound)?;
    }
    connection.close().await;
    dead_letter_info(differences)
}

/// Whether a declaration may create.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// It only asks whether the name exists; arguments are not compared.
    Look,
    /// It creates what is missing and compares what exists.
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
    let passive = mode == Mode::Look;
    let options = ExchangeDeclareOptions { passive, durable: true, ..Default::default() };
    // A refusal closes the channel, so each declaration has its own.
    let channel = connection.channel().await?;
    let declare = channel.exchange_declare(exchange.name.into(), kind, options, arguments);
    request("declare an exchange", declare).await
}

async fn declare_queue(connection: &Connection, queue: &Queue, mode: Mode) -> Result<(), Error> {
    let passive = mode == Mode::Look;
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

/// Turns the broker's refusal into a difference and keeps every other error. Says whether it was
/// as it should be.
fn note(
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

fn dead_letter_info(differences: Vec<Difference>) -> Result<(), TopologyError> {
    if differences.is_empty() { Ok(()) } else { Err(TopologyError::Differs(differences)) }
}

fn listed(differences: &[Difference]) -> String {
    differences.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

//! Appends batches to Redis, to measure the cost of an append: `append URL BATCHES CONVERSATIONS`.
//!
//! Each batch has 500 messages of about 500 bytes, spread over CONVERSATIONS. Run it under
//! `valgrind --tool=callgrind` with two numbers of batches. The difference of the instruction
//! counts divided by the difference of the message counts is the cost of one message, without start
//! and end.

use std::error::Error;

use domain::ids::{AgentId, ConversationId, ConversationKey, MessageId, TenantId, UserId};
use domain::message::{Content, Message, Role};
use domain::time::Timestamp;
use hot_store::{Address, HotStore, Settings};

/// The default batch size of the workers.
const BATCH: usize = 500;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().ok_or("append URL BATCHES CONVERSATIONS");
    let address = Address::parse(&next()?)?;
    let (batches, conversations): (usize, usize) = (next()?.parse()?, next()?.parse()?);

    let store = HotStore::open(Settings::new(address), |_| {
        std::future::ready(Ok::<_, std::convert::Infallible>(()))
    });
    let mut batch: Vec<(ConversationKey, Vec<Message>)> = Vec::new();
    for conversation in 0..conversations {
        let messages = (conversation..BATCH).step_by(conversations);
        batch.push((key(conversation)?, messages.map(message).collect::<Result<_, _>>()?));
    }
    for _ in 0..batches {
        store.append_renewing(&batch, |_| true).await?;
    }
    Ok(())
}

fn key(number: usize) -> Result<ConversationKey, Box<dyn Error>> {
    Ok(ConversationKey {
        tenant: TenantId::new("acme")?,
        conversation: ConversationId::new(format!("0f5c8a52-6f3e-5d3b-9d7a-{number:012}"))?,
    })
}

fn message(number: usize) -> Result<Message, Box<dyn Error>> {
    let micros = 1_700_000_000_000_000 + i64::try_from(number)?;
    Ok(Message {
        id: MessageId::new(format!("5b1e8a52-6f3e-4d3b-9d7a-{number:012}"))?,
        role: Role::User,
        content: Content::Text("I would like to book a table for two. ".repeat(10)),
        tool_calls: None,
        tool_call_id: None,
        tokens_estimate: Some(100),
        user_id: Some(UserId::new("user-17")?),
        agent_id: Some(AgentId::new("booking-agent")?),
        model_name: Some("llama3-70b-8192".to_owned()),
        processing_time_ms: Some(12.5),
        created_at: Timestamp::from_micros(micros)?,
        received_at: Timestamp::from_micros(micros + 1_000)?,
        metadata: None,
        details: None,
    })
}

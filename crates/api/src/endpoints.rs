//! The table of all endpoints that need a key.

pub(crate) mod actions;
mod agents;
mod conversations;
mod dead_letters;

use access::Scope;
use axum::http::Method;
use schemars::{JsonSchema, Schema, SchemaGenerator};

use crate::endpoint::{Conditional, Endpoint, Handler, Publishes};
use crate::parameters as p;
use crate::views::{
    ActionsBody, AgentStatsView, ConversationListView, ConversationPageView, DeadLetterDetailView,
    DeadLetterListView, DiscardBody, DiscardedView, PublishedActionsView, ReplayedView,
    TenantStatsView,
};

fn schema<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// Every endpoint that needs a key.
pub(crate) static ENDPOINTS: [Endpoint; 9] = [
    Endpoint {
        name: "tenant_stats",
        method: Method::GET,
        path: "/api/conversations/stats/{tenant_id}",
        scope: Scope::Read,
        summary: "Totals, averages and a series of days of a tenant",
        about: "Conversations count once they are archived and their statistics are computed, on the UTC day on which they \
                began. `active_now` counts those of the tenant that go on, whatever agent and model are named. At most 366 days.",
        parameters: &[&p::TENANT_ID, &p::FIRST_DAY, &p::LAST_DAY, &p::AGENT_ID, &p::MODEL],
        body: None,
        answer: schema::<TenantStatsView>,
        conditional: Conditional::No,
        publishes: Publishes::No,
        handler: Handler::MayBeStale(|call, rows| Box::pin(conversations::stats(call, rows))),
    },
    Endpoint {
        name: "list_conversations",
        method: Method::GET,
        path: "/api/conversations/list/{tenant_id}",
        scope: Scope::Read,
        summary: "Conversations of a tenant, newest first, in pages",
        about: "A page may have fewer conversations than `limit`, even none, where hardly any conversation matches: it ends \
                after looking at 10 000 of them. Go on while `next` is not null. `text` finds archived conversations alone, as \
                soon as their words are written, some seconds after; a page of a search ends after 100 ms \
                (VERBATIM_SEARCH_TIME).",
        parameters: &[
            &p::TENANT_ID,
            &p::STATUS,
            &p::AGENT_ID,
            &p::USER_ID,
            &p::MODEL,
            &p::FROM,
            &p::TO,
            &p::TEXT,
            &p::CONVERSATIONS,
            &p::CURSOR,
        ],
        body: None,
        answer: schema::<ConversationListView>,
        conditional: Conditional::No,
        publishes: Publishes::No,
        handler: Handler::MayBeStale(|call, rows| Box::pin(conversations::list(call, rows))),
    },
    Endpoint {
        name: "read_conversation",
        method: Method::GET,
        path: "/api/conversations/{conversation_id}/full",
        scope: Scope::Read,
        summary: "A conversation with its messages, active or archived alike, in pages",
        about: "Every value is as it was sent. A page ends early where its messages exceed 4 MiB (VERBATIM_MAX_PAGE_BYTES). \
                Go on while `next` is not null.",
        parameters: &[&p::CONVERSATION_ID, &p::TENANT, &p::ORDER, &p::MESSAGES, &p::CURSOR],
        body: None,
        answer: schema::<ConversationPageView>,
        conditional: Conditional::Yes,
        publishes: Publishes::No,
        handler: Handler::Fresh(|call| Box::pin(conversations::full(call))),
    },
    Endpoint {
        name: "agent_stats",
        method: Method::GET,
        path: "/api/agents/{agent_id}/stats",
        scope: Scope::Read,
        summary: "Totals, averages and a series of days of an agent",
        about: "As the statistics of a tenant, of the conversations with this agent. An agent without conversations has \
                zeros. At most 366 days.",
        parameters: &[&p::AGENT, &p::TENANT, &p::FIRST_DAY, &p::LAST_DAY, &p::MODEL],
        body: None,
        answer: schema::<AgentStatsView>,
        conditional: Conditional::No,
        publishes: Publishes::No,
        handler: Handler::MayBeStale(|call, rows| Box::pin(agents::stats(call, rows))),
    },
    Endpoint {
        name: "publish_actions",
        method: Method::POST,
        path: "/api/actions",
        scope: Scope::Write,
        summary: "Publish one action, or an array of at most 1000",
        about: "The actions are those that agents publish to RabbitMQ (docs/contract). `tenant_id` may be left out. All are \
                checked first; if one is refused, none is published. 202: RabbitMQ confirmed them; each takes effect, or becomes a dead \
                letter. With `wait=durable` 200: they have taken effect; 202: not within 10 s (VERBATIM_DURABLE_WAIT); 409 and \
                422 `refused`: a worker did not carry out those that are named, the others it did. The header \
                `Idempotency-Key` becomes `action_id`; in an array key and position do. An action that is repeated with the \
                same id takes effect once. `conversation.erase` needs the scope `erase` too.",
        parameters: &[&p::TENANT, &p::DRY_RUN, &p::WAIT],
        body: Some(schema::<ActionsBody>),
        answer: schema::<PublishedActionsView>,
        conditional: Conditional::No,
        publishes: Publishes::Yes,
        handler: Handler::Fresh(|call| Box::pin(actions::publish(call))),
    },
    Endpoint {
        name: "list_dead_letters",
        method: Method::GET,
        path: "/api/dead-letters",
        scope: Scope::Operate,
        summary: "Actions of a tenant that were not carried out, newest first, in pages",
        about: "Those that are open, unless `status` says otherwise. A page may have fewer than `limit`, even none, while \
                `next` is not null. The key of an operator sees those of every tenant, and those that name none, unless it \
                names a tenant.",
        parameters: &[
            &p::TENANT_OR_EVERY,
            &p::DEAD_LETTER_STATUS,
            &p::QUEUE,
            &p::REASON,
            &p::ACTION_TYPE,
            &p::DEAD_LETTERS,
            &p::CURSOR,
        ],
        body: None,
        answer: schema::<DeadLetterListView>,
        conditional: Conditional::No,
        publishes: Publishes::No,
        handler: Handler::Fresh(|call| Box::pin(dead_letters::list(call))),
    },
    Endpoint {
        name: "show_dead_letter",
        method: Method::GET,
        path: "/api/dead-letters/{dead_letter_id}",
        scope: Scope::Operate,
        summary: "A dead letter with its body, its properties and its headers",
        about: "`error` of an internal failure is shown to an operator's key alone.",
        parameters: &[&p::DEAD_LETTER_ID, &p::TENANT_OR_EVERY],
        body: None,
        answer: schema::<DeadLetterDetailView>,
        conditional: Conditional::No,
        publishes: Publishes::No,
        handler: Handler::Fresh(|call| Box::pin(dead_letters::show(call))),
    },
    Endpoint {
        name: "replay_dead_letter",
        method: Method::POST,
        path: "/api/dead-letters/{dead_letter_id}/replay",
        scope: Scope::Operate,
        summary: "Publish a dead letter again",
        about: "Remove the cause of the failure first. The action keeps its id, so it takes effect once, however often it is replayed. 200: \
                RabbitMQ confirmed it. With `wait=durable` the answer waits until PostgreSQL has the message or the action has \
                failed again, at most 10 s (VERBATIM_DURABLE_WAIT). 409: the dead letter is not open. `verbatim dead-letters \
                replay` replays many, in growing batches.",
        parameters: &[&p::DEAD_LETTER_ID, &p::TENANT_OR_EVERY, &p::WAIT_FOR_REPLAY],
        body: None,
        answer: schema::<ReplayedView>,
        conditional: Conditional::No,
        publishes: Publishes::No,
        handler: Handler::Fresh(|call| Box::pin(dead_letters::replay(call))),
    },
    Endpoint {
        name: "discard_dead_letter",
        method: Method::POST,
        path: "/api/dead-letters/{dead_letter_id}/discard",
        scope: Scope::Operate,
        summary: "Decide that a dead letter is not to be replayed",
        about: "It stays stored, with the reason. `verbatim dead-letters restore` opens it again. 409: the dead letter is not \
                open.",
        parameters: &[&p::DEAD_LETTER_ID, &p::TENANT_OR_EVERY],
        body: Some(schema::<DiscardBody>),
        answer: schema::<DiscardedView>,
        conditional: Conditional::No,
        publishes: Publishes::No,
        handler: Handler::Fresh(|call| Box::pin(dead_letters::discard(call))),
    },
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::parameters::Place;

    #[test]
    fn every_parameter_of_a_path_is_declared_and_names_are_unique() {
        let mut names = BTreeSet::new();
        for endpoint in &ENDPOINTS {
            assert!(names.insert(endpoint.name), "{}", endpoint.name);
            let in_path: Vec<&str> = endpoint.path.split(['{', '}']).skip(1).step_by(2).collect();
            let declared = endpoint.parameters.iter().filter(|it| it.place() == Place::Path);
            assert_eq!(declared.map(|it| it.name()).collect::<Vec<_>>(), in_path);
            let all: BTreeSet<_> = endpoint.parameters.iter().map(|it| it.name()).collect();
            assert_eq!(all.len(), endpoint.parameters.len(), "{}", endpoint.name);
        }
    }
}

//! Dead letters: of one tenant, or with the key of an operator of all, those included that name no tenant.

use std::sync::Arc;

use access::TenantOfCaller;
use database::{
    Actor, DEAD_LETTER_READ, DeadLetterDetail, DeadLetterPageFilter, DeadLetterPosition,
    DeadLetterStatus, Selection,
};
use dead_letters::{
    DeadLetterValidator, DeadLetters, Ended, ReplayReport, ReplaySettings, Replayer, StopOnFailure,
};
use domain::failure::Dependency;
use domain::ids::TenantId;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::conversations::place;
use crate::audit::Audited;
use crate::cursor::{CursorScope, Place};
use crate::endpoint::{Answer, Call};
use crate::parameters::{self as p, Statuses, Wait};
use crate::problem::{Fault, Kind, Problem, SOON};
use crate::views::{
    DeadLetterDetailView, DeadLetterListView, DiscardBody, DiscardedView, Errors, ReplayedView,
};

pub(crate) async fn list(mut call: Call) -> Result<Answer, Problem> {
    let parameters = &mut call.parameters;
    let status = parameters.optional(&p::DEAD_LETTER_STATUS);
    let filter = DeadLetterPageFilter {
        status: match status {
            None => Some(DeadLetterStatus::Open),
            Some(Statuses::One(status)) => Some(status),
            Some(Statuses::Any) => None,
        },
        queue: parameters.optional(&p::QUEUE),
        reason: parameters.optional(&p::REASON),
        action_type: parameters.optional(&p::ACTION_TYPE),
    };
    // Only checked: `Call::tenant_or_every` reads it.
    let _named = parameters.optional(&p::TENANT_OR_EVERY);
    let limit = parameters.optional(&p::DEAD_LETTERS).unwrap_or(50);
    let cursor = parameters.optional(&p::CURSOR);
    parameters.checked()?;
    let tenant = call.tenant_or_every()?;
    let filter_text = format!("{filter:?}");
    let endpoint = call.endpoint.name;
    let scope = CursorScope { tenant: tenant.as_ref(), endpoint, filter: &filter_text };
    let after = match cursor {
        None => None,
        Some(cursor) => {
            let place = place(&mut call, &cursor, scope)?;
            let position = place.at().zip(Uuid::parse_str(&place.id).ok());
            let (stored_at, id) = position.ok_or_else(Problem::not_found)?;
            Some(DeadLetterPosition { stored_at, id })
        }
    };
    let database = call.dead_letters(tenant.as_ref())?;
    let page = database.dead_letter_list(tenant.as_ref(), &filter, after, limit).await?;
    let next = page.next.map(|position| {
        Place::new(position.stored_at, &position.id.to_string()).cursor(&call.api.secrets, scope)
    });
    let view = DeadLetterListView::new(&page.dead_letters, next, errors(&call));
    Answer::json(&view, Audited::Counted(tenant.clone()))
}

pub(crate) async fn show(mut call: Call) -> Result<Answer, Problem> {
    let named = Named::of(&mut call)?;
    // Before it is read: the body, its edited form, and their text in the answer.
    let expected = 4 * call.api.settings.max_body_bytes;
    let mut share = call.api.pages.take(expected).await?;
    let (_, detail) = found(&call, &named).await?;
    let audited = Audited::Entry {
        action: DEAD_LETTER_READ,
        tenant: tenant_of(&detail),
        subject: named.id.to_string(),
        detail: json!({}),
    };
    let answer = Answer::json(&DeadLetterDetailView::new(&detail, errors(&call)), audited)?;
    // A larger body, or control characters, which JSON writes in six bytes each.
    let more = answer.bytes().len().saturating_sub(expected);
    if more > 0 {
        share.merge(call.api.pages.take(more).await?);
    }
    Ok(answer.holding(share))
}

pub(crate) async fn replay(mut call: Call) -> Result<Answer, Problem> {
    let wait = call.parameters.optional(&p::WAIT_FOR_REPLAY);
    let named = Named::of(&mut call)?;
    let (access, detail) = found(&call, &named).await?;
    let id = named.id;
    let replayer = Replayer::new(
        access.database,
        call.api.publisher.clone(),
        call.api.metrics.clone(),
        DeadLetterValidator { max_body_bytes: call.api.settings.max_body_bytes },
    );
    let settings = ReplaySettings {
        rate: None,
        largest_batch: 1,
        watch: match wait {
            Some(Wait::Durable) => call.api.settings.durable_wait,
            None => std::time::Duration::ZERO,
        },
        stop: StopOnFailure::First,
    };
    // A task of its own: the replay is recorded even if the client goes away.
    let run = tokio::spawn(async move {
        let never = CancellationToken::new();
        replayer.run(Selection::Ids(vec![id]), &access.actor, &settings, &never, |_| {}).await
    });
    let report = run.await.map_err(|error| {
        Problem::new(Kind::Internal, "the log has the cause under this request_id")
            .caused_by(&error)
    })??;
    replayed(&report)?;
    Answer::json(&ReplayedView::new(id, &report), Audited::Counted(tenant_of(&detail)))
}

/// Fails unless the report says that the dead letter was replayed.
fn replayed(report: &ReplayReport) -> Result<(), Problem> {
    let (kind, detail, cause) = match (&report.ended, report.failures.first()) {
        _ if report.replayed > 0 => return Ok(()),
        _ if report.of_another_tenant > 0 => {
            let detail = "the body of the dead letter names another tenant than when it failed: it was edited. An operator \
                          replays it with `verbatim dead-letters replay`";
            return Err(Problem::new(Kind::Conflict, detail));
        }
        (Ended::Unavailable { dependency: Dependency::PostgreSql, cause }, _) => {
            (Kind::Unavailable, "PostgreSQL did not answer; repeat the request", cause)
        }
        (Ended::Unavailable { cause, .. }, _) => {
            let detail =
                "RabbitMQ did not confirm the action; the dead letter is open. Repeat the request";
            (Kind::NotPublished, detail, cause)
        }
        (_, Some(failure)) => {
            let detail = "RabbitMQ did not take the action; the dead letter is open. The operator has to look at the log";
            (Kind::NotPublished, detail, &failure.fault)
        }
        (_, None) => {
            let detail =
                "the dead letter is no longer open, or another run replays it; look at its status";
            return Err(Problem::new(Kind::Conflict, detail));
        }
    };
    let mut problem = Problem::new(kind, detail).retry_after(SOON);
    problem.cause = Some(cause.clone());
    Err(problem)
}

pub(crate) async fn discard(mut call: Call) -> Result<Answer, Problem> {
    let named = Named::of(&mut call)?;
    let DiscardBody { reason } = DiscardBody::parse(&call.body).map_err(|(pointer, detail)| {
        Problem::invalid(vec![Fault { detail, parameter: None, pointer: Some(pointer) }])
    })?;
    let (access, detail) = found(&call, &named).await?;
    let id = named.id;
    let dead_letters = DeadLetters::new(access.database, call.api.metrics.clone());
    let run = tokio::spawn(async move {
        dead_letters.discard(Selection::Ids(vec![id]), &reason, &access.actor).await
    });
    let discarded = run.await.map_err(|error| {
        Problem::new(Kind::Internal, "the log has the cause under this request_id")
            .caused_by(&error)
    })??;
    if discarded == 0 {
        let detail = "the dead letter is no longer open, or a run replays it; look at its status";
        return Err(Problem::new(Kind::Conflict, detail));
    }
    Answer::json(&DiscardedView::new(id), Audited::Counted(tenant_of(&detail)))
}

/// How a request reaches a dead letter.
struct DeadLetterAccess {
    /// Sees the dead letters of its tenant; of every tenant if it names none.
    database: database::Database,
    actor: Actor,
}

/// The dead letter that a request names.
struct Named {
    id: Uuid,
    /// `None`: of any tenant.
    tenant: Option<TenantId>,
}

impl Named {
    fn of(call: &mut Call) -> Result<Self, Problem> {
        let id = call.parameters.optional(&p::DEAD_LETTER_ID);
        // Only checked: `Call::tenant_or_every` reads it.
        let _named = call.parameters.optional(&p::TENANT_OR_EVERY);
        call.parameters.checked()?;
        let tenant = call.tenant_or_every()?;
        Ok(Self { id: id.ok_or_else(Problem::not_found)?, tenant })
    }
}

/// The dead letter, and the way to it.
async fn found(
    call: &Call,
    Named { id, tenant }: &Named,
) -> Result<(DeadLetterAccess, Arc<DeadLetterDetail>), Problem> {
    let detail = call.dead_letters(tenant.as_ref())?.dead_letter(*id).await?;
    let is_visible = |it: &DeadLetterDetail| match tenant {
        Some(tenant) => it.dead_letter.tenant_id.as_deref() == Some(tenant.as_str()),
        None => true,
    };
    let detail = detail.filter(is_visible).ok_or_else(Problem::not_found)?;
    // From here on as its tenant, also for an operator: a replay looks whether the message is stored.
    let tenant = tenant_of(&detail);
    let access = DeadLetterAccess {
        database: call.dead_letters(tenant.as_ref())?,
        actor: Actor { name: call.actor_name(), run: Uuid::now_v7(), tenant },
    };
    Ok((access, Arc::new(detail)))
}

/// The tenant that a dead letter names, if a tenant can have this name.
fn tenant_of(detail: &DeadLetterDetail) -> Option<TenantId> {
    TenantId::new(detail.dead_letter.tenant_id.as_deref()?).ok()
}

fn errors(call: &Call) -> Errors {
    match call.caller.tenant {
        TenantOfCaller::One(_) => Errors::OfActions,
        TenantOfCaller::Every => Errors::All,
    }
}

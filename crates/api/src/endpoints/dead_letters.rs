//! Dead letters of a tenant. Those that name no tenant are seen with `verbatim dead-letters` alone.

use access::TenantOfCaller;
use database::{DeadLetterPageFilter, DeadLetterPosition, DeadLetterStatus};
use uuid::Uuid;

use super::conversations::place;
use crate::cursor::{CursorScope, Place};
use crate::endpoint::{Answer, Call};
use crate::parameters::{self as p, Statuses};
use crate::problem::Problem;
use crate::views::{DeadLetterDetailView, DeadLetterListView, Errors};

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
    // Only checked: `Call::tenant` reads it.
    let _named = parameters.optional(&p::TENANT);
    let limit = parameters.optional(&p::DEAD_LETTERS).unwrap_or(50);
    let cursor = parameters.optional(&p::CURSOR);
    parameters.checked()?;
    let tenant = call.tenant()?;
    let filter_text = format!("{filter:?}");
    let scope = CursorScope { tenant: &tenant, endpoint: call.endpoint.name, filter: &filter_text };
    let after = match cursor {
        None => None,
        Some(cursor) => {
            let place = place(&mut call, &cursor, scope)?;
            let position = place.at().zip(Uuid::parse_str(&place.id).ok());
            let (stored_at, id) = position.ok_or_else(Problem::not_found)?;
            Some(DeadLetterPosition { stored_at, id })
        }
    };
    let database = call.database(&tenant);
    let page = database.dead_letters_of_tenant(&tenant, &filter, after, limit).await?;
    let next = page.next.map(|position| {
        Place::new(position.stored_at, &position.id.to_string()).cursor(&call.api.secrets, scope)
    });
    Answer::json(&DeadLetterListView::new(&page.dead_letters, next, errors(&call)))
}

pub(crate) async fn show(mut call: Call) -> Result<Answer, Problem> {
    let id = call.parameters.optional(&p::DEAD_LETTER_ID);
    // Only checked: `Call::tenant` reads it.
    let _named = call.parameters.optional(&p::TENANT);
    call.parameters.checked()?;
    let tenant = call.tenant()?;
    let id = id.ok_or_else(Problem::not_found)?;
    let found = call.database(&tenant).dead_letter(id).await?;
    let of_tenant = |it: &database::DeadLetterDetail| {
        it.dead_letter.tenant_id.as_deref() == Some(tenant.as_str())
    };
    let detail = found.filter(of_tenant).ok_or_else(Problem::not_found)?;
    Answer::json(&DeadLetterDetailView::new(&detail, errors(&call)))
}

fn errors(call: &Call) -> Errors {
    match call.caller.tenant {
        TenantOfCaller::One(_) => Errors::OfActions,
        TenantOfCaller::Every => Errors::All,
    }
}

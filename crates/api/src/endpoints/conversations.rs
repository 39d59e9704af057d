//! Conversations: statistics of a tenant, lists, transcripts.

use chrono::{Days, NaiveDate, Utc};
use database::{
    CONVERSATION_READ, PageFilter, PagePosition, ReadingOrder, TotalsRequest, TranscriptRequest,
    WordSearch,
};
use domain::ids::{ConversationKey, MessageId};
use domain::message::Position;
use domain::status::ConversationStatus;
use domain::time::Timestamp;
use serde_json::json;

use crate::audit::Audited;
use crate::cursor::{CursorScope, Place};
use crate::endpoint::{Answer, Call, Rows};
use crate::etag::ETag;
use crate::parameters::{self as p, Order};
use crate::problem::Problem;
use crate::views::{self, ConversationListView, ConversationPageView, Searched, TenantStatsView};

/// The most days of a request for statistics.
const MOST_DAYS: u64 = 366;
/// The most bytes of a conversation in a list: four ids of 512 bytes, four texts of 256 characters, each of which may have
/// six bytes as JSON, and the names.
const LARGEST_ROW: usize = 12 * 1024;
/// The most bytes of statistics: 366 days, 100 agents and 100 models with their names.
pub(crate) const LARGEST_STATS: usize = 1024 * 1024;
/// How many days there are by default.
const DAYS: u64 = 30;

pub(crate) async fn stats(mut call: Call, rows: Rows) -> Result<Answer, Problem> {
    let request = totals_request(&mut call)?;
    let tenant = call.tenant()?;
    let share = call.api.pages.take(LARGEST_STATS).await?;
    let database = rows.of(&tenant);
    let (totals, active) = tokio::join!(
        database.totals_of_days(&tenant, &request),
        database.active_conversations(&tenant)
    );
    let totals = totals?;
    let view = TenantStatsView::new(&tenant, &request, &totals, active?);
    Ok(Answer::json(&view, Audited::Counted(Some(tenant.clone())))?.holding(share))
}

/// The days, the agent and the model of a request for statistics.
pub(crate) fn totals_request(call: &mut Call) -> Result<TotalsRequest, Problem> {
    let today: chrono::DateTime<Utc> = call.api.clock.now().into();
    let (from, to) =
        (call.parameters.optional(&p::FIRST_DAY), call.parameters.optional(&p::LAST_DAY));
    let to = to.unwrap_or_else(|| today.date_naive());
    let from =
        from.unwrap_or_else(|| to.checked_sub_days(Days::new(DAYS - 1)).unwrap_or(NaiveDate::MIN));
    let agent = call.parameters.optional(&p::AGENT_ID);
    let model = call.parameters.optional(&p::MODEL);
    if from > to {
        call.parameters.fault("from", "it is after `to`".to_owned());
    } else if from.checked_add_days(Days::new(MOST_DAYS)).is_some_and(|end| to >= end) {
        call.parameters
            .fault("from", format!("it is {MOST_DAYS} days or more before `to`; ask for fewer"));
    }
    call.parameters.checked()?;
    Ok(TotalsRequest { from, to, agent, model })
}

pub(crate) async fn list(mut call: Call, rows: Rows) -> Result<Answer, Problem> {
    let parameters = &mut call.parameters;
    let filter = PageFilter {
        status: parameters.optional(&p::STATUS),
        agent: parameters.optional(&p::AGENT_ID),
        user: parameters.optional(&p::USER_ID),
        model: parameters.optional(&p::MODEL),
        from: parameters.optional(&p::FROM),
        to: parameters.optional(&p::TO),
    };
    let words = parameters.optional(&p::TEXT);
    let limit = parameters.optional(&p::CONVERSATIONS).unwrap_or(50);
    let cursor = parameters.optional(&p::CURSOR);
    let is_archive = matches!(filter.status, None | Some(ConversationStatus::Archived));
    if words.is_some() && !is_archive {
        let detail =
            "`text` searches archived conversations alone; leave `status` out, or say archived";
        parameters.fault("status", detail.to_owned());
    }
    parameters.checked()?;
    let tenant = call.tenant()?;
    let filter_text = format!("{filter:?} {words:?}");
    let endpoint = call.endpoint.name;
    let scope = CursorScope { tenant: Some(&tenant), endpoint, filter: &filter_text };
    let before = match cursor {
        None => None,
        Some(cursor) => Some(place(&mut call, &cursor, scope)?),
    };
    let after = match &before {
        None => None,
        Some(place) => {
            rows.continues(place.read_at.as_deref())?;
            let created_at = place.at().ok_or_else(Problem::not_found)?;
            Some(PagePosition { created_at, id: place.id.clone() })
        }
    };
    // Before anything is read: so the limit holds however many requests there are, and whether their clients read.
    let share = call.api.pages.take(limit as usize * LARGEST_ROW).await?;
    let (database, after) = (rows.of(&tenant), after.as_ref());
    let page = match &words {
        None => database.conversation_page(&tenant, &filter, after, limit).await?,
        Some(words) => {
            let time = call.api.settings.search_time;
            let search = WordSearch { words, filter: &filter, after, limit, time };
            database.search_words(&tenant, &search).await?
        }
    };
    if let Some(place) = &before {
        rows.continues(place.read_at.as_deref())?;
    }
    let next = page.next.map(|position| {
        let place = Place::new(position.created_at, &position.id).read_at(rows.read_at());
        place.cursor(&call.api.secrets, scope)
    });
    let searched = words.map(|_| Searched::Archived);
    let view = ConversationListView::new(&page.conversations, next, searched);
    Ok(Answer::json(&view, Audited::Counted(Some(tenant.clone())))?.holding(share))
}

pub(crate) async fn full(mut call: Call) -> Result<Answer, Problem> {
    let parameters = &mut call.parameters;
    let id = parameters.optional(&p::CONVERSATION_ID).unwrap_or_default();
    // Only checked: `Call::tenant` reads it.
    let _named = parameters.optional(&p::TENANT);
    let order = parameters.optional(&p::ORDER).unwrap_or_default();
    let limit = parameters.optional(&p::MESSAGES).unwrap_or(100);
    let cursor = parameters.optional(&p::CURSOR);
    parameters.checked()?;
    let tenant = call.tenant()?;
    let key = ConversationKey::parse(tenant.as_str(), &id).map_err(|_| Problem::not_found())?;
    let filter = format!("{order:?} {id}");
    let endpoint = call.endpoint.name;
    let scope = CursorScope { tenant: Some(&tenant), endpoint, filter: &filter };
    let after = match &cursor {
        None => None,
        Some(cursor) => {
            Some(position(&place(&mut call, cursor, scope)?).ok_or_else(Problem::not_found)?)
        }
    };
    let request = TranscriptRequest {
        order: match order {
            Order::Ascending => ReadingOrder::OldestFirst,
            Order::Descending => ReadingOrder::NewestFirst,
        },
        after,
        limit,
        max_bytes: call.api.settings.max_page_bytes,
    };
    // Before the messages are read: so the limit holds however many requests there are.
    let share = call.api.pages.take(request.max_bytes).await?;
    let page = call.database(&tenant).transcript_page(&key, &request).await?;
    let mut page = page.ok_or_else(Problem::not_found)?;
    page.has_more |= views::truncate(&mut page.messages, request.max_bytes);
    call.api.note_read(&call.caller, page.messages.len());
    let next = page.messages.last().filter(|_| page.has_more).map(|last| {
        let position = last.message.position();
        Place::new(position.created_at.into(), position.id.as_str())
            .cursor(&call.api.secrets, scope)
    });
    let audited = Audited::Entry {
        action: CONVERSATION_READ,
        tenant: Some(tenant.clone()),
        subject: id.clone(),
        detail: json!({ "messages": page.messages.len() }),
    };
    let answer = Answer::json(&ConversationPageView::new(&tenant, &page, next), audited)?;
    let etag = ETag::of(&call.api.secrets, &[tenant.as_str().as_bytes(), answer.bytes()]);
    Ok(answer.holding(share).tagged(etag, &call.headers))
}

/// The place of a cursor of this list.
pub(crate) fn place(
    call: &mut Call,
    cursor: &str,
    scope: CursorScope<'_>,
) -> Result<Place, Problem> {
    match Place::of(cursor, &call.api.secrets, scope) {
        Some(place) => Ok(place),
        None => {
            let detail =
                "it is not `next` of a page with this tenant, filter and order; begin without it";
            call.parameters.fault("cursor", detail.to_owned());
            call.parameters.checked()?;
            Err(Problem::not_found())
        }
    }
}

fn position(place: &Place) -> Option<Position> {
    let created_at = Timestamp::try_from(place.at()?).ok()?;
    Some(Position { created_at, id: MessageId::new(&place.id).ok()? })
}

//! The key of a row of `daily_stats`, and how statements get it.

use chrono::NaiveDate;
use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use sqlx::{FromRow, Postgres};

/// The key of a row of `daily_stats`. Its order is the order in which the days are checked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, FromRow)]
pub struct DayKey {
    /// The tenant.
    pub tenant_id: String,
    /// The agent; empty for conversations without one.
    pub agent_id: String,
    /// The model; empty for conversations without one.
    pub model_name: String,
    /// The UTC day on which the conversations began.
    pub day: NaiveDate,
}

/// Binds keys in the order of the primary key: tenant, agent, model, day.
pub(crate) trait BindDays: Sized {
    /// Binds the four values of a key.
    fn bind_day(self, key: &DayKey) -> Self;

    /// Binds four arrays, each with one value for each key.
    fn bind_days(self, keys: &[DayKey]) -> Self;
}

impl BindDays for Query<'_, Postgres, PgArguments> {
    fn bind_day(self, key: &DayKey) -> Self {
        let DayKey { tenant_id, agent_id, model_name, day } = key.clone();
        self.bind(tenant_id).bind(agent_id).bind(model_name).bind(day)
    }

    fn bind_days(self, keys: &[DayKey]) -> Self {
        let texts =
            |text: fn(&DayKey) -> &String| keys.iter().map(text).cloned().collect::<Vec<_>>();
        self.bind(texts(|it| &it.tenant_id))
            .bind(texts(|it| &it.agent_id))
            .bind(texts(|it| &it.model_name))
            .bind(keys.iter().map(|it| it.day).collect::<Vec<_>>())
    }
}

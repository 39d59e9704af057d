//! Who calls: the key of a request, and what it may do.

use std::collections::BTreeSet;
use std::net::IpAddr;

use chrono::{DateTime, Utc};
use database::{EVERY_TENANT, PresentedKey};
use domain::ids::TenantId;
use ipnet::IpNet;

use crate::Scope;

/// The tenant that a key belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TenantOfCaller {
    /// This one.
    One(TenantId),
    /// Every tenant: the key of an operator. A request says of which it is.
    Every,
}

/// The key with which a request was authenticated.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The id of the key.
    pub key: String,
    /// What the key is for.
    pub name: String,
    /// Whose data it is for.
    pub tenant: TenantOfCaller,
    /// What it may do.
    pub scopes: BTreeSet<Scope>,
    /// From where; empty: from everywhere.
    networks: Vec<IpNet>,
    /// Until when.
    accepted_until: Option<DateTime<Utc>>,
}

impl Caller {
    /// The caller of this key. What a newer version of Verbatim may have stored and this one does not know, it does not
    /// allow: an unknown scope allows nothing, an unreadable network admits no address.
    pub(crate) fn of(key: &str, presented: PresentedKey) -> Option<Self> {
        let tenant = match presented.tenant_id.as_str() {
            EVERY_TENANT => TenantOfCaller::Every,
            tenant => TenantOfCaller::One(TenantId::new(tenant).ok()?),
        };
        let networks = presented.networks.iter().map(|network| network.parse());
        Some(Self {
            key: key.to_owned(),
            name: presented.name,
            tenant,
            scopes: presented.scopes.iter().filter_map(|scope| Scope::parse(scope)).collect(),
            networks: networks.collect::<Result<_, _>>().ok()?,
            accepted_until: presented.accepted_until,
        })
    }

    /// Whether the key may do this.
    #[must_use]
    pub fn may(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope)
    }

    pub(crate) fn is_admitted_from(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.networks.is_empty() || self.networks.iter().any(|network| network.contains(&address))
    }

    pub(crate) fn is_expired(&self, now: DateTime<Utc>) -> bool {
        self.accepted_until.is_some_and(|until| until <= now)
    }
}

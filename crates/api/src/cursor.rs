//! Cursors: where the next page of a list begins.
//!
//! A cursor is opaque, and signed together with what it belongs to: the tenant, the endpoint and the filter. A cursor of
//! another tenant, of another list or of another filter is refused as a text that never was a cursor. It is valid as long
//! as the secret of the API is: nothing is stored for it.

use access::{Purpose, Secrets};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::DateTime;
use domain::ids::TenantId;
use serde::{Deserialize, Serialize};

/// The version of the form below. A cursor of another version is refused.
const VERSION: u8 = 1;

/// The bytes of a signature.
const SIGNATURE: usize = 32;

/// A place in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    /// The time of the last item, in microseconds since 1970.
    #[serde(rename = "t")]
    micros: i64,
    /// The id of the last item.
    #[serde(rename = "i")]
    pub(crate) id: String,
    /// How far the read replica was from which the page was read, as `Verbatim-After` has it; `None`: the primary.
    #[serde(rename = "p", default, skip_serializing_if = "Option::is_none")]
    pub(crate) read_at: Option<String>,
}

/// What a cursor belongs to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CursorScope<'a> {
    /// `None`: every tenant.
    pub(crate) tenant: Option<&'a TenantId>,
    /// The name of the endpoint.
    pub(crate) endpoint: &'a str,
    /// What else must be the same on the next page: filter and order.
    pub(crate) filter: &'a str,
}

impl Place {
    pub(crate) fn new(at: DateTime<chrono::Utc>, id: &str) -> Self {
        Self { micros: at.timestamp_micros(), id: id.to_owned(), read_at: None }
    }

    /// The place of a page that was read from a replica that was so far.
    pub(crate) fn read_at(self, read_at: Option<String>) -> Self {
        Self { read_at, ..self }
    }

    /// The time; `None` if it is none, which no cursor of ours has.
    pub(crate) fn at(&self) -> Option<DateTime<chrono::Utc>> {
        DateTime::from_timestamp_micros(self.micros)
    }

    /// The cursor of this place.
    pub(crate) fn cursor(&self, secrets: &Secrets, scope: CursorScope<'_>) -> String {
        let payload = serde_json::to_vec(self).unwrap_or_default();
        let mut bytes = vec![VERSION];
        bytes.extend(secrets.sign(Purpose::Cursor, &parts(scope, &payload)));
        bytes.extend(payload);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// The place of a cursor; `None` if it is none, or belongs to something else.
    pub(crate) fn of(cursor: &str, secrets: &Secrets, scope: CursorScope<'_>) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(cursor).ok()?;
        let (version, rest) = bytes.split_first()?;
        let (signature, payload) = rest.split_at_checked(SIGNATURE)?;
        let is_ours = *version == VERSION
            && secrets.verify(Purpose::Cursor, &parts(scope, payload), signature);
        is_ours.then(|| serde_json::from_slice(payload).ok()).flatten()
    }
}

fn parts<'a>(scope: CursorScope<'a>, payload: &'a [u8]) -> [&'a [u8]; 4] {
    let CursorScope { tenant, endpoint, filter } = scope;
    // No tenant's name is empty.
    let tenant = tenant.map(TenantId::as_str).unwrap_or_default();
    [tenant.as_bytes(), endpoint.as_bytes(), filter.as_bytes(), payload]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_only_where_it_belongs_and_unchanged() {
        let secrets = Secrets::new(["s"]).unwrap();
        let (acme, globex) = (TenantId::new("acme").unwrap(), TenantId::new("globex").unwrap());
        let at = DateTime::from_timestamp_micros(1_800_000_000_000_001).unwrap();
        let place = Place::new(at, "c/1");
        let scope = CursorScope { tenant: Some(&acme), endpoint: "list", filter: "status=active" };
        let cursor = place.cursor(&secrets, scope);
        assert_eq!(Place::of(&cursor, &secrets, scope), Some(place.clone()));
        assert_eq!(place.at(), Some(at));
        for other in [
            CursorScope { tenant: Some(&globex), ..scope },
            CursorScope { endpoint: "full", ..scope },
            CursorScope { filter: "", ..scope },
        ] {
            assert_eq!(Place::of(&cursor, &secrets, other), None, "{other:?}");
        }
        let other_secret = Secrets::new(["t"]).unwrap();
        assert_eq!(Place::of(&cursor, &other_secret, scope), None);
        for at in 0..cursor.len() {
            let mut changed = cursor.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            assert_eq!(Place::of(&changed, &secrets, scope), None, "{changed}");
        }
        for bad in ["", "AQ", "é", "AAAA", &cursor[1..], &format!("{cursor}=")] {
            assert_eq!(Place::of(bad, &secrets, scope), None, "{bad}");
        }
    }
}

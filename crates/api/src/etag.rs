//! ETags and conditional requests (RFC 9110, 8.8.3 and 13.1.2).

use access::{Purpose, Secrets};
use axum::http::header::IF_NONE_MATCH;
use axum::http::{HeaderMap, HeaderValue};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// The tag of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ETag(String);

impl ETag {
    /// The tag of an answer that these parts determine. It is keyed, so it says nothing about the content to whoever only
    /// sees the tag.
    pub(crate) fn of(secrets: &Secrets, parts: &[&[u8]]) -> Self {
        let signature = secrets.sign(Purpose::ETag, parts);
        Self(format!("\"{}\"", URL_SAFE_NO_PAD.encode(&signature[..16])))
    }

    pub(crate) fn value(&self) -> Option<HeaderValue> {
        HeaderValue::from_str(&self.0).ok()
    }

    /// Whether the client has this answer already.
    pub(crate) fn is_known(&self, headers: &HeaderMap) -> bool {
        let given = headers.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
        let mut tags = given.flat_map(|value| value.split(',')).map(str::trim);
        tags.any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_known_where_it_was_sent_alone_or_among_others() {
        let secrets = Secrets::new(["s"]).unwrap();
        let tag = ETag::of(&secrets, &[b"a", b"b"]);
        assert_ne!(tag, ETag::of(&secrets, &[b"ab"]));
        let known = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(IF_NONE_MATCH, value.parse().unwrap());
            tag.is_known(&headers)
        };
        assert!(known(&tag.0) && known(&format!("\"x\", W/{}", tag.0)) && known("*"));
        assert!(!known("\"x\"") && !known("") && !tag.is_known(&HeaderMap::new()));
    }
}

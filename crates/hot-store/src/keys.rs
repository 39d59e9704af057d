//! Every Redis key that this crate uses.
//!
//! One file, so that "what do we keep in Redis?" has one answer, and so that no two uses can meet in
//! one key. Tenant and conversation are escaped, so two conversations never share a key, whatever
//! their ids hold; the braces are the hash tag of Redis Cluster, so everything about a conversation
//! lies in one slot.

use domain::ids::{ConversationKey, TenantId, escape};

/// The hot copy of a conversation: `messages:{tenant/conversation}`, a sorted set.
pub(crate) fn messages(key: &ConversationKey) -> String {
    let (tenant, conversation) = (escape(key.tenant.as_str()), escape(key.conversation.as_str()));
    // Made for every conversation of every batch, for half of what `format!` costs.
    ["messages:{", &tenant, "/", &conversation, "}"].concat()
}

/// What `SCAN … MATCH` takes for the hot copies of one tenant or of all. No character of an escaped id
/// means anything there.
pub(crate) fn pattern(tenant: Option<&TenantId>) -> String {
    match tenant {
        Some(tenant) => format!("messages:{{{}/*", escape(tenant.as_str())),
        None => "messages:{*".to_owned(),
    }
}

/// The conversation whose hot copy has this key; `None` for a key that [`messages`] makes for none.
pub(crate) fn conversation_of(name: &str) -> Option<ConversationKey> {
    let pair = name.strip_prefix("messages:{")?.strip_suffix('}')?;
    let (tenant, conversation) = pair.split_once('/')?;
    let key = ConversationKey::parse(&unescape(tenant)?, &unescape(conversation)?).ok()?;
    (messages(&key) == name).then_some(key)
}

/// The id that [`escape`] made this of.
fn unescape(escaped: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(escaped.len());
    let mut rest = escaped.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digit =
                |byte: u8| char::from(byte).to_digit(16).and_then(|it| u8::try_from(it).ok());
            bytes.push(digit(rest.next()?)? << 4 | digit(rest.next()?)?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use domain::ids::ConversationId;

    use super::*;

    fn key(tenant: &str, conversation: &str) -> ConversationKey {
        ConversationKey {
            tenant: TenantId::new(tenant).unwrap(),
            conversation: ConversationId::new(conversation).unwrap(),
        }
    }

    #[test]
    fn the_key_is_the_escaped_pair_in_a_hash_tag() {
        assert_eq!(messages(&key("acme", "c-1")), "messages:{acme/c-1}");
        assert_eq!(messages(&key("a/b", "c}d")), "messages:{a%2Fb/c%7Dd}");
    }

    #[test]
    fn two_conversations_never_share_a_key() {
        let pairs = [("a", "b/c"), ("a/b", "c"), ("a%2Fb", "c"), ("a:b", "c"), ("a", "b:c")];
        let keys: std::collections::BTreeSet<_> =
            pairs.iter().map(|(t, c)| messages(&key(t, c))).collect();
        assert_eq!(keys.len(), pairs.len());
    }

    #[test]
    fn a_key_leads_back_to_its_conversation_and_no_other_does() {
        for (tenant, conversation) in [("acme", "c-1"), ("a/b", "c}d"), ("größe", "*?[x]%2F")] {
            let key = key(tenant, conversation);
            assert_eq!(conversation_of(&messages(&key)), Some(key));
        }
        for name in
            ["messages:{a/b", "messages:{a}", "messages:{a/%zz}", "messages:{a/%2f}", "x:{a/b}"]
        {
            assert_eq!(conversation_of(name), None, "{name}");
        }
    }

    #[test]
    fn the_hash_tag_ends_where_the_conversation_ends() {
        let key = messages(&key("{x}", "}{"));
        assert_eq!(key.matches('{').count(), 1, "{key}");
        assert_eq!(key.find('}'), Some(key.len() - 1), "{key}");
    }
}

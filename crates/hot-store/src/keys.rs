//! Every Redis key that this crate uses.
//!
//! All keys are defined in this file, so that no two uses share a key. Tenant and conversation are
//! escaped, so different conversations have different keys, whatever characters their ids contain.
//! The braces are the hash tag of Redis Cluster, so all keys of a conversation are in one slot.

use domain::ids::{ConversationKey, TenantId, escape};

/// The hot copy of a conversation: `messages:{tenant/conversation}`, a sorted set.
pub(crate) fn messages(key: &ConversationKey) -> String {
    let (tenant, conversation) = (escape(key.tenant.as_str()), escape(key.conversation.as_str()));
    // Runs for every conversation of every batch; `format!` would take twice as long.
    ["messages:{", &tenant, "/", &conversation, "}"].concat()
}

/// The pattern of `SCAN … MATCH` for the hot copies of one tenant or of all. An escaped id contains
/// no special character of patterns.
pub(crate) fn pattern(tenant: Option<&TenantId>) -> String {
    match tenant {
        Some(tenant) => format!("messages:{{{}/*", escape(tenant.as_str())),
        None => "messages:{*".to_owned(),
    }
}

/// The conversation of the hot copy with this key; `None` if [`messages`] never returns this key.
pub(crate) fn conversation_of(name: &str) -> Option<ConversationKey> {
    let pair = name.strip_prefix("messages:{")?.strip_suffix('}')?;
    let (tenant, conversation) = pair.split_once('/')?;
    let key = ConversationKey::parse(&unescape(tenant)?, &unescape(conversation)?).ok()?;
    (messages(&key) == name).then_some(key)
}

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
    fn the_conversation_of_a_key_is_found_and_other_keys_have_none() {
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

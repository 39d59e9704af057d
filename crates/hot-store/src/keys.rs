//! Every Redis key that this crate uses.
//!
//! One file, so that "what do we keep in Redis?" has one answer, and so that no two uses can meet in
//! one key. Tenant and conversation are escaped, so two conversations never share a key, whatever
//! their ids hold; the braces are the hash tag of Redis Cluster, so everything about a conversation
//! lies in one slot.

use domain::ids::{ConversationKey, escape};

/// The hot copy of a conversation: `messages:{tenant/conversation}`, a sorted set.
pub(crate) fn messages(key: &ConversationKey) -> String {
    let (tenant, conversation) = (escape(key.tenant.as_str()), escape(key.conversation.as_str()));
    // Made for every conversation of every batch, for half of what `format!` costs.
    ["messages:{", &tenant, "/", &conversation, "}"].concat()
}

#[cfg(test)]
mod tests {
    use domain::ids::{ConversationId, TenantId};

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
    fn the_hash_tag_ends_where_the_conversation_ends() {
        let key = messages(&key("{x}", "}{"));
        assert_eq!(key.matches('{').count(), 1, "{key}");
        assert_eq!(key.find('}'), Some(key.len() - 1), "{key}");
    }
}

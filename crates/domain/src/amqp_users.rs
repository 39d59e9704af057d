//! Which tenants a user of RabbitMQ may name: the setting `amqp_users`.
//!
//! RabbitMQ compares the property `user_id` of a message with the user of the connection, and refuses another
//! (<https://www.rabbitmq.com/docs/validated-user-id>). So the property says who sent an action, and this mapping says for
//! which tenants that user may send. Without the mapping whoever may publish may name every tenant.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::excerpt::excerpt;
use crate::failure::{DeadLetterReason, Refusal};
use crate::ids::{InvalidId, TenantId};

/// The name of the setting, in errors.
pub const SETTING: &str = "amqp_users";

/// The entry that stands for every tenant.
const EVERY: &str = "*";

/// AMQP's limit of a property such as `user_id`, in bytes.
const MAX_USER_BYTES: usize = 255;

/// How much of a name an error shows, in characters.
const SHOWN: usize = 120;

/// Which tenants each user may name. The default is no mapping: every sender may name every tenant. Clones share it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AmqpUsers(Option<Arc<BTreeMap<String, Tenants>>>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Tenants {
    Every,
    Listed(BTreeSet<TenantId>),
}

/// Why a mapping is invalid: its fault, and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAmqpUsers {
    /// No user is listed.
    #[error("it lists no user, so no action would be accepted: list one, or remove the setting")]
    Empty,
    /// A part between semicolons is no entry.
    #[error("{0:?} is not of the form user=tenant,tenant: separate users by ;")]
    NoEntry(String),
    /// The name of a user is empty.
    #[error("a user has no name: write it before the =")]
    NoName,
    /// `*` in the place of a user.
    #[error("* stands for every tenant, not for every user: list each user by its name")]
    EveryUser,
    /// The name of a user is longer than an AMQP property may be.
    #[error("the name of a user has {0} bytes; the AMQP property user_id has 255 at most")]
    LongName(usize),
    /// A user is listed twice.
    #[error("the user {0:?} is listed twice: list it once, with all of its tenants")]
    Twice(String),
    /// A user has no tenant.
    #[error(
        "the user {0:?} has no tenant: list its tenants, or * for every tenant, or leave the user out"
    )]
    NoTenant(String),
    /// `*` beside other tenants.
    #[error("the user {0:?} has * beside other tenants: * alone is every tenant")]
    EveryAndOthers(String),
    /// No tenant has this id.
    #[error("of the user {user:?}: the tenant {tenant:?} {fault}")]
    Tenant {
        /// The user.
        user: String,
        /// The beginning of the id.
        tenant: String,
        /// What is wrong with it.
        fault: InvalidId,
    },
    /// A percent sign that begins no percent-encoded byte, or bytes that are not UTF-8.
    #[error("{0:?} has a % that begins no percent-encoded UTF-8: write % itself as %25")]
    Percent(String),
}

impl AmqpUsers {
    /// The mapping of a text such as `crm-bot=acme,globex;gateway=*`. In a name, `=`, `,`, `;` and `%` are
    /// percent-encoded (`%3D`, `%2C`, `%3B`, `%25`), and any other byte may be. Spaces around a name do not belong to it.
    ///
    /// # Errors
    /// When the text has another form, or the mapping is invalid.
    pub fn parse(text: &str) -> Result<Self, InvalidAmqpUsers> {
        let mut entries = Vec::new();
        for entry in text.split(';').filter(|entry| !entry.trim().is_empty()) {
            let (user, tenants) = entry
                .split_once('=')
                .ok_or_else(|| InvalidAmqpUsers::NoEntry(shown(entry.trim())))?;
            let tenants = tenants.split(',').map(str::trim).filter(|it| !it.is_empty());
            // A tenant whose id is an asterisk is written %2A.
            let tenant = |text: &str| match text {
                EVERY => Ok(None),
                text => decoded(text).map(Some),
            };
            let tenants = tenants.map(tenant).collect::<Result<Vec<_>, _>>()?;
            entries.push((decoded(user.trim())?, tenants));
        }
        Self::of(entries)
    }

    /// The text of a mapping, for [`parse`](Self::parse). Among the tenants of a user `*` stands for every tenant.
    #[must_use]
    pub fn text_of<'a>(entries: impl IntoIterator<Item = (&'a str, &'a [String])>) -> String {
        let entry = |(user, tenants): (&str, &[String])| {
            let tenant = |it: &String| if it == EVERY { EVERY.to_owned() } else { encoded(it) };
            let tenants: Vec<String> = tenants.iter().map(tenant).collect();
            format!("{}={}", encoded(user), tenants.join(","))
        };
        entries.into_iter().map(entry).collect::<Vec<_>>().join(";")
    }

    /// Whether there is a mapping. Without one every sender may name every tenant.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.is_some()
    }

    /// Checks that this user, as RabbitMQ validated it, may send an action of this tenant.
    ///
    /// # Errors
    /// The refusal `forbidden`, which names the user, the tenant and the setting.
    pub fn check(&self, user: Option<&str>, tenant: &TenantId) -> Result<(), Refusal> {
        let Some(users) = &self.0 else { return Ok(()) };
        let tenants = user.and_then(|user| users.get(user));
        let is_listed = match tenants {
            Some(Tenants::Every) => true,
            Some(Tenants::Listed(tenants)) => tenants.contains(tenant),
            None => false,
        };
        if is_listed {
            return Ok(());
        }
        let tenant = shown(tenant.as_str());
        let detail = match user {
            None => format!(
                "the message has no AMQP property `user_id`, and with the setting `{SETTING}` it needs one: set it to the \
                 user of the connection, which the setting must list for the tenant {tenant:?}"
            ),
            Some(user) => {
                let user = shown(user);
                format!(
                    "the AMQP user {user:?} may not send actions of the tenant {tenant:?}: the setting `{SETTING}` does not \
                     list the tenant for this user. Send it as a user for which it does, or have an operator add it"
                )
            }
        };
        Err(Refusal {
            field: Some("user_id".to_owned()),
            ..Refusal::new(DeadLetterReason::Forbidden, detail)
        })
    }

    /// The mapping of users to tenants; `None` is every tenant.
    fn of(entries: Vec<(String, Vec<Option<String>>)>) -> Result<Self, InvalidAmqpUsers> {
        let mut users = BTreeMap::new();
        for (user, tenants) in entries {
            match user.len() {
                _ if user == EVERY => return Err(InvalidAmqpUsers::EveryUser),
                0 => return Err(InvalidAmqpUsers::NoName),
                1..=MAX_USER_BYTES => {}
                longer => return Err(InvalidAmqpUsers::LongName(longer)),
            }
            let tenants = match &tenants[..] {
                [] => return Err(InvalidAmqpUsers::NoTenant(user)),
                [None] => Tenants::Every,
                several if several.contains(&None) => {
                    return Err(InvalidAmqpUsers::EveryAndOthers(user));
                }
                listed => {
                    let tenant = |id: &String| {
                        TenantId::new(id.as_str()).map_err(|fault| InvalidAmqpUsers::Tenant {
                            user: user.clone(),
                            tenant: shown(id),
                            fault,
                        })
                    };
                    Tenants::Listed(listed.iter().flatten().map(tenant).collect::<Result<_, _>>()?)
                }
            };
            if users.contains_key(&user) {
                return Err(InvalidAmqpUsers::Twice(user));
            }
            users.insert(user, tenants);
        }
        if users.is_empty() {
            return Err(InvalidAmqpUsers::Empty);
        }
        Ok(Self(Some(Arc::new(users))))
    }
}

fn shown(text: &str) -> String {
    excerpt(text, SHOWN).into_owned()
}

/// A name of which every byte that has a meaning in the text form is percent-encoded, and spaces and control characters.
fn encoded(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for c in name.chars() {
        if matches!(c, '=' | ',' | ';' | '%' | '*') || c.is_whitespace() || c.is_control() {
            for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                text.push_str(&format!("%{byte:02X}"));
            }
        } else {
            text.push(c);
        }
    }
    text
}

/// The name of a percent-encoded text.
fn decoded(text: &str) -> Result<String, InvalidAmqpUsers> {
    let fault = || InvalidAmqpUsers::Percent(shown(text));
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let digits = part.get(..2).filter(|it| it.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(byte.ok_or_else(fault)?);
        bytes.extend_from_slice(&part.as_bytes()[2..]);
    }
    String::from_utf8(bytes).map_err(|_| fault())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tenant(id: &str) -> TenantId {
        TenantId::new(id).unwrap()
    }

    fn fault(text: &str) -> String {
        AmqpUsers::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn a_user_may_name_the_tenants_that_are_listed_for_it() {
        let users = AmqpUsers::parse("crm-bot=acme,globex; gateway = * ;").unwrap();
        for (user, id, may) in [
            ("crm-bot", "acme", true),
            ("crm-bot", "globex", true),
            ("crm-bot", "initech", false),
            ("gateway", "initech", true),
            ("gateway", "*", true),
            ("GATEWAY", "acme", false),
            ("", "acme", false),
            ("somebody", "acme", false),
        ] {
            assert_eq!(users.check(Some(user), &tenant(id)).is_ok(), may, "{user} {id}");
        }
        assert!(users.check(None, &tenant("acme")).is_err());
    }

    #[test]
    fn without_a_mapping_every_sender_may_name_every_tenant() {
        let users = AmqpUsers::default();
        assert!(!users.is_set());
        assert_eq!(users.check(None, &tenant("acme")), Ok(()));
        assert_eq!(users.check(Some("anyone"), &tenant("acme")), Ok(()));
    }

    #[test]
    fn a_refusal_names_user_tenant_and_setting() {
        let users = AmqpUsers::parse("crm-bot=acme").unwrap();
        let refusal = users.check(Some("crm-bot"), &tenant("globex")).unwrap_err();
        assert_eq!(refusal.reason, DeadLetterReason::Forbidden);
        assert_eq!(refusal.field.as_deref(), Some("user_id"));
        for part in ["\"crm-bot\"", "\"globex\"", "`amqp_users`"] {
            assert!(refusal.detail.contains(part), "{refusal}");
        }
        let refusal = users.check(None, &tenant("acme")).unwrap_err();
        for part in ["`user_id`", "\"acme\"", "`amqp_users`"] {
            assert!(refusal.detail.contains(part), "{refusal}");
        }
    }

    #[test]
    fn an_asterisk_is_a_tenant_only_if_it_is_encoded() {
        let users = AmqpUsers::parse("bot=%2A").unwrap();
        assert!(users.check(Some("bot"), &tenant("*")).is_ok());
        assert!(users.check(Some("bot"), &tenant("acme")).is_err());
    }

    #[test]
    fn an_invalid_mapping_is_refused_with_the_remedy() {
        for (text, part) in [
            ("", "lists no user"),
            (" ; ", "lists no user"),
            ("bot", "\"bot\" is not of the form user=tenant,tenant"),
            ("=acme", "a user has no name"),
            ("*=acme", "not for every user"),
            ("bot=", "the user \"bot\" has no tenant"),
            ("bot=acme;bot=globex", "the user \"bot\" is listed twice"),
            ("bot=acme,*", "* alone is every tenant"),
            ("bot=a%0", "write % itself as %25"),
            ("bot=a%0g", "write % itself as %25"),
            ("bot=%FF", "write % itself as %25"),
            ("bot=%é", "write % itself as %25"),
            ("bot=a%07", "the tenant \"a\\u{7}\""),
            (&format!("{}=acme", "u".repeat(256)), "has 256 bytes"),
            (&format!("bot={}", "t".repeat(513)), "513 bytes"),
        ] {
            let fault = fault(text);
            assert!(fault.contains(part), "{text}: {fault}");
        }
    }

    proptest! {
        #[test]
        fn names_of_any_characters_are_read_back(user in "[^\\p{Cc}]{1,20}", id in "[^\\p{Cc}]{1,20}") {
            prop_assume!(id != EVERY && user != EVERY);
            let (listed, every) = ([id.clone()], [EVERY.to_owned()]);
            let text = AmqpUsers::text_of([(user.as_str(), &listed[..]), ("every one", &every[..])]);
            prop_assume!(user != "every one");
            let users = AmqpUsers::parse(&text).unwrap();
            prop_assert!(users.check(Some(&user), &tenant(&id)).is_ok());
            prop_assert!(users.check(Some("every one"), &tenant(&id)).is_ok());
            prop_assert!(users.check(Some(&user), &tenant("another tenant of a longer name")).is_err());
        }

        #[test]
        fn a_text_is_a_mapping_or_is_refused_with_a_reason(text in "\\PC{0,40}") {
            if let Err(fault) = AmqpUsers::parse(&text) {
                prop_assert!(!fault.to_string().is_empty());
            }
        }
    }
}

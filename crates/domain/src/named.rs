//! Enums whose variants have a name that is stored or published.

/// Defines an enum from one table of variants and names, so that no variant lacks a name or is
/// missing in `ALL`. The names never change.
#[macro_export]
macro_rules! named {
    (
        $(#[$attribute:meta])*
        pub enum $enum:ident {
            $($(#[$variant_attribute:meta])* $variant:ident = $name:literal,)+
        }
    ) => {
        $(#[$attribute])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $enum {
            $($(#[$variant_attribute])* $variant,)+
        }

        impl $enum {
            /// All of them, in the order of the documentation.
            pub const ALL: [Self; [$($name),+].len()] = [$(Self::$variant),+];

            /// The name of each.
            pub const NAMES: [&'static str; Self::ALL.len()] = [$($name),+];

            /// The name.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }

            /// The variant of a name.
            #[must_use]
            pub fn parse(name: &str) -> Option<Self> {
                Self::ALL.into_iter().find(|variant| variant.as_str() == name)
            }
        }

        impl std::fmt::Display for $enum {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

pub(crate) use named;

#[cfg(test)]
mod tests {
    use crate::failure::{DeadLetterReason, Dependency};
    use crate::message::Role;
    use crate::reply::ErrorType;
    use crate::status::ConversationStatus;

    #[test]
    fn each_name_is_the_one_that_serde_writes_and_belongs_to_one_variant() {
        macro_rules! check {
            ($($enum:ident),+) => {$(
                for variant in $enum::ALL {
                    assert_eq!(serde_json::json!(variant), variant.as_str());
                    assert_eq!($enum::parse(variant.as_str()), Some(variant));
                }
            )+};
        }
        check!(ConversationStatus, DeadLetterReason, ErrorType, Role);
        for dependency in Dependency::ALL {
            assert_eq!(serde_json::json!(dependency), dependency.as_str());
        }
    }
}

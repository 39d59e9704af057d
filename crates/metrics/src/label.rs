//! What may be a label value: a member of a closed set, or a name fixed at compile time.
//!
//! No `String` is a label: tenants, conversations and error texts cannot become labels, so the source
//! code bounds the number of time series.

use domain::failure::{DeadLetterReason, Dependency};

/// A type whose values are label values.
pub trait Label: Copy {
    /// Every value, if the set is closed. Counters over closed sets exist at 0 from the start.
    const CLOSED: Option<&'static [&'static str]>;
    /// What each value of [`Self::CLOSED`] means, in the same order; empty where the values explain
    /// themselves or another page does.
    const MEANINGS: &'static [&'static str] = &[];

    /// The label value.
    fn value(self) -> &'static str;
}

/// A name that is a constant of the program: of a queue, a task, a check.
impl Label for &'static str {
    const CLOSED: Option<&'static [&'static str]> = None;

    fn value(self) -> &'static str {
        self
    }
}

impl Label for Dependency {
    const CLOSED: Option<&'static [&'static str]> = Some(&["rabbitmq", "redis", "postgresql"]);

    fn value(self) -> &'static str {
        self.as_str()
    }
}

impl Label for DeadLetterReason {
    const CLOSED: Option<&'static [&'static str]> = Some(&Self::NAMES);

    fn value(self) -> &'static str {
        self.as_str()
    }
}

/// Declares an enum whose variants are the closed values of a label. The doc comment of a variant is its
/// meaning in `docs/metrics.md`.
macro_rules! label {
    ($(#[$doc:meta])* $name:ident { $($(#[doc = $meaning:literal])+ $variant:ident = $value:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[doc = $meaning])+ $variant,)+ }

        impl $crate::Label for $name {
            const CLOSED: Option<&'static [&'static str]> = Some(&[$($value),+]);
            const MEANINGS: &'static [&'static str] = &[$(concat!($($meaning),+)),+];

            fn value(self) -> &'static str {
                match self { $(Self::$variant => $value,)+ }
            }
        }
    };
}
pub(crate) use label;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_of_a_domain_type_is_in_its_closed_set() {
        fn values<L: Label>(all: impl IntoIterator<Item = L>) -> Vec<&'static str> {
            all.into_iter().map(Label::value).collect()
        }
        assert_eq!(Dependency::CLOSED, Some(values(Dependency::ALL).as_slice()));
        assert_eq!(DeadLetterReason::CLOSED, Some(values(DeadLetterReason::ALL).as_slice()));
    }
}

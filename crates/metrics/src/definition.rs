//! The definition of a metric, and the macro that turns a catalogue of them into types.

/// How a metric behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Only grows; starts at 0 with the process.
    Counter,
    /// The last value set.
    Gauge,
    /// Observations, counted in buckets.
    Histogram,
}

/// A label of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LabelDefinition {
    /// Its name.
    pub name: &'static str,
    /// Its values, if the set is closed.
    pub values: Option<&'static [&'static str]>,
    /// What each value means; empty where the values explain themselves or another page does.
    pub meanings: &'static [&'static str],
}

/// One metric.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Definition {
    /// The full name, as Prometheus sees it.
    pub name: &'static str,
    /// Counter, gauge or histogram.
    pub kind: Kind,
    /// What it counts or measures, such as `seconds`.
    pub unit: &'static str,
    /// The labels, in order.
    pub labels: &'static [LabelDefinition],
    /// The inclusive upper bounds of a histogram's buckets; empty for others.
    pub buckets: &'static [f64],
    /// The help text: one sentence or more.
    pub help: &'static str,
}

/// The buckets of a metric, or none.
pub(crate) const fn first(buckets: &[&'static [f64]]) -> &'static [f64] {
    match buckets {
        [buckets, ..] => buckets,
        [] => &[],
    }
}

/// Turns a list of metrics into an enum, its definitions and its label values. The doc comment of a
/// variant is the help text, so the two cannot differ.
macro_rules! catalogue {
    (
        $(#[$doc:meta])* $kind:ident $name:ident, $families:ident {
            $(
                #[doc = $help:literal] $(#[doc = $more:literal])*
                $variant:ident $({ $($label:ident : $type:ty),+ })?
                    = $metric:literal in $unit:literal $(, $buckets:expr)?;
            )+
        }
    ) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name {
            $(
                #[doc = $help] $(#[doc = $more])*
                $variant $({ $(#[doc = concat!("The label `", stringify!($label), "`.")] $label: $type),+ })?,
            )+
        }

        /// The variants without their labels: positions in the definitions.
        enum $families { $($variant),+ }

        impl $name {
            /// Every metric of this kind.
            pub const DEFINITIONS: &'static [$crate::Definition] = &[$(
                $crate::Definition {
                    name: $metric,
                    kind: $crate::Kind::$kind,
                    unit: $unit,
                    labels: &[$($($crate::LabelDefinition {
                        name: stringify!($label),
                        values: <$type as $crate::Label>::CLOSED,
                        meanings: <$type as $crate::Label>::MEANINGS,
                    }),+)?],
                    buckets: $crate::definition::first(&[$($buckets)?]),
                    help: concat!($help $(, $more)*),
                },
            )+];

            /// The position in [`Self::DEFINITIONS`].
            pub(crate) fn family(self) -> usize {
                match self { $(Self::$variant { .. } => $families::$variant as usize,)+ }
            }

            /// Calls `with` with the label values, in the order of the definition.
            pub(crate) fn with_labels<R>(self, with: impl FnOnce(&[&'static str]) -> R) -> R {
                match self {
                    $(Self::$variant $({ $($label),+ })? => with(&[$($($crate::Label::value($label)),+)?]),)+
                }
            }
        }
    };
}
pub(crate) use catalogue;

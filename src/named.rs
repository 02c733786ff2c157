//! Enums whose variants have names in answers, metrics, records and the configuration.

/// An enum whose variants have names in answers, metrics and records: one list gives both.
macro_rules! named {
    ($(#[$attribute:meta])* $kind:ident { $($(#[$doc:meta])* $variant:ident = $name:literal,)* }) => {
        $(#[$attribute])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $kind { $($(#[$doc])* $variant,)* }

        impl $kind {
            pub const ALL: [$kind; [$($name),*].len()] = [$($kind::$variant),*];

            pub fn as_str(self) -> &'static str {
                match self { $($kind::$variant => $name,)* }
            }

            pub fn parse(text: &str) -> Option<$kind> {
                $kind::ALL.into_iter().find(|value| value.as_str() == text)
            }
        }
    };
}
pub(crate) use named;

//! `keys!`: settings and their reader from one list of fields.

/// Defines a struct of settings that reads itself from a document: each field is a key of the section, with its meaning
/// as doc comment and the method of [`Reader`](crate::spec::reader::Reader) that reads it, whose arguments are the
/// default, if it has one, and the range. They may use the fields above. `as` names a key that is not named as its field.
macro_rules! keys {
    (
        $(#[$attr:meta])*
        pub struct $name:ident in $section:literal {
            $($(#[$($doc:tt)*])* $field:ident $(as $key:literal)?: $type:ty = $read:ident($($arg:expr),*);)*
        }
    ) => {
        $(#[$attr])*
        pub struct $name {
            $($(#[$($doc)*])* pub $field: $type,)*
        }

        impl $name {
            /// The keys, each with its meaning.
            pub const KEYS: &[(&str, &str)] = &[$((
                $crate::spec::keys!(@key $section $field $($key)?),
                concat!($($crate::spec::keys!(@doc $($doc)*)),*),
            )),*];

            /// Reads the keys; what is missing or wrong is recorded as a fault.
            pub fn read(reader: &mut $crate::spec::reader::Reader) -> Self {
                $(let $field = reader.$read($crate::spec::keys!(@key $section $field $($key)?) $(, $arg)*);)*
                Self { $($field),* }
            }

            /// Returns the keys with their values; one without a value is left out.
            pub fn values(&self) -> Vec<(&'static str, toml::Value)> {
                let values =
                    [$(($crate::spec::keys!(@key $section $field $($key)?), toml::Value::try_from(&self.$field))),*];
                values.into_iter().filter_map(|(key, value)| Some((key, value.ok()?))).collect()
            }
        }
    };
    (@key $section:literal $field:ident) => { concat!($section, stringify!($field)) };
    (@key $section:literal $field:ident $key:literal) => { concat!($section, $key) };
    (@doc doc = $doc:literal) => { $doc };
    (@doc $($other:tt)*) => { "" };
}
pub(crate) use keys;

//! Arguments of a call, a filter or a test.

use super::meter::{Failure, Outcome};
use super::value::Value;

#[derive(Debug, Default, Clone)]
pub(super) struct Args {
    pub positional: Vec<Value>,
    pub named: Vec<(String, Value)>,
}

impl Args {
    pub fn of(positional: Vec<Value>) -> Self {
        Self { positional, named: Vec::new() }
    }

    /// Assigns the arguments to parameters, of which the first `required` must be given. A parameter without
    /// a name cannot be given by one.
    ///
    /// # Errors
    /// As Python says them.
    pub fn take<const N: usize>(
        self,
        of: &str,
        names: [&str; N],
        required: usize,
    ) -> Outcome<[Option<Value>; N]> {
        if self.positional.len() > N {
            return Err(Failure::new(format!("{of}() takes at most {N} arguments")));
        }
        let mut values = [const { None }; N];
        for (place, value) in values.iter_mut().zip(self.positional) {
            *place = Some(value);
        }
        for (name, value) in self.named {
            match names.iter().position(|known| *known == name) {
                None => {
                    return Err(Failure::new(format!("{of}() got an unexpected keyword argument '{name}'")));
                }
                Some(at) => {
                    if values[at].replace(value).is_some() {
                        return Err(Failure::new(format!("{of}() got multiple values for '{name}'")));
                    }
                }
            }
        }
        match values.iter().take(required).position(Option::is_none) {
            Some(at) => Err(Failure::new(format!("{of}() misses its argument {}", at + 1))),
            None => Ok(values),
        }
    }

    /// Returns the arguments of a call that takes no names.
    ///
    /// # Errors
    /// When there is one.
    pub fn only_positional(self, of: &str) -> Outcome<Vec<Value>> {
        match self.named.first() {
            Some((name, _)) => {
                Err(Failure::new(format!("{of}() got an unexpected keyword argument '{name}'")))
            }
            None => Ok(self.positional),
        }
    }
}

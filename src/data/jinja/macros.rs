//! Macros: binding a call's arguments to their parameters.

use std::rc::Rc;

use super::args::Args;
use super::ast::Macro;
use super::meter::{Failure, Outcome};
use super::run::Run;

use super::value::{Key, Scope, Value};

impl Run<'_> {
    /// Returns the text of a macro with these arguments.
    pub fn call_macro(&self, of: &Macro, outside: &Rc<Scope>, args: Args) -> Outcome<Value> {
        self.meter.spend(4)?;
        if outside.has_ended() {
            // Jinja2 has lost or changed the variables around it
            return Err(Failure::refused("a macro outside of the loop or block that it stands in"));
        }
        let (caller, kwargs, varargs) =
            (self.program.caller_name, self.program.kwargs_name, self.program.varargs_name);
        let name = of.name.map_or("caller", |name| self.name(name));
        let scope = Scope::new(&of.body.hidden, Some(outside));
        let Args { mut positional, mut named } = args;
        let rest = positional.split_off(positional.len().min(of.parameters.len()));
        let given = positional.len();
        let mut take = |name: &str| {
            let at = named.iter().position(|(known, _)| known == name)?;
            Some(named.remove(at).1)
        };
        let mut values: Vec<Option<Value>> = positional.into_iter().map(Some).collect();
        values.extend(of.parameters[given..].iter().map(|name| take(self.name(*name))));
        if of.uses.caller && !of.parameters.contains(&caller) {
            let none = || Value::undefined("No caller defined");
            scope.set(caller, take("caller").filter(|value| !value.is_none()).unwrap_or_else(none));
        }
        if of.uses.kwargs {
            let entries = named
                .into_iter()
                .map(|(name, value)| Ok((Key::new(&self.meter, &self.meter.text(name)?)?, value)));
            scope.set(kwargs, self.meter.dict(entries.collect::<Outcome<_>>()?)?);
        } else if let Some((found, _)) = named.first() {
            return Err(Failure::new(format!("macro '{name}' takes no keyword argument '{found}'")));
        }
        if of.uses.varargs {
            scope.set(varargs, self.meter.tuple(rest)?);
        } else if !rest.is_empty() {
            let count = of.parameters.len();
            return Err(Failure::new(format!("macro '{name}' takes not more than {count} argument(s)")));
        }
        let defaults = of.parameters.len() - of.defaults.len();
        for (place, (parameter, value)) in of.parameters.iter().zip(values).enumerate() {
            let default = place.checked_sub(defaults).and_then(|at| of.defaults.get(at));
            let value = match (value, default) {
                (Some(value), _) => value,
                (None, Some(default)) => self.eval(default, &scope)?,
                (None, None) => {
                    Value::undefined(format!("parameter '{}' was not provided", self.name(*parameter)))
                }
            };
            scope.set(*parameter, value);
        }
        let (_, text) = self.capture(|| self.exec(&of.body.body, &scope))?;
        Ok(text)
    }
}

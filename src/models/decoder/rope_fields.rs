//! The rotary settings of a decoder's `config.json`, under old and new names, as Transformers 5 reads them
//! (`modeling_rope_utils.py`).

use serde_json::{Map, Value};

use super::fields::Raw;
use crate::fault::{Result, fault};
use crate::models::trunk_config::cut;
use crate::nn::rope::{Rope, Scaling};

/// The settings, and the key that holds them.
struct Given<'a> {
    key: &'static str,
    parameters: Map<String, Value>,
    json: &'a Map<String, Value>,
}

impl<'a> Given<'a> {
    /// Finds the settings; a non-empty `rope_scaling` overrides `rope_parameters`.
    fn new(json: &'a Map<String, Value>) -> Result<Self> {
        let holds = |key: &&str| match json.get(*key) {
            None | Some(Value::Null) => false,
            Some(Value::Object(map)) => !map.is_empty(),
            Some(_) => true,
        };
        let Some(key) = ["rope_scaling", "rope_parameters"].into_iter().find(holds) else {
            return Ok(Self { key: "rope_parameters", parameters: Map::new(), json });
        };
        match json.get(key) {
            Some(Value::Object(map)) => match map.iter().find(|(name, value)| by_layer(name, value)) {
                None => Ok(Self { key, parameters: map.clone(), json }),
                Some((name, _)) => Err(fault(format!(
                    "rotary embeddings that differ by layer type (`{key}.{name}`) are not supported"
                ))
                .into()),
            },
            other => {
                let found = cut(other.unwrap_or(&Value::Null));
                Err(fault(format!("`{key}` must be an object, found {found}")).into())
            }
        }
    }

    /// Reads a number above 0.
    fn number(&self, name: &str) -> Result<Option<f64>> {
        let Some(value) = self.parameters.get(name) else { return Ok(None) };
        match value.as_f64().filter(|x| *x > 0.0) {
            Some(x) => Ok(Some(x)),
            None => {
                let (key, found) = (self.key, cut(value));
                Err(fault(format!("`{key}.{name}` must be above 0, found {found}")).into())
            }
        }
    }

    fn needed(&self, name: &str) -> Result<f64> {
        let key = self.key;
        self.number(name)?.ok_or_else(|| fault(format!("`{key}` lacks `{name}`")).into())
    }

    /// Reads a number of the settings, or else of the file itself (null is an error), or else the default.
    fn or_of_file(&self, name: &str, of_file: Option<f64>, default: f64) -> Result<f64> {
        match self.number(name)?.or(of_file) {
            Some(x) => Ok(x),
            None if self.json.contains_key(name) => {
                Err(fault(format!("`{name}` must be above 0, found null")).into())
            }
            None => Ok(default),
        }
    }

    /// Reads the scaling of the frequencies.
    fn scaling(&self, raw: &Raw, fused: bool) -> Result<Scaling> {
        let (key, kind) = (self.key, self.parameters.get("rope_type").or(self.parameters.get("type")));
        let kind = match kind {
            None => "default",
            Some(value) => value
                .as_str()
                .ok_or_else(|| fault(format!("`{key}.rope_type` must be a text, found {}", cut(value))))?,
        };
        match kind {
            "default" => Ok(Scaling::None),
            "linear" if !fused => Ok(Scaling::Linear { factor: self.needed("factor")? }),
            "llama3" if !fused => Ok(Scaling::Llama3 {
                factor: self.needed("factor")?,
                low: self.needed("low_freq_factor")?,
                high: self.needed("high_freq_factor")?,
                original: match raw.original_max_position_embeddings {
                    Some(positions) => positions as f64,
                    None => self
                        .number("original_max_position_embeddings")?
                        .unwrap_or(raw.max_position_embeddings as f64),
                },
            }),
            other => {
                let known = if fused { "`default`" } else { "`default`, `linear`, `llama3`" };
                Err(fault(format!("the rotary scaling `{other}` is not supported (`{key}`)"))
                    .hint(format!("supported: {known}"))
                    .into())
            }
        }
    }
}

/// Returns true if this entry holds the settings of one layer type.
fn by_layer(name: &str, value: &Value) -> bool {
    value.is_object() || name.ends_with("_attention")
}

/// Reads the rotary embedding of heads of this width. Families with `fused` layers may rotate part of a head.
pub fn rope(raw: &Raw, json: &Map<String, Value>, head_width: i64, fused: bool) -> Result<Rope> {
    let given = Given::new(json)?;
    let theta = given.or_of_file("rope_theta", raw.rope_theta, 10_000.0)?;
    let scaling = given.scaling(raw, fused)?;
    let partial = match (fused, scaling) {
        // The other families' plain rotation ignores it.
        (false, Scaling::None) => 1.0,
        (false, _) => given.number("partial_rotary_factor")?.or(raw.partial_rotary_factor).unwrap_or(1.0),
        (true, _) => given.or_of_file("partial_rotary_factor", raw.partial_rotary_factor, 1.0)?,
    };
    if !(0.0..=1.0).contains(&partial) || (!fused && partial < 1.0) {
        return Err(
            fault(format!("`partial_rotary_factor` {partial} is not supported for this model")).into()
        );
    }
    #[expect(clippy::cast_possible_truncation, reason = "a part of a head's width")]
    let width = (head_width as f64 * partial) as i64;
    if width < 2 || width % 2 != 0 {
        return Err(fault(format!(
            "the rotated part of a head must be even and not empty, found {width} \
             (`head_dim` {head_width}, `partial_rotary_factor` {partial})"
        ))
        .into());
    }
    Ok(Rope { theta, width, scaling })
}

//! Names of tensors in adapter files: of this program, of PEFT, and of the published LoRA-XS code.

use super::{lora_mini, lora_xs, tiny_lora, vera};

/// Naming scheme of the tensors in an adapter file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// This program's: trained tensors of all layers stacked, head and base by their own names.
    Own,
    /// PEFT's (github.com/huggingface/peft at 5d602fd, `utils/save_and_load.py`), without the adapter's name.
    Peft,
    /// PEFT's LoRA with the core as `<layer>_lora_latent_mapping`, as PEFT 0.10 writes what
    /// github.com/MohammadrezaBanaei/LoRA-XS at e50b1a8 hangs on a layer (`utils/initialization_utils.py`).
    Published,
}

impl Layout {
    /// Returns true if the adapter records how its basis was made, with a witness to check it by.
    pub fn knows_basis(self) -> bool {
        self == Self::Own
    }
}

/// Stacked tensors of [`Layout::Own`]: their name, and the suffix of each part's name after the layer's path.
pub const STACKS: [(&str, &str); 3] = [
    (lora_xs::STACK, lora_xs::CORE),
    (lora_mini::INNER[0], lora_mini::INNER[0]),
    (lora_mini::INNER[1], lora_mini::INNER[1]),
];

/// Prefix of every path in a PEFT file.
const ROOT: &str = "base_model.model.";
/// Part of a path before a module stored whole, in a state dict saved from memory.
const WHOLE: &str = "modules_to_save";
/// Parts of a path after which a key may name the adapter.
const PARAMETERS: [&str; 11] = [
    WHOLE,
    "lora_A",
    "lora_B",
    vera::SCALES[0],
    vera::SCALES[1],
    vera::PAIR[0],
    vera::PAIR[1],
    tiny_lora::FROZEN[0],
    tiny_lora::FROZEN[1],
    tiny_lora::FROZEN[2],
    "tinylora_v",
];
/// Endings of the core's name in the published layout, as saved and as loaded.
const LATENT: [&str; 2] = ["_lora_latent_mapping.weight", ".default_lora_latent_mapping.weight"];

/// Returns the name in a PEFT file of the tensor that this program calls `name`.
pub fn peft_key(name: &str) -> String {
    let of_model = name.starts_with(tiny_lora::VECTOR) || vera::PAIR.contains(&name);
    if of_model { format!("base_model.{name}") } else { format!("{ROOT}{name}") }
}

/// Returns this program's name of the tensor that a PEFT file names `key`, and the adapter's name if the key
/// holds one: a state dict saved from memory has `lora_A.default.weight` for `lora_A.weight`, and a tensor
/// saved outside of `PeftModel` lacks the root.
pub fn plain_name(key: &str) -> (String, Option<&str>) {
    if let Some(module) = latent_module(key) {
        return (format!("{module}.{}", lora_xs::CORE), None);
    }
    let name = [ROOT, "base_model."].iter().find_map(|root| key.strip_prefix(root)).unwrap_or(key);
    let parts: Vec<&str> = name.split('.').collect();
    let Some(at) = parts.iter().rposition(|part| PARAMETERS.contains(part)) else {
        return (name.to_owned(), None);
    };
    let (before, after) = (&parts[..=at], &parts[at + 1..]);
    let (adapter, after) = match (parts[at], after) {
        ("lora_A" | "lora_B", [adapter, weight @ "weight"]) => (Some(*adapter), vec![*weight]),
        (WHOLE, [adapter, rest @ ..]) if !rest.is_empty() => (Some(*adapter), rest.to_vec()),
        (WHOLE | "lora_A" | "lora_B", rest) => (None, rest.to_vec()),
        (part, [adapter, group]) if format!("{part}.") == tiny_lora::VECTOR => (Some(*adapter), vec![*group]),
        (part, [adapter]) if format!("{part}.") != tiny_lora::VECTOR => (Some(*adapter), vec![]),
        (_, rest) => (None, rest.to_vec()),
    };
    let before = before.iter().filter(|part| **part != WHOLE).copied();
    (before.chain(after).collect::<Vec<_>>().join("."), adapter)
}

/// Returns the module whose core a published file names `key`.
pub fn latent_module(key: &str) -> Option<&str> {
    let name = key.strip_prefix(ROOT)?;
    // The longer ending first: it also ends in the shorter one's letters.
    LATENT.into_iter().rev().find_map(|ending| name.strip_suffix(ending))
}

/// Returns the modules that PEFT must restore whole for these head tensors: a path's first part, or a pooler.
pub fn saved_modules<'a>(head: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut modules: Vec<String> = head
        .map(|name| {
            let first = name.split('.').next().unwrap_or(name);
            (if name.contains(".pooler.") { "pooler" } else { first }).to_owned()
        })
        .collect();
    modules.sort();
    modules.dedup();
    modules
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_a_key_has_one_plain_name() {
        let layer = "bert.encoder.layer.0.attention.self.query";
        let cases = [
            (format!("{layer}.lora_A.weight"), format!("base_model.model.{layer}.lora_A.default.weight")),
            (format!("{layer}.lora_B.weight"), format!("{layer}.lora_B.weight.weight")),
            (format!("{layer}.vera_lambda_b"), format!("base_model.model.{layer}.vera_lambda_b.other")),
            ("vera_A".to_owned(), "base_model.vera_A.default".to_owned()),
            ("tinylora_v.3".to_owned(), "base_model.tinylora_v.default.3".to_owned()),
            (format!("{layer}.tinylora_P"), format!("base_model.model.{layer}.tinylora_P.default")),
            (
                "classifier.weight".to_owned(),
                "base_model.model.classifier.modules_to_save.default.weight".to_owned(),
            ),
            ("classifier.dense.bias".to_owned(), "classifier.modules_to_save.default.dense.bias".to_owned()),
        ];
        for (plain, key) in cases {
            let (found, adapter) = plain_name(&key);
            assert_eq!((found.as_str(), adapter.is_some()), (plain.as_str(), true), "{key}");
            for key in [plain.clone(), peft_key(&plain)] {
                assert_eq!(plain_name(&key), (plain.clone(), None), "{key}");
            }
        }
        for ending in LATENT {
            let key = format!("{ROOT}{layer}{ending}");
            assert_eq!(plain_name(&key), (format!("{layer}.R"), None), "{key}");
        }
    }
}

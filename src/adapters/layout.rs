//! Names of tensors in adapter files: of this program, of PEFT, and of the published LoRA-XS code.

use super::{lora_mini, lora_xs, tiny_lora, vera};

/// The three ways in which an adapter file names its tensors.
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
    /// Whether the adapter says how its basis was made, with a witness to check it by.
    pub fn knows_basis(self) -> bool {
        self == Self::Own
    }
}

/// Stacked tensors of [`Layout::Own`]: their name, and what follows the layer's path in the name of each part.
pub const STACKS: [(&str, &str); 3] = [
    ("lora_xs_R", lora_xs::CORE),
    (lora_mini::INNER[0], lora_mini::INNER[0]),
    (lora_mini::INNER[1], lora_mini::INNER[1]),
];

/// What stands before every path in a PEFT file.
const ROOT: &str = "base_model.model.";
/// Endings of the core's name in the published layout, as saved and as loaded.
const LATENT: [&str; 2] = ["_lora_latent_mapping.weight", ".default_lora_latent_mapping.weight"];

/// The name in a PEFT file of a tensor that this program calls `name`.
pub fn peft_key(name: &str) -> String {
    let of_model = name.starts_with(tiny_lora::VECTOR) || vera::PAIR.contains(&name);
    if of_model { format!("base_model.{name}") } else { format!("{ROOT}{name}") }
}

/// What this program calls the tensor that a PEFT file names `key`; `None` where PEFT writes no such name.
pub fn peft_name(key: &str) -> Option<&str> {
    key.strip_prefix(ROOT).or_else(|| key.strip_prefix("base_model."))
}

/// The names that the core of `module` may have in the published layout.
pub fn latent_keys(module: &str) -> [String; 2] {
    LATENT.map(|ending| format!("{ROOT}{module}{ending}"))
}

/// The module whose core a published file names `key`.
pub fn latent_module(key: &str) -> Option<&str> {
    let name = key.strip_prefix(ROOT)?;
    // The longer ending first: it also ends in the shorter one's letters.
    LATENT.into_iter().rev().find_map(|ending| name.strip_suffix(ending))
}

/// The modules that PEFT must restore whole for these tensors of a head: the first part of a path, or a pooler.
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

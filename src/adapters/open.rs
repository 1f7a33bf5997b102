//! Opening an adapter folder: of this program, of PEFT, or of the published LoRA-XS code.

use std::path::Path;

use anyhow::Context as _;
use serde_json::Value;
use tch::{Device, Kind, Tensor};

use super::basis::Basis;
use super::file::{AdapterConfig, AdapterFile, BasisRecord, CONFIG, OWN, WEIGHTS};
use super::layout::{Layout, STACKS};
use super::lora_mini::LoraMiniConfig;
use super::lora_xs::LoraXsConfig;
use super::peft_config::Json;
use super::svd::Factors;
use super::tiny_lora::{self, TinyLoraConfig};
use super::vera::{self, VeraConfig};
use super::{Method, foreign, lora};
use crate::fault::{Result, fault, reading};
use crate::files;
use crate::spec::Tying;
use crate::torch::tensors::Tensors;

impl AdapterFile {
    /// Opens an adapter folder.
    ///
    /// # Errors
    /// Names the file that is missing or broken, or what the adapter has that cannot be loaded.
    pub fn open(folder: &Path) -> Result<Self> {
        let _reading = reading(folder);
        let path = folder.join(CONFIG);
        if !path.exists() {
            let missing = fault(format!("`{}` is not an adapter: it has no `{CONFIG}`", folder.display()));
            return Err(missing.hint("an adapter is a folder such as a run's `adapter`").into());
        }
        let json: Json = files::read_json(&path)?;
        let own = json.get("peft_type").and_then(Value::as_str) == Some(OWN);
        let opened = if own { open_own(folder) } else { foreign::open(folder, &json) };
        let checked = opened.and_then(|opened| {
            opened.check_labels()?;
            Ok(opened)
        });
        checked.with_context(|| format!("cannot use the adapter `{}`", folder.display()))
    }

    /// Refuses class names whose number differs from the outputs of the stored head.
    fn check_labels(&self) -> Result<()> {
        let names = self.config.labels.len().max(1) as i64;
        match self.head_outputs().filter(|_| !self.config.dataset.is_empty()) {
            Some(outputs) if outputs != names => {
                let message = format!("its head has {outputs} outputs, but `labels` names {names}");
                Err(fault(message).hint("config and weights belong to different adapters").into())
            }
            _ => Ok(()),
        }
    }

    /// Returns the basis that the stored A and B of every module form; `None` if the file holds none.
    ///
    /// # Errors
    /// When the config promises factors that the file lacks.
    pub fn stored_basis(&self) -> Result<Option<Basis>> {
        let config = &self.config;
        let names = match (self.layout, &config.method) {
            (Layout::Own, _) if config.basis.as_ref().is_some_and(|basis| basis.with_basis) => ["A", "B"],
            (Layout::Peft, Method::TinyLora(_)) => [tiny_lora::FROZEN[0], tiny_lora::FROZEN[1]],
            (Layout::Published, _) => lora::FACTORS,
            _ => return Ok(None),
        };
        let mut modules = Vec::with_capacity(config.modules.len());
        for module in &config.modules {
            let read =
                |part: &str| self.tensors.tensor(&format!("{module}.{part}"), Some(Kind::Float), Device::Cpu);
            let rank = config.method.basis_rank().unwrap_or(0);
            let s = Tensor::zeros([rank], (Kind::Float, Device::Cpu));
            let factors = Factors { a: read(names[0])?, b: read(names[1])?, s, captured_energy: 0.0 };
            modules.push((module.clone(), factors));
        }
        let spec = config
            .basis
            .as_ref()
            .map_or_else(|| foreign::only_rank(&config.method), |basis| basis.spec.clone());
        Ok(Some(Basis { spec, base_hash: config.base_hash.clone(), modules }))
    }

    /// Returns the other frozen tensors in the file, by the names that methods give them.
    ///
    /// # Errors
    /// When one cannot be read, or the pair that the config promises is not there.
    pub fn stored_frozen(&self) -> Result<std::collections::BTreeMap<String, Tensor>> {
        if let Method::Vera(VeraConfig { save_projection, .. }) = self.config.method {
            let [a, b] = vera::PAIR.map(|name| self.tensors.contains(name));
            if a != b || save_projection && !a {
                let missing = vera::PAIR[usize::from(a)];
                return Err(fault(format!("`{WEIGHTS}` lacks `{missing}`, half of the shared pair"))
                    .hint("only `save_projection` false says that the pair is drawn again from its seed")
                    .into());
            }
        }
        let names = self.tensors.names().filter(|name| self.layout == Layout::Peft && self.is_frozen(name));
        let read =
            |name: &str| Ok((name.to_owned(), self.tensors.tensor(name, Some(Kind::Float), Device::Cpu)?));
        names.map(read).collect()
    }

    /// Returns the name of the stored tensor that fills the trained tensor `name`.
    pub(super) fn key(&self, name: &str) -> String {
        if let (Method::TinyLora(TinyLoraConfig { tying: Tying::Kind, .. }), Some(group)) =
            (&self.config.method, name.strip_prefix(tiny_lora::VECTOR))
        {
            // Any copy will do: that of the group's first layer.
            let names: Vec<&str> = self.config.modules.iter().map(String::as_str).collect();
            let groups = self.config.method.groups(&names);
            let first = groups.iter().position(|known| known.to_string() == group).unwrap_or(groups.len());
            return format!("{}{first}", tiny_lora::VECTOR);
        }
        name.to_owned()
    }

    /// Returns true if `name` is a stored tensor that is not trained.
    pub(super) fn is_frozen(&self, name: &str) -> bool {
        if self.layout == Layout::Own {
            let stored = self.config.basis.as_ref().is_some_and(|basis| basis.with_basis);
            let module = name.strip_suffix(".A").or_else(|| name.strip_suffix(".B"));
            return stored && module.is_some_and(|module| self.config.modules.iter().any(|m| m == module));
        }
        // The base's own weights, which a state dict saved from memory holds beside their trained copies.
        name.contains(".original_module.") || self.config.method.is_frozen(name)
    }
}

fn open_own(folder: &Path) -> Result<AdapterFile> {
    let path = folder.join(CONFIG);
    let json: Json = files::read_json(&path)?;
    let methods = Method::all();
    let known: Vec<&str> =
        methods.iter().filter(|method| !method.is_of_peft()).map(|method| method.name()).collect();
    let method = json.get("method").and_then(Value::as_str).unwrap_or_default();
    if !known.contains(&method) {
        return Err(fault(format!("the unknown `method` `{method}`"))
            .hint(format!("known methods are `{}`", known.join("`, `")))
            .into());
    }
    check_types(&json)?;
    let mut config: AdapterConfig = files::read_json(&path)?;
    if config.method.basis_rank().is_some() {
        config.basis = Some(files::read_json::<BasisRecord>(&path)?);
    }
    check_numbers(&config)?;
    let tensors = Tensors::open(&[folder.join(WEIGHTS)])?;
    let count = config.modules.len() as i64;
    let expected = config.method.stacks();
    for (stack, _) in STACKS {
        let wanted = expected.iter().find(|(name, _)| *name == stack);
        let wanted = wanted.map(|(_, shape)| [&[count], shape.as_slice()].concat());
        let wanted = wanted.as_deref();
        match (tensors.shape(stack), wanted) {
            (found, wanted) if found == wanted => {}
            (Some(_), None) => {
                let method = config.method.name();
                return Err(fault(format!(
                    "it says `{method}`, but the file beside it holds cores `{stack}`"
                ))
                .into());
            }
            (found, wanted) => {
                return Err(fault(format!(
                    "`{}` holds cores of shape {:?}, its config says {:?}",
                    folder.join(WEIGHTS).display(),
                    found.unwrap_or_default(),
                    wanted.unwrap_or_default()
                ))
                .into());
            }
        }
    }
    if let Some((basis, r)) = config.basis.as_ref().zip(config.method.basis_rank())
        && basis.spec.rank != r
    {
        let rank = basis.spec.rank;
        return Err(fault(format!("`basis.rank` is {rank}, expected {r}, the rank of the adapter")).into());
    }
    Ok(AdapterFile { config, layout: Layout::Own, tensors })
}

/// Refuses settings of the wrong type by name, which serde does not give for a tagged enum.
fn check_types(json: &Json) -> Result<()> {
    for (key, value) in json {
        let expected = match key.as_str() {
            "r" | "rank_a" | "rank_b" if !value.is_i64() => "a whole number",
            "lora_alpha" if !value.is_number() => "a number",
            _ => continue,
        };
        return Err(fault(format!("`{key}`: expected {expected}, found {value}")).into());
    }
    Ok(())
}

/// Refuses values that training never writes.
fn check_numbers(config: &AdapterConfig) -> Result<()> {
    let (numbers, alpha) = match config.method {
        Method::LoraXs(LoraXsConfig { r, lora_alpha }) => (vec![r], lora_alpha),
        Method::LoraMini(LoraMiniConfig { rank_a, rank_b, r, lora_alpha }) => {
            (vec![r, rank_a, rank_b], lora_alpha)
        }
        _ => return Ok(()),
    };
    if numbers.iter().any(|&r| r < 1) || !(alpha.is_finite() && alpha > 0.0) {
        let message =
            format!("expected `r` of at least 1 and `lora_alpha` above 0, found {numbers:?} and {alpha}");
        return Err(fault(message).into());
    }
    let mut names: Vec<&String> = config.modules.iter().collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(fault(format!("`modules` names `{}` twice", twice[0])).into());
    }
    let [modules, witness] = [config.modules.len(), config.basis.as_ref().map_or(0, |b| b.witness.len())];
    if modules == 0 || modules != witness {
        return Err(
            fault(format!("expected a witness for each module, found {witness} for {modules}")).into()
        );
    }
    Ok(())
}

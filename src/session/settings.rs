//! A recipe's settings as adapters, decomposition and libtorch know them.

use tch::Kind;

use crate::adapters::basis::{BasisSpec, Init, Sigma};
use crate::adapters::{Method, Tying, svd};
use crate::fault::Result;
use crate::recipe::{self, AdapterRecipe, Precision};
use crate::torch;

/// The recipe's method with its settings.
pub fn method(adapter: &AdapterRecipe) -> Method {
    let AdapterRecipe { rank: r, alpha: lora_alpha, rank_a, rank_b, u, projection_seed, .. } = *adapter;
    match adapter.method {
        recipe::Method::LoraXs => Method::LoraXs { r, lora_alpha },
        recipe::Method::Lora => Method::Lora { r, lora_alpha, use_rslora: adapter.rslora },
        recipe::Method::Vera => Method::Vera {
            r,
            d_initial: adapter.d_initial,
            projection_prng_key: projection_seed,
            save_projection: adapter.save_projection,
        },
        recipe::Method::LoraMini => Method::LoraMini { rank_a, rank_b, r, lora_alpha },
        recipe::Method::TinyLora => Method::TinyLora {
            r,
            u,
            untied: if adapter.tie == 0 { 0.0 } else { 1.0 / adapter.tie as f64 },
            tying: match adapter.tying {
                recipe::Tying::Depth => Tying::Depth,
                recipe::Tying::Kind => Tying::Kind,
            },
            projection_seed,
        },
        recipe::Method::Full => Method::Full,
        recipe::Method::Head => Method::Head,
    }
}

/// How the recipe's basis of rank `rank` is made.
pub fn basis_spec(adapter: &AdapterRecipe, rank: i64) -> BasisSpec {
    BasisSpec {
        rank,
        init: match adapter.init {
            recipe::BasisInit::Svd => Init::Svd,
            recipe::BasisInit::Random => Init::Random,
        },
        spectrum: spectrum(adapter.spectrum),
        sigma: sigma(adapter.sigma),
        method: algorithm(adapter.svd),
        iterations: adapter.svd_iterations,
        seed: adapter.svd_seed,
    }
}

/// The recipe's word for the place of the singular values as the decomposition knows it.
pub fn sigma(sigma: recipe::Sigma) -> Sigma {
    match sigma {
        recipe::Sigma::A => Sigma::A,
        recipe::Sigma::B => Sigma::B,
        recipe::Sigma::Split => Sigma::Split,
    }
}

/// The recipe's word for a part of the spectrum as the decomposition knows it.
pub fn spectrum(spectrum: recipe::Spectrum) -> svd::Spectrum {
    match spectrum {
        recipe::Spectrum::Top => svd::Spectrum::Top,
        recipe::Spectrum::Middle => svd::Spectrum::Middle,
        recipe::Spectrum::Bottom => svd::Spectrum::Bottom,
        recipe::Spectrum::Random => svd::Spectrum::Random,
    }
}

/// The recipe's word for an algorithm as the decomposition knows it.
pub fn algorithm(method: recipe::SvdMethod) -> svd::Method {
    match method {
        recipe::SvdMethod::Randomized => svd::Method::Randomized,
        recipe::SvdMethod::Exact => svd::Method::Exact,
    }
}

/// The kind in which the base computes; also switches TF32.
///
/// # Errors
/// When libtorch refuses.
pub fn kind(precision: Precision) -> Result<Kind> {
    torch::allow_tf32(precision == Precision::Tf32)?;
    Ok(match precision {
        Precision::Fp32 | Precision::Tf32 => Kind::Float,
        Precision::Bf16 => Kind::BFloat16,
        Precision::Fp16 => Kind::Half,
    })
}

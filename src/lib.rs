//! Fine-tuning of language models with almost no trainable parameters.
//!
//! Layers look one way only: `commands → session → train, export → eval → models → nn → adapters`, with `data`, `hub`, `recipe` and
//! `report` beside them and `torch` (what tch lacks), `files`, `limits` and `fault` below.
//!
//! A model from a folder, and its logits for a text:
//!
//! ```no_run
//! use loraxs::adapters::Trained;
//! use loraxs::data::tokenize::Tokenizer;
//! use loraxs::models::{Base, Build, CausalLm};
//! use loraxs::nn::layout::{Positions, Sequence};
//! use loraxs::nn::{Packed, Pass};
//! use tch::{Device, Kind, no_grad};
//!
//! let base = Base::open("SmolLM2-135M".as_ref())?;
//! let build =
//!     Build { devices: Device::Cpu.into(), kind: Kind::Float, head: None, seeds: vec![0], train_base: false };
//! let model = CausalLm::load(&base, &build, &mut Trained::new(1))?;
//! let ids = Tokenizer::load(&base.folder)?.encode_whole("The capital of France is")?;
//! let text = Sequence { ids: &ids, types: &[] };
//! let batch = Packed::new(&[vec![text]], Positions::FromZero, model.device());
//! let pass = Pass::evaluation().over(&batch);
//! let logits = no_grad(|| model.hidden(&batch, &pass).map(|hidden| model.logits(&hidden)))?; // [tokens, vocabulary]
//! println!("{}", logits.argmax(-1, false));
//! # anyhow::Ok(())
//! ```

pub mod adapters;
pub mod cli;
pub mod commands;
pub mod data;
pub mod eval;
mod export;
pub mod fault;
mod files;
pub mod generate;
pub mod hub;
mod limits;
pub mod models;
pub mod nn;
pub mod recipe;
pub mod report;
pub mod scoring;
mod session;
pub mod spec;
mod study;
pub mod torch;
pub mod train;

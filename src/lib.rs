//! Fine-tuning of language models with almost no trainable parameters.
//!
//! Layers look one way only: `commands → session → train, export → eval → models → nn → adapters`, with `data`, `hub`, `recipe` and
//! `report` beside them and `torch` (what tch lacks), `files`, `limits` and `fault` below.

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

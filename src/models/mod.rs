//! Models: an opened checkpoint folder ([`Base`]) and what it is built into ([`Classifier`], [`CausalLm`]).

pub mod adapt;
pub mod checkpoint;
pub mod classifier;
pub mod config;
pub mod decoder;
pub mod encoder;
pub mod head;
pub mod head_layer;
pub mod loader;
pub mod model;
pub mod placement;
pub mod self_test;
pub mod trunk;
pub mod trunk_config;

pub use checkpoint::{Base, Build};
pub use classifier::{Backbone, Classifier};
pub use config::Config;
pub use decoder::causal::CausalLm;
pub use head_layer::HeadShape;
pub use model::Model;

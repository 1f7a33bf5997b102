//! Work of the commands: a recipe, run or checkpoint is opened and turned into a model with its adapter, which is trained
//! or scored.
//!
//! | to find | look in |
//! |---|---|
//! | which value wins: command line, recipe, adapter, catalog, checkpoint or default | [`precedence`] |
//! | what a run's folder holds | [`run_folder`]; written by [`recorder`] and [`results`], guarded by [`resume`] (with [`lasting`]) and [`finished`] |
//! | recipe → base and data → model and adapter | [`inputs`] → [`training`], with [`adapter_setup`] |
//! | many runs of one recipe | [`sweep`] |
//! | run or checkpoint → model | [`subject`] |
//! | a data set by its name, and a training's examples | [`sources`], `training_data` |
//! | scores of a subject | [`score`] |
//! | answers to new rows | [`predict`] |
//! | a conversation with a subject | [`chat`] |
//! | where and how far a run goes | [`course`] |
//! | the other processes of a command | [`rendezvous`], and [`launch`] for those that it starts itself |
//! | hub, catalog and device | [`environment`] |
//! | whether base, tokenizer and data set fit each other | [`fit`] |
//! | weights of classes in the loss | [`class_weights`] |
//! | what to do after a command | [`next`] |
//! | every key, for `recipe` | [`mod@reference`] |
//! | costs before a training | [`counts`], [`forecast`] |
//! | report of `doctor` | [`machine`] |
//!
//! Where options of the command line take precedence, `cli`'s arguments are read as they are: plain values, checked for form.

pub mod adapter_setup;
pub mod chat;
pub mod class_weights;
pub mod counts;
pub mod course;
pub mod environment;
pub mod facts;
pub mod finished;
pub mod fit;
pub mod forecast;
pub mod group;
pub mod inputs;
pub mod lasting;
pub mod launch;
pub mod machine;
pub mod next;
pub mod precedence;
pub mod predict;
pub mod recorder;
pub mod reference;
pub mod rendezvous;
pub mod results;
pub mod resume;
pub mod run_folder;
pub mod score;
pub mod sources;
pub mod subject;
pub mod sweep;
pub mod training;
mod training_data;

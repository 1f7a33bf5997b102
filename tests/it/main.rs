//! Integration tests: the library and the built command against references, contracts and broken input.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a test that cannot go on fails, and what it prints is shown with the failure"
)]

mod bench; // copies of fixtures to break, and what an error must look like
mod chat; // conversations in a pipe and a terminal
mod checkpoints; // tensors under other names, of other types, or not needed
mod cli; // help, recipes, options, exit codes
mod cli_decoders; // one clear message for every wrong input to a language model
mod cli_inputs; // one clear message for every wrong input to an encoder
mod cli_runs; // run folders that are full, shared or finished
mod config_fields; // every field of config.json, compared with Transformers
mod contract; // adapters: ΔW, gradients, files, runs trained together
mod data; // local files to tokenised examples
mod decoder_training; // LoRA-XS on decoders against PyTorch
mod decoders; // logits and continuations of every family of decoders against Transformers
mod devices; // attention and caches on any device against plain products
mod divided; // a base over several devices of one process, equal to one
mod doctor; // `doctor` on working and broken machines
mod dry_run; // `--dry-run`: the files it needs, its counts, and what it refuses
mod earlier; // runs and adapters of earlier releases
mod eval_generation; // completions: scored, resumed, written
mod foreign_results; // results of other tools beside ours, and ours for them
mod forked; // runs of the command in forked processes, without its start-up
mod fuzz; // inputs changed at random: an answer or one clear message, in bounded time and memory
mod generation; // completions against Transformers, whatever the slots
mod generation_settings; // `generation_config.json` against Transformers, and its warnings
mod gpu_memory; // recordings and memory of a GPU, on a stand-in for one
mod head_training; // heads for classes, sets, numbers and words against Transformers, scikit-learn and seqeval
mod heads; // classification heads that are there in part, or not at all
mod hostile_templates; // chat templates that never end, fill the memory or overflow the stack
mod hub; // the hub client against a small server
mod interchange; // adapters of PEFT and of the published code, both ways
mod keys; // `recipe`, and docs/keys.md, which it prints
mod merge_decoders; // merged decoders: files, shards, and one loss in every form
mod metrics; // metrics and schedules against scikit-learn, SciPy and Transformers
mod own_kernels; // decoders whose shapes our kernels for a GPU serve
mod parity; // logits and hidden states against Transformers
mod predict; // answers to new rows: equal to those of `eval` and Transformers, streamed, and told why there is none
mod processes; // several processes train as one, by every launcher; ends, refusals, restarts
mod processes_eval; // prompts shared over processes: equal to one, resumed by any number, and one that fails ends all
mod processes_scores; // bases and scores of several processes: those of one, or one message
mod quantised; // messages about quantised checkpoints
mod real_models; // SmolLM2-135M-Instruct against Transformers and PyTorch, killed and resumed
mod recipes; // shipped recipes, faults and overrides
mod rendering; // instructions, prompts and conversations against the published code and Transformers
mod report; // `report`: tables, files, and the page, opened in a browser
mod resume; // killed, interrupted and damaged runs go on to the same bits
mod rows; // files of every form: which rows they hold, what of them is text, how much memory they take
mod scheduler; // requests that come, differ and leave while others run
mod scoring; // verdicts against the published scripts
mod shapes; // rows of every shape against TRL
mod slots; // memory and copies of a cache on a GPU, on a stand-in for one
mod sources; // data as people hold them: a run's own entry, files and folders without one, shares, mixtures
mod standin; // copies, launches and memory of a GPU, on a stand-in for one
mod support; // shared by the tests
mod surroundings; // signals, pipes, terminals, clocks, file names, secrets
mod svd; // decompositions against scikit-learn and NumPy
mod sweep_plans; // sweeps as they are asked for, and one clear message for wrong ones
mod sweeps; // many runs in one folder: together as alone, killed, shared, halved
mod terminal; // progress, logs, quiet, and what comes next
mod tidy; // the rules of the code that no compiler checks
mod tokenizers; // folders of tokenizers against Transformers, special tokens around prompts
mod training; // losses, gradients and cores against PyTorch
mod tutorials; // docs/tutorials by the letter, on tiny checkpoints

//! Names that other programs give to settings, and what they are called here.

/// What PEFT, Transformers, TRL and programs on top of them call a setting, by its last part, and the keys or options that
/// stand for it here.
const NAMES: [(&[&str], &str); 43] = [
    (
        &["model_name_or_path", "base_model", "base_model_name_or_path", "pretrained_model_name_or_path"],
        "`model.name`",
    ),
    (&["model_revision"], "`model.revision`"),
    (&["hidden_dropout_prob", "attention_dropout", "attention_probs_dropout_prob"], "`model.dropout`"),
    (&["peft_type", "peft_method", "finetuning_type", "adapter"], "`adapter.method`"),
    (&["r", "lora_r", "lora_rank", "lora_dim"], "`adapter.rank`"),
    (&["lora_alpha", "scaling"], "`adapter.alpha`"),
    (&["lora_dropout"], "`adapter.dropout`"),
    (&["target_modules", "lora_target", "lora_target_modules", "target_layers"], "`adapter.targets`"),
    (&["use_rslora"], "`adapter.rslora`"),
    (&["init_lora_weights", "init_weights"], "`adapter.init`"),
    (&["projection_prng_key"], "`adapter.projection_seed`"),
    (&["init_sigma"], "`adapter.init_std`"),
    (&["dataset_name", "dataset_id", "datasets", "task_name", "train_dataset"], "`data.dataset`"),
    (&["train_split", "dataset_train_split"], "`data.train`"),
    (
        &["eval_split", "validation_split", "test_split", "dataset_test_split", "eval_dataset"],
        "`data.validation`",
    ),
    (
        &[
            "max_seq_length", "max_seq_len", "model_max_length", "max_len", "cutoff_len", "sequence_len",
            "seq_len",
        ],
        "`data.max_length`",
    ),
    (&["max_train_samples", "max_samples", "num_train_samples"], "`data.limit`"),
    (&["max_eval_samples", "num_eval_samples"], "`data.eval_limit`"),
    (&["num_train_epochs", "num_epochs", "n_epochs", "max_epochs"], "`train.epochs`"),
    (
        &["max_train_steps", "num_steps", "max_iters", "total_steps", "num_training_steps"],
        "`train.max_steps`",
    ),
    (
        &[
            "per_device_train_batch_size",
            "train_batch_size",
            "per_gpu_train_batch_size",
            "global_batch_size",
            "bs",
        ],
        "`train.batch_size`",
    ),
    (
        &["gradient_accumulation_steps", "grad_accum", "gradient_accumulation"],
        "`train.batch_size`, the examples of one step, with `train.micro_batch_size`, those of one pass",
    ),
    (&["per_device_batch_size", "microbatch_size"], "`train.micro_batch_size`"),
    (&["max_tokens", "tokens_per_batch"], "`train.micro_batch_tokens`"),
    (&["lr", "learning-rate", "base_lr", "step_size"], "`train.learning_rate`"),
    (&["head_lr", "classifier_lr", "cls_learning_rate"], "`train.head_learning_rate`"),
    (&["lr_scheduler_type", "lr_scheduler", "scheduler", "lr_schedule"], "`train.schedule`"),
    (&["num_warmup_steps", "warmup_iters"], "`train.warmup_steps`"),
    (&["warmup", "warmup_proportion", "warmup_fraction"], "`train.warmup_ratio`"),
    (&["wd", "decay"], "`train.weight_decay`"),
    (&["clip_grad_norm", "grad_clip", "gradient_clipping", "gradient_clip_val"], "`train.max_grad_norm`"),
    (&["bf16"], "`train.precision = \"bf16\"`"),
    (&["fp16"], "`train.precision = \"fp16\"`"),
    (&["tf32"], "`train.precision = \"tf32\"`"),
    (&["dtype", "torch_dtype", "mixed_precision"], "`train.precision`"),
    (&["random_seed", "data_seed", "random_state"], "`train.seed`"),
    (&["logging_steps", "log_interval"], "`train.log_every`"),
    (&["save_steps", "save_strategy", "save_interval"], "`train.checkpoint_every`"),
    (&["save_total_limit"], "`train.keep_checkpoints`"),
    (&["eval_steps", "eval_strategy", "evaluation_strategy", "eval_interval"], "`eval.every`"),
    (&["metric_for_best_model"], "`eval.metric`"),
    (&["early_stopping_patience", "early_stopping"], "`eval.patience`"),
    (&["per_device_eval_batch_size", "eval_batch_size", "per_gpu_eval_batch_size"], "`eval.batch_size`"),
];

/// The same for what is an option of the command, not a key of the recipe.
const OPTIONS: [(&[&str], &str); 4] = [
    (&["output_dir", "out_dir", "save_dir", "logging_dir"], "the option `--out`"),
    (&["resume_from_checkpoint", "resume"], "the option `--resume`"),
    (&["use_cpu", "no_cuda", "device", "gpu"], "the option `--device`"),
    (&["num_proc", "dataloader_num_workers", "preprocessing_num_workers"], "the option `--threads`"),
];

/// The same for the keys of a catalog entry.
const OF_CATALOG: [(&[&str], &str); 11] = [
    (&["path", "repo", "repo_id", "dataset", "dataset_name"], "`hub`"),
    (&["data_files", "file_name", "filename"], "`files`"),
    (&["data_dir", "folder"], "`dir`"),
    (&["type", "kind", "task_type"], "`task`"),
    (&["text_column", "text_columns", "sentence", "input_columns", "columns"], "`text`"),
    (&["label_column", "label_name", "target", "y"], "`label`"),
    (&["label_names", "class_names", "classes", "label_list", "id2label"], "`labels`"),
    (&["metric", "metric_list", "compute_metrics"], "`metrics`"),
    (&["instruction", "template", "doc_to_text", "prompt_template", "question"], "`prompt`"),
    (&["completion", "output", "answer_template"], "`response`"),
    (&["num_beams"], "`beams`"),
];

/// Returns what stands for `name`, with or without a section, where the first key that it names is among `known`.
pub(super) fn named<'a>(name: &str, mut known: impl Iterator<Item = &'a str>) -> Option<&'static str> {
    let leaf = name.rsplit('.').next().unwrap_or(name).to_lowercase();
    let of = |table: &[(&[&str], &'static str)]| {
        table.iter().find(|(names, _)| names.contains(&leaf.as_str())).map(|(_, here)| *here)
    };
    // Of a catalog, no key has a section.
    if known.any(|key| key.contains('.')) { of(&NAMES).or_else(|| of(&OPTIONS)) } else { of(&OF_CATALOG) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::Recipe;

    #[test]
    fn what_stands_for_a_foreign_name_is_a_key() {
        let recipe: toml::Table = Recipe::parse("model.name = 'm'\ndata.dataset = 'd'", "r", &[])
            .unwrap()
            .to_toml()
            .unwrap()
            .parse()
            .unwrap();
        let others = ["model.dropout", "adapter.rslora", "adapter.projection_seed"];
        for (names, here) in NAMES {
            for key in here.split('`').skip(1).step_by(2) {
                let key = key.split(' ').next().unwrap();
                let (section, leaf) = key.split_once('.').unwrap();
                assert!(recipe[section].get(leaf).is_some() || others.contains(&key), "{key}");
                assert!(!names.contains(&leaf), "{leaf} needs no other name");
            }
        }
    }

    #[test]
    fn a_name_stands_for_one_thing() {
        for table in [&NAMES[..], &OF_CATALOG] {
            let mut all: Vec<&str> = table.iter().flat_map(|(names, _)| *names).copied().collect();
            let count = all.len();
            all.sort_unstable();
            all.dedup();
            assert_eq!(all.len(), count);
        }
    }
}

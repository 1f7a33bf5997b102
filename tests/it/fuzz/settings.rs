//! Changed recipes, catalogs and command lines, and answers that are judged.

use std::fs;
use std::path::Path;

use super::dice::Dice;
use super::kinds::{DRY, EVAL_SUMS, MERGE, TRAIN, edit, owned};
use super::{JUDGE, place, text, words};

pub const RECIPE_KEYS: &str = "name¦revision¦dropout¦method¦rank¦alpha¦targets¦init¦svd¦spectrum¦sigma¦svd_iterations¦svd_seed¦\
    basis¦with_basis¦init_std¦rslora¦d_initial¦projection_seed¦save_projection¦rank_a¦rank_b¦u¦tie¦\
    tying¦dataset¦train¦validation¦max_length¦limit¦eval_limit¦epochs¦max_steps¦batch_size¦\
    micro_batch_size¦micro_batch_tokens¦learning_rate¦head_learning_rate¦class_weights¦schedule¦warmup_ratio¦\
    warmup_steps¦weight_decay¦max_grad_norm¦precision¦seed¦shuffle¦log_every¦checkpoint_every¦\
    keep_checkpoints¦gradient_checkpointing¦init_from¦every¦metric¦patience¦eval.batch_size¦tasks¦validation_seed¦task¦text¦\
    label¦labels¦prompt¦response¦messages¦metrics¦mixture¦\
    sweep¦zip¦random¦halving¦together";

/// Every key of a recipe with its default.
fn whole_recipe(dice: &mut Dice) -> String {
    let method = dice.word("lora-xs¦lora¦vera¦lora-mini¦tiny-lora¦full¦head");
    let text = format!(
        "[model]\nname = \"model\"\n[adapter]\nmethod = {method:?}\n[data]\ndataset = \"tiny/pairs\"\nmax_length = 40\n"
    );
    loraxs::recipe::Recipe::parse(&text, "recipe", &[]).unwrap().to_toml().unwrap()
}

pub fn recipe(dice: &mut Dice, folder: &Path) -> Vec<String> {
    let whole = whole_recipe(dice);
    // How long a training is, is up to who asks for it: those that train take two steps.
    let trains = dice.chance(30);
    let steps =
        ["--set", "train.max_steps=2", "--set", "train.epochs=0", "--set", "adapter.svd_iterations=2"];
    if dice.chance(30) {
        fs::write(folder.join("recipe.toml"), &whole).unwrap();
        let table: toml::Table = toml::from_str(&whole).unwrap();
        let (section, keys) = table.iter().nth(dice.below(table.len())).unwrap();
        let key = keys.as_table().unwrap().keys().nth(dice.below(keys.as_table().unwrap().len())).cloned();
        let set = format!("{section}.{}={}", key.unwrap_or_default(), words::toml_value(dice));
        let set = set.replace('\0', "").chars().take(100_000).collect::<String>();
        let command = if trains { &TRAIN[..] } else { &DRY };
        let steps = if trains { &steps[..] } else { &[] };
        return owned(&[command, &["--set", &set], steps].concat());
    }
    fs::write(folder.join("recipe.toml"), words::toml(dice, &whole, RECIPE_KEYS)).unwrap();
    if trains { owned(&[&TRAIN[..], &steps].concat()) } else { owned(&DRY) }
}

pub const CATALOG_KEYS: &str = "like¦task¦hub¦revision¦dir¦files¦text¦label¦labels¦metrics¦prompt¦response¦answer¦scorers¦\
    max_new_tokens¦stop¦beams¦temperature¦top_p¦top_k¦group_by¦shot¦shot_separator¦shot_split¦\
    messages¦chat¦source¦submission¦submission_names";

pub fn catalog(dice: &mut Dice, folder: &Path) -> Vec<String> {
    edit(&folder.join("datasets.toml"), |bytes| {
        let whole = String::from_utf8(bytes).unwrap();
        let more = "beams = 1\ntemperature = 0.0\ntop_p = 1.0\ntop_k = 0\nshot = \"{question} {answer}\"\nshot_separator = \"\\n\"\n";
        let at = whole.find("[\"sums\"]").unwrap();
        let (others, own) = whole.split_at(at);
        let (sums, chats) = own.split_at(own.find("[\"chats\"]").unwrap());
        let mut changed = words::toml(dice, &format!("{sums}{more}"), CATALOG_KEYS);
        if dice.chance(20) {
            changed.extend(words::toml(dice, others, CATALOG_KEYS));
        } else {
            changed.extend(others.bytes());
        }
        changed.extend(chats.bytes());
        changed
    });
    match dice.below(4) {
        0 => owned(&DRY),
        1 => owned(&[&EVAL_SUMS[..], &["--shots", "2"]].concat()),
        _ => owned(&EVAL_SUMS),
    }
}

/// Options with a number, and what they belong to.
const OPTIONS: [(&str, &[&str]); 18] = [
    ("--max-new-tokens", &EVAL_SUMS),
    ("--max-new-tokens", &EVAL_SUMS),
    ("--shots", &EVAL_SUMS),
    ("--temperature", &EVAL_SUMS),
    ("--top-k", &EVAL_SUMS),
    ("--top-p", &EVAL_SUMS),
    ("--beams", &EVAL_SUMS),
    ("--seed", &EVAL_SUMS),
    ("--limit", &EVAL_SUMS),
    ("--batch-size", &EVAL_SUMS),
    ("--max-length", &EVAL_SUMS),
    ("--split", &EVAL_SUMS),
    ("--precision", &EVAL_SUMS),
    ("--tolerance", &MERGE),
    ("--max-shard-size", &MERGE),
    ("--seed", &["init-svd", "--model", "model", "--rank", "4"]),
    ("--targets", &["init-svd", "--model", "model", "--rank", "4"]),
    ("--rank", &["init-svd", "--model", "model"]),
];

pub fn flags(dice: &mut Dice, _: &Path) -> Vec<String> {
    let (option, command) = OPTIONS[dice.below(OPTIONS.len())];
    let mut args = owned(command);
    let value = |dice: &mut Dice| match dice.below(10) {
        0..6 => text::whole(dice).to_owned(),
        6..9 => text::number(dice).to_owned(),
        _ => text::text(dice).replace('\0', "").chars().take(100_000).collect(),
    };
    args.push(format!("{option}={}", value(dice)));
    for _ in 0..dice.below(3) {
        let (other, of) = OPTIONS[dice.below(OPTIONS.len())];
        if of == command && !args.iter().any(|arg| arg.starts_with(other)) {
            args.push(format!("{other}={}", value(dice)));
        }
    }
    if args.iter().any(|arg| arg.starts_with("--top") || arg.starts_with("--seed"))
        && command[0] == "eval"
        && !args.iter().any(|a| a.starts_with("--temp"))
    {
        args.extend(owned(&["--temperature", "0.7"]));
    }
    args
}

pub fn pairs(folder: &Path) {
    fs::write(place(folder, "pairs.json"), "[[\"The answer is 3\", \"#### 3\"]]").unwrap();
}

pub fn answers(dice: &mut Dice, folder: &Path) -> Vec<String> {
    let pairs: Vec<[String; 2]> = (0..20)
        .map(|_| {
            let depth = 1 + dice.below(4);
            let [completion, gold] = [words::latex(dice, depth), words::latex(dice, depth)];
            let frame = dice.word("The answer is: X¦\\boxed{X}¦$X$¦#### X¦X¦So X.\n\nQuestion:");
            [frame.replace('X', &completion), if dice.chance(50) { gold } else { frame.replace('X', &gold) }]
        })
        .collect();
    fs::write(folder.join("pairs.json"), serde_json::to_vec(&pairs).unwrap()).unwrap();
    owned(&[JUDGE, "pairs.json"])
}

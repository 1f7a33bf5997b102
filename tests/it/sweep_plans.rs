//! Sweeps as users ask for them: plans, shares, and one clear message for wrong input.

use std::fs;

use crate::bench::{Bench, check, text};
use crate::forked;

#[test]
fn a_recipe_with_a_sweep_is_printed_with_it_and_with_every_key() {
    let bench = Bench::new();
    let recipe = "[model]\nname = \"m\"\n[data]\ndataset = \"glue/rte\"\n[train]\nepochs = 4\n\n[sweep]\n\
                  adapter.method = [\"lora-xs\", \"lora\"]\ntrain.seed = [0, 1]\nhalving = { factor = 2, rungs = 2 }\n";
    fs::write(bench.path("mine.toml"), recipe).unwrap();
    let printed = |args: &[&str]| {
        let output = forked::output(&bench.bare(args));
        assert!(output.status.success(), "{args:?}");
        text(&output)
    };
    assert_eq!(printed(&["recipe", "mine"]).trim_end(), recipe.trim_end());
    let all = printed(&["recipe", "mine", "--all"]);
    for line in [
        "\nepochs = 4\n",
        "\n# learning_rate =\n",
        "\nadapter.method = [\"lora-xs\", \"lora\"]\n",
        "; default 0)\nseed = 0\n",
    ] {
        assert!(all.contains(line), "no {line} in {all}");
    }
    fs::write(bench.path("all.toml"), &all).unwrap();
    let load = |name: &str| {
        let path = bench.path(name).display().to_string();
        loraxs::recipe::Sweep::load(&path, &[], &[]).unwrap().unwrap().0
    };
    assert_eq!(load("all.toml").text, load("mine.toml").text);
}

#[test]
fn wrong_sweeps_end_in_one_message_and_leave_no_folder() {
    let bench = Bench::new();
    let recipe = "model.name = \"m\"\ndata.dataset = \"glue/rte\"\n[sweep]\ntrain.seed = [0, 1]\n";
    fs::write(bench.path("mine.toml"), recipe).unwrap();
    let cases: [(&[&str], &str); 11] = [
        (&["--sweep", "train.sede=1,2"], "unknown key `train.sede`; did you mean `train.seed`?"),
        (
            &["--sweep", "adapter.rank=1,2,3", "--sweep", "zip=train.seed+adapter.rank"],
            "expected lists of one length, found 2 values of `train.seed` and 3 of `adapter.rank`",
        ),
        (&["--shard", "4/3"], "expected a share from 1/3 to 3/3"),
        (&["--shard", "0/3"], "expected a share from 1/3 to 3/3"),
        (&["--shard", "3"], "expected a share I/N such as `3/16`"),
        (&["--sweep", "random=0"], "expected a whole number from 1 to 100000"),
        (&["--sweep", "train.seed="], "expected values between commas"),
        (&["--set", "train.seed=1"], "a sweep varies at least one key, found none"),
        (&["--set", "train.seed=1", "--sweep", "train.seed=1,2"], "but `--set train.seed=1` gives one, too"),
        (&["--sweep", "train.seed=1,1"], "two runs are the same: `train.seed = 1` and `train.seed = 1`"),
        (&["--sweep", "halving=true", "--set", "eval.every=never"], "found 0 by `eval.every`"),
    ];
    for (args, words) in cases {
        let args = [&["train", "--recipe", "mine.toml", "--out", "out"], args].concat();
        check(&args, &forked::output(&bench.bare(&args)), 2, &[words]);
        assert!(!bench.path("out").exists());
    }
    let one = ["train", "--recipe", "glue-rte", "--shard", "1/2"];
    check(
        &one,
        &forked::output(&bench.bare(&one)),
        2,
        &["`--shard 1/2` is for a sweep", "--sweep KEY.PATH=V1,V2"],
    );
    fs::create_dir(bench.path("out")).unwrap();
    fs::write(bench.path("out/sweep.toml"), recipe).unwrap();
    let eval = ["eval", "--run", "out"];
    check(
        &eval,
        &forked::output(&bench.bare(&eval)),
        1,
        &["is not a run", "it is a sweep: name one of its runs"],
    );
    let changed = ["train", "--resume", "out", "--set", "train.seed=1"];
    check(&changed, &forked::output(&bench.bare(&changed)), 2, &["a sweep, which goes on as it began"]);
}

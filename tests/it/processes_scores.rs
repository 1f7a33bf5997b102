//! `init-svd` and `eval` by several processes: the files are those of one process, and what is wrong is one message.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::bench::{Bench, copied, rewrite};
use crate::predict::catalog_of_heads;
use crate::support::{Place, encoders, errors, fixture, json, json_lines, together};

/// Runs commands together, which must all end with this exit code.
fn end(commands: &[Command], code: i32) -> Vec<Output> {
    let outputs = together(commands);
    for (rank, output) in outputs.iter().enumerate() {
        assert_eq!(output.status.code(), Some(code), "rank {rank}: {}", errors(output));
    }
    outputs
}

/// Makes each process the only one of a host, which has a cache of its own.
fn apart(place: &Place, mut commands: Vec<Command>) -> Vec<Command> {
    for (rank, command) in commands.iter_mut().enumerate() {
        command.env("LOCAL_RANK", "0").env("LORAXS_CACHE", place.path(&format!("cache-{rank}")));
    }
    commands
}

fn basis(folder: &Path) -> Vec<u8> {
    fs::read(folder.join("basis.safetensors")).unwrap()
}

/// The folder of the only basis in a cache.
fn entry(place: &Place, cache: &str) -> std::path::PathBuf {
    let mut found = fs::read_dir(place.path(cache).join("basis")).unwrap();
    let entry = found.next().unwrap().unwrap().path();
    assert!(found.next().is_none());
    entry
}

/// What `eval` wrote into a folder, without its seconds, and the predictions for a data set.
fn scored(place: &Place, out: &str, dataset: &str) -> (Value, Option<Vec<u8>>) {
    let folder = place.path(out);
    let mut found: Value = json(&folder.join("results.json"));
    let tasks = found.as_object_mut().unwrap();
    tasks.values_mut().for_each(|task| drop(task.as_object_mut().unwrap().remove("seconds").unwrap()));
    (found, fs::read(folder.join(format!("predictions/{dataset}.jsonl"))).ok())
}

fn svd<'a>(model: &'a str, out: &'a str, method: &'a str, targets: &'a str) -> [&'a str; 11] {
    ["init-svd", "--model", model, "--rank", "4", "--method", method, "--targets", targets, "--out", out]
}

#[test]
fn a_basis_is_that_of_one_process_to_the_bit_wherever_it_was_found() {
    let place = Place::new();
    let model = encoders().join("bert-gelu");
    let model = model.to_str().unwrap();
    // The last has more processes than modules.
    for (count, method, targets) in
        [(2, "randomized", "query,value,dense"), (3, "exact", "query,dense"), (5, "exact", "query")]
    {
        let out = format!("of-{count}");
        place.run(&svd(model, "one", method, targets), 0);
        let outputs = end(&apart(&place, place.processes(count, &svd(model, &out, method, targets))), 0);
        let one = basis(&place.path("one"));
        assert!(basis(&place.path(&out)) == one, "{out}");
        for (rank, output) in outputs.iter().enumerate() {
            let cache = format!("cache-{rank}");
            assert!(basis(&entry(&place, &cache)) == one, "{out}: {rank}");
            assert_eq!(output.stdout.is_empty(), rank > 0);
            fs::remove_dir_all(place.path(&cache)).unwrap();
        }
        let modules = |out: &str| -> Vec<[Value; 2]> {
            let report: Value = json(&place.path(out).join("report.json"));
            let modules = report["modules"].as_array().unwrap().iter();
            modules.map(|module| ["name", "captured_energy"].map(|key| module[key].clone())).collect()
        };
        assert_eq!(modules(&out), modules("one"));
    }
    let svd = |out| svd(model, out, "exact", "query,dense");
    place.run(&svd("one"), 0);
    let one = basis(&place.path("one"));
    end(&apart(&place, place.processes(3, &svd("all"))), 0);
    // What only the last process has is everyone's, without a decomposition.
    fs::remove_dir_all(place.path("cache-0")).unwrap();
    fs::write(entry(&place, "cache-1").join("basis.safetensors"), "torn").unwrap();
    let outputs = end(&apart(&place, place.processes(3, &svd("found"))), 0);
    let told = String::from_utf8_lossy(&outputs[0].stdout).into_owned();
    assert!(told.contains("cached") && told.contains(" 0.0 s of decomposition"), "{told}");
    assert!(basis(&place.path("found")) == one);
    (0..3).for_each(|rank| assert!(basis(&entry(&place, &format!("cache-{rank}"))) == one, "{rank}"));
    // The processes of a host have one cache.
    fs::remove_dir_all(place.path("cache")).unwrap();
    end(&place.processes(3, &svd("one")[..9]), 0);
    assert!(basis(&entry(&place, "cache")) == one);
}

#[test]
fn scores_and_predictions_are_those_of_one_process() {
    let place = Place::new();
    let model = encoders().join("bert-gelu");
    // 96 examples in 20 passes and in one.
    for (size, counts) in [("5", [2, 3]), ("96", [2, 5])] {
        let eval = |out| {
            let model = model.to_str().unwrap();
            let task = ["--task", "tiny/pairs", "--split", "train", "--batch-size", size, "--out", out];
            [&["eval", "--model", model][..], &task].concat()
        };
        place.run(&eval("one"), 0);
        let expected = scored(&place, "one", "tiny/pairs");
        assert!(expected.1.is_some());
        for count in counts {
            let outputs = end(&place.processes(count, &eval("all")), 0);
            assert!(scored(&place, "all", "tiny/pairs") == expected, "{size}, {count}");
            assert_eq!(outputs.iter().filter(|output| !output.stdout.is_empty()).count(), 1);
            fs::remove_dir_all(place.path("all")).unwrap();
        }
    }
}

#[test]
fn scores_of_words_are_those_of_one_process() {
    let place = Place::with_own(&catalog_of_heads());
    let recipe = format!(
        "[model]\nname = {:?}\n[adapter]\nrank = 4\nalpha = 4.0\n[data]\ndataset = \"heads/words\"\nmax_length = 32\n[train]\nmax_steps = 4\n",
        encoders().join("bert-gelu")
    );
    place.train(&recipe, "run", &[]);
    let eval = |out| ["eval", "--run", "run", "--out", out, "--batch-size", "3"];
    place.run(&eval("one"), 0);
    end(&place.processes(3, &eval("all")), 0);
    let expected = scored(&place, "one", "heads/words");
    assert!(expected.1.is_some());
    assert!(scored(&place, "all", "heads/words") == expected);
}

#[test]
fn the_loss_of_a_language_model_is_that_of_one_process() {
    let place = Place::of_decoders();
    let model = fixture("decoders/llama-biased");
    let eval = |out| {
        let model = model.to_str().unwrap();
        [
            "eval", "--model", model, "--task", "tiny/instructions", "--batch-size", "1", "--max-length",
            "32", "--out", out,
        ]
    };
    place.run(&eval("one"), 0);
    for count in [2, 3] {
        end(&place.processes(count, &eval("all")), 0);
        assert_eq!(scored(&place, "all", "").0, scored(&place, "one", "").0);
    }
}

#[test]
fn what_is_wrong_is_told_once_by_each_as_one_process_tells_it() {
    let bench = Bench::new();
    let place = &bench.0;
    let told = |args: &[&str], words: &str| {
        let line = |output: &Output| {
            let text = errors(output);
            let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("error: ")).collect();
            assert_eq!(lines.len(), 1, "{text}");
            lines[0].trim_start_matches("error: ").to_owned()
        };
        let expected = line(&place.run(args, 1));
        assert!(expected.contains(words), "no `{words}` in {expected}");
        for output in end(&place.processes(3, args), 1) {
            assert!(line(&output).ends_with(&expected), "{}", errors(&output));
        }
    };
    let broken = copied(&encoders().join("bert-gelu"), &place.path("broken"));
    let huge = |name, value: f64| {
        rewrite(&broken.join("model.safetensors"), |stored| {
            let (kind, shape, bytes) = stored.get_mut(name).unwrap();
            *kind = "F64".to_owned();
            *bytes = value.to_le_bytes().repeat(shape.iter().product());
        });
    };
    let model = broken.to_str().unwrap();
    huge("classifier.weight", 3e38);
    let eval =
        |model| ["eval", "--model", model, "--task", "tiny/pairs", "--batch-size", "2", "--out", "out"];
    told(&eval(model), "the logits of example 0 are not finite");
    huge("bert.encoder.layer.1.output.dense.weight", 1e300);
    let svd = |model, out| svd(model, out, "randomized", "dense");
    told(&svd(model, "basis"), "holds NaN, or a value beyond fp32's range");
    assert!(!place.path("basis").exists());
    // Only the first process writes.
    let model = encoders().join("bert-gelu");
    let model = model.to_str().unwrap();
    fs::create_dir_all(place.path("out")).unwrap();
    fs::write(place.path("out/predictions"), "").unwrap();
    told(&eval(model), "out/predictions");
    fs::write(place.path("taken"), "").unwrap();
    told(&svd(model, "taken"), "taken");
}

#[test]
fn the_first_process_scores_tasks_alone_where_others_cannot_read_the_run() {
    let data = fixture("decoders/data");
    let instructions = fs::read_to_string(data.join("datasets.toml")).unwrap();
    let instructions = instructions.replace("\".\"", &format!("{data:?}"));
    let sums = "[sums]\ntask = \"generation\"\nfiles = { test = \"sums.jsonl\" }\nprompt = \"{question}\"\nanswer = \"{answer}\"\n\
                scorers = [\"gsm8k/flexible\"]\n";
    let place = Place::with_own(&format!("{instructions}{sums}"));
    fs::write(place.path("sums.jsonl"), "{\"question\": \"1 + 1?\", \"answer\": \"#### 2\"}\n").unwrap();
    let recipe = format!(
        "[model]\nname = {:?}\n[adapter]\nrank = 4\nalpha = 4.0\n[data]\ndataset = \"tiny/instructions\"\n[train]\n\
         max_steps = 2\n[eval]\ntasks = [\"sums\"]\n",
        fixture("decoders/llama-biased")
    );
    fs::write(place.path("recipe.toml"), recipe).unwrap();
    let recipe = place.path("recipe.toml");
    let mut commands = place.processes(2, &["train", "--recipe", recipe.to_str().unwrap(), "--out", "run"]);
    fs::create_dir(place.path("elsewhere")).unwrap();
    commands[1].current_dir(place.path("elsewhere"));
    let told = errors(&end(&commands, 0)[0]);
    assert!(told.contains("rank 0 alone scores the recipe's tasks"), "{told}");
    assert_eq!(json_lines::<Value>(&place.path("run/eval/predictions/sums.jsonl")).len(), 1);
    assert!(fs::read_dir(place.path("elsewhere")).unwrap().next().is_none());
}

#[test]
fn processes_that_were_asked_for_different_things_are_refused() {
    let bench = Bench::new();
    let model = encoders().join("bert-gelu");
    let model = model.to_str().unwrap();
    let eval = ["eval", "--model", model, "--split", "train", "--out", "out"];
    let svd = ["init-svd", "--model", model, "--out", "out"];
    for (args, [first, second], words) in [
        (
            &eval[..],
            [&["--limit", "20"][..], &["--limit", "50"]],
            "other data than rank 0: `number of rows` is 50, on rank 0 20",
        ),
        (
            &eval,
            [&["--batch-size", "3"], &["--batch-size", "7"]],
            "another evaluation than rank 0: `--batch-size` is 7, on rank 0 3",
        ),
        (
            &eval,
            [&["--task", "tiny/pairs"], &["--task", "tiny/sentences"]],
            "`--task` is [\"tiny/sentences\"], on rank 0",
        ),
        (&svd, [&["--rank", "3"], &["--rank", "4"]], "another basis than rank 0: `settings` is "),
        (&svd, [&["--targets", "query"], &["--targets", "query,key"]], "`--targets` is [\"query\",\"key\"]"),
    ] {
        let rest = if args[0] == "init-svd" { ["--rank", "3"] } else { ["--task", "tiny/pairs"] };
        let rest = if first[0] == rest[0] { &[][..] } else { &rest };
        let [mut commands, others] =
            [first, second].map(|own| bench.0.processes(2, &[args, own, rest].concat()));
        let port =
            commands[0].get_envs().find(|(key, _)| *key == "MASTER_PORT").unwrap().1.unwrap().to_owned();
        commands[1] = others.into_iter().nth(1).unwrap();
        commands[1].env("MASTER_PORT", port);
        for output in end(&commands, 2) {
            let told = errors(&output);
            assert!(told.contains(words), "no `{words}` in {told}");
        }
    }
    assert!(!bench.path("out").exists());
}

//! The slots of a cache on a GPU: memory for what is written, what stays where it is, and what is read once; on a stand-in for a GPU
//! (`scripts/standin.sh`).

use std::fs;
use std::path::Path;
use std::sync::Arc;

use loraxs::generate::{Event, Limits, Request, SamplingParams, Scheduler};
use serde_json::json;
use tch::Kind;

use crate::bench::{copied, edit};
use crate::decoders::model_of;
use crate::forked;
use crate::own_kernels::{answers, decoder};
use crate::standin::{PROMPTS, standin};
use crate::support::{Place, alone, errors, fixture};

/// A place with so many prompts, each of `shared` words and one of its own.
fn place(count: usize, shared: usize) -> Place {
    let place = Place::with_own(PROMPTS);
    let same = "two plus ".repeat(shared / 2);
    let row = |i: usize| format!("{{\"text\": \"{same}{i}{}\"}}\n", " + 2".repeat(i % 5));
    fs::write(place.path("rows.jsonl"), (0..count).map(row).collect::<String>()).unwrap();
    place
}

#[test]
fn memory_of_a_gpu_is_taken_for_what_is_written() {
    if !standin() {
        return;
    }
    let place = place(40, 2);
    let model = copied(&fixture("decoders/llama-biased"), &place.path("model"));
    let ends: Vec<u32> = (0..101).collect();
    fs::write(model.join("generation_config.json"), json!({"eos_token_id": ends}).to_string()).unwrap();
    let most = |tokens: &str, precision: &str| {
        let how = ["--precision", precision];
        let (_, counts) = answers(&place, &model, (&format!("{precision}-{tokens}"), tokens), &how, &[]);
        counts["most bytes"]
    };
    for precision in ["bf16", "fp32"] {
        let (few, many) = (most("8", precision), most("4096", precision));
        println!("{precision}: {few} and {many} bytes");
        // A token takes 128 or 256 bytes, and 41 slots of 4,096 would take 21 or 43 MB.
        assert!(many < few + (4 << 20), "{precision}: {few} and {many} bytes");
    }
    // Prompts that do not fit into slots as they are at first.
    edit(&model.join("config.json"), |config| config["max_position_embeddings"] = json!(8192));
    let row = |i: usize| format!("{{\"text\": \"{}{i}\"}}\n", "two plus ".repeat(150));
    fs::write(place.path("rows.jsonl"), (0..40).map(row).collect::<String>()).unwrap();
    let (few, many) = (most("9", "fp32"), most("3000", "fp32"));
    println!("long prompts: {few} and {many} bytes");
    assert!(many < few + (8 << 20), "{few} and {many} bytes");
}

#[test]
fn slots_that_grow_keep_what_they_hold() {
    if !standin() {
        return;
    }
    let place = place(9, 10);
    let run = |out: &str, model: &Path, precision: &str, environment: &[(&str, &str)]| {
        let how = ["--precision", precision, "--batch-size", "4"];
        answers(&place, model, (out, "420"), &how, environment)
    };
    let model = fixture("decoders/llama-biased");
    let (expected, _) = run("cpu", &model, "fp32", &[("LORAXS_TEST_DEVICE", "cpu")]);
    assert_eq!(run("gpu", &model, "fp32", &[]).0, expected);
    // Recorded passes write into the cache, also while the host does not know their tokens.
    for (name, model) in [("flash", &model), ("own", &decoder(&place, "llama-biased"))] {
        let with =
            |graphs| run(&format!("{name}-{graphs}"), model, "bf16", &[("LORAXS_CUDA_GRAPHS", graphs)]);
        let ((recorded, counts), (plain, _)) = (with("1"), with("0"));
        assert_eq!(recorded, plain, "{name}");
        assert!(counts["replay"] > 300, "{name}: {} replays", counts["replay"]);
    }
}

#[test]
fn slots_for_which_there_is_no_more_memory_become_fewer() {
    if !standin() {
        return;
    }
    let place = place(9, 10);
    let model = fixture("decoders/llama-biased");
    let run = |out: &str, environment: &[(&str, &str)]| {
        let how = ["--precision", "fp32", "--batch-size", "4"];
        answers(&place, &model, (out, "420"), &how, environment)
    };
    let (expected, counts) = run("enough", &[]);
    // Of five slots, one for a shared beginning, each takes 256 bytes a token.
    let bytes = (counts["most bytes"] - 200_000).to_string();
    let (found, fewer) = run("too-little", &[("STANDIN_BYTES", &bytes)]);
    assert_eq!(found, expected);
    // One copy a pass.
    let passes = [counts, fewer].map(|counts| counts["device to host"]);
    println!("{passes:?} passes");
    assert!(passes[1] > passes[0] + 100, "{passes:?} passes");
}

#[test]
fn a_prompt_that_fills_its_slot_moves_beside_a_pass_that_is_ahead() {
    if !standin() {
        return;
    }
    let _alone = alone();
    let place = place(1, 2);
    let model = copied(&fixture("decoders/llama-biased"), &place.path("model"));
    edit(&model.join("config.json"), |config| config["max_position_embeddings"] = json!(2048));
    let model = model_of(&model, Kind::BFloat16);
    let request = |index: usize, length: usize, new: usize| {
        let ids = (0..length).map(|at| ((index * 31 + at * 7) % 90 + 5) as u32).collect();
        Request { index, ids, params: Arc::new(SamplingParams::greedy(new, &[])), stop: None }
    };
    // The first goes on; three end together; of two whose prompts fill the slots as they are, the first ends at once, and the other takes its place.
    let all = [(8, 120), (8, 20), (8, 20), (8, 20), (256, 1), (256, 6)];
    let all = all.into_iter().enumerate().map(|(index, (length, new))| request(index, length, new));
    let mut scheduler = Scheduler::new(&model, Limits { slots: 4, tokens: 400 });
    for request in all {
        scheduler.submit(request).unwrap();
    }
    let mut ended = 0;
    while !scheduler.is_idle() {
        let events = scheduler.step().unwrap();
        ended += events.iter().filter(|event| matches!(event, Event::Finished(..))).count();
    }
    assert_eq!(ended, 6);
}

#[test]
fn beams_move_their_own_tokens_alone() {
    if !standin() {
        return;
    }
    let place = place(1, 24);
    let model = fixture("decoders/llama-biased");
    let selected = |tokens: &str| {
        let how = ["--precision", "bf16", "--beams", "3"];
        answers(&place, &model, (&format!("beams-{tokens}"), tokens), &how, &[]).1["selected bytes"]
    };
    // Between the eighth and the twelfth token, beams of up to 12 tokens move up to four times; the prompt has 86.
    let (before, after) = (selected("8"), selected("12"));
    println!("{} bytes", after - before);
    assert!(after - before < 4 * 3 * 20 * 128, "{before} and {after} bytes");
}

#[test]
fn what_all_prompts_begin_with_is_read_once() {
    if !standin() {
        return;
    }
    let place = place(12, 24);
    for of in ["llama-biased", "qwen3-window"] {
        let model = decoder(&place, of);
        let run = |out: &str, how: &[&str], environment: &[(&str, &str)]| {
            let (out, how) = (format!("{of}-{out}"), [&["--batch-size", "5"], how].concat());
            answers(&place, &model, (&out, "16"), &how, environment)
        };
        let (expected, _) = run("cpu", &["--precision", "fp32"], &[("LORAXS_TEST_DEVICE", "cpu")]);
        let (found, _) = run("gpu", &["--precision", "fp16"], &[("LORAXS_CUDA_GRAPHS", "0")]);
        // Where two tokens are as likely, fp16 decides between them.
        let apart = found.iter().zip(&expected).filter(|(found, expected)| found != expected).count();
        assert!(found.len() == 12 && apart <= 1, "{of}: {found:?}, {expected:?}");
        let model = model.to_str().unwrap();
        let output = place.command(&[
            "eval", "--model", model, "--task", "my/prompts", "-vv", "--precision", "fp16", "--limit", "5",
            "--out", of,
        ]);
        let said = errors(&forked::output(&output));
        assert!(said.contains("tokens that all prompts begin with are read once"), "{of}: {said}");
        // What is looked up is what is read: 12 prompts, of which all but the last word is the same.
        let how = ["--precision", "fp16", "--batch-size", "12"];
        let (_, counts) = answers(
            &place,
            Path::new(model),
            (&format!("{of}-one"), "1"),
            &how,
            &[("LORAXS_CUDA_GRAPHS", "0")],
        );
        println!("{of}: {} bytes are looked up", counts["selected bytes"]);
        assert!(counts["selected bytes"] < 100_000, "{of}: {} bytes", counts["selected bytes"]);
    }
}

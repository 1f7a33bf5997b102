//! `loraxs doctor`: true of a sound machine, of a broken library, of a device that computes wrongly.

use std::fs;
use std::process::{Command, Output};

use serde_json::Value;

use crate::support::{device_name, errors};

fn doctor(device: &str, variables: &[(&str, &str)]) -> (Output, Value) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loraxs"));
    command.args(["doctor", "--json", "--offline", "--device", device]).envs(variables.iter().copied());
    let output = command.output().unwrap();
    let found = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", errors(&output)));
    (output, found)
}

#[test]
fn a_sound_device_passes_every_check() {
    let (output, found) = doctor(&device_name(), &[]);
    assert_eq!(output.status.code(), Some(0), "{found}");
    let checks = found["self_test"].as_array().unwrap();
    let kernels = found["gpu"]["kernels"].as_str();
    assert_eq!(kernels.is_some_and(|state| state.starts_with("own")), device_name() != "cpu", "{kernels:?}");
    assert!(checks.len() >= 11 && checks.iter().all(|check| check["ok"] == true), "{found}");
    assert!(checks.iter().all(|check| check["error"].as_f64().unwrap() < check["limit"].as_f64().unwrap()));
    assert_eq!((&found["device"], &found["ok"]), (&Value::from(device_name()), &Value::Bool(true)));
    assert!(found["libraries"][0].as_str().unwrap().ends_with("libtorch_cpu.so"));
    assert!(found["caches"][0]["free_bytes"].as_u64().unwrap() > 0);
    assert!(found["hub"].as_str().unwrap().ends_with("not contacted (offline)"));
}

#[test]
fn a_library_that_cannot_be_loaded_is_named() {
    if device_name() != "cpu" {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let absent = doctor("cuda:0", &[]);
    fs::write(folder.path().join("libtorch_cuda.so"), "no library").unwrap();
    let broken = doctor("cuda:0", &[("LD_LIBRARY_PATH", folder.path().to_str().unwrap())]);
    for ((output, found), words) in [(absent, "cannot open"), (broken, "file too short")] {
        assert_eq!(output.status.code(), Some(1), "{found}");
        let problem = found["gpu"]["problem"].as_str().unwrap();
        assert!(problem.starts_with("cannot use `cuda:0`") && problem.contains(words), "{problem}");
        assert!(found["gpu"]["hint"].as_str().unwrap().contains("setup.sh --cuda"), "{found}");
        // The CPU is looked at in its place.
        assert_eq!(found["device"], "cpu");
    }
}

#[test]
fn settings_of_the_hub_that_cannot_be_used_are_reported() {
    let variables = ["HOME", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"];
    let (output, found) = doctor(&device_name(), &variables.map(|name| (name, "")));
    assert_eq!(output.status.code(), Some(1), "{found}");
    let hub = found["hub"].as_str().unwrap();
    assert!(hub.starts_with("cannot be used: cannot locate the hub's cache"), "{hub}");
    assert_eq!((found["caches"].as_array().unwrap().len(), &found["ok"]), (1, &Value::Bool(false)));
    assert!(found["self_test"].as_array().unwrap().iter().all(|check| check["ok"] == true), "{found}");
}

#[test]
fn a_device_that_computes_wrongly_is_found_out() {
    if std::env::var_os("LORAXS_STANDIN").is_none() {
        println!("skipped: scripts/standin.sh runs this");
        return;
    }
    let (output, found) = doctor("cuda:0", &[("STANDIN_WRONG", "1")]);
    assert_eq!(output.status.code(), Some(1), "{found}");
    let wrong: Vec<&str> = found["self_test"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|check| check["ok"] == false)
        .map(|check| check["name"].as_str().unwrap())
        .collect();
    assert!(wrong.len() >= 6, "{wrong:?}");
    assert!(wrong.iter().all(|name| name.ends_with("bf16") || name.ends_with("fp16")), "{wrong:?}");
}

//! `loraxs doctor`: what this machine is to loraxs, and whether its device computes rightly.

use super::{Outcome, VERSION};
use crate::cli::{DoctorArgs, Global};
use crate::fault::Result;
use crate::models::self_test::Check;
use crate::report::{say, table};
use crate::session::machine::{CacheFolder, Findings, UsedGpu};

/// Looks at the machine and tests the device.
/// Fails when settings cannot be used; what is wrong with the machine is reported, with exit code 1.
pub fn run(global: &Global, args: &DoctorArgs) -> Result<Outcome> {
    let findings = Findings::gather(&global.device, global.offline)?;
    if args.json {
        say(&serde_json::to_string_pretty(&findings)?);
    } else {
        show(&findings);
    }
    Ok(if findings.ok { Outcome::Done } else { Outcome::Failed })
}

fn show(findings: &Findings) {
    let gib = |bytes: Option<u64>| {
        bytes.map_or("?".into(), |bytes| format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30)))
    };
    let wide = |bytes: Option<usize>| gib(bytes.map(|bytes| bytes as u64));
    say(&format!("loraxs     {}", VERSION.replace('\n', ", ")));
    findings.libraries.iter().for_each(|path| say(&format!("library    {path}")));
    let bf16 =
        if findings.cpu.multiplies_bf16 { "multiplies bf16" } else { "no bf16 instructions: fp32 is faster" };
    say(&format!(
        "cpu        {} threads, {} free, {bf16}",
        findings.cpu.threads,
        wide(findings.cpu.free_bytes)
    ));
    let driver = findings
        .gpu
        .driver
        .as_deref()
        .map_or("no NVIDIA driver".into(), |version| format!("driver {version}"));
    let models = if findings.gpu.models.is_empty() {
        String::new()
    } else {
        format!(", {}", findings.gpu.models.join(", "))
    };
    say(&format!("gpu        {driver}{models}"));
    for UsedGpu { device, total_bytes, free_bytes, capability, fast } in &findings.gpu.used {
        let fast = if fast.is_empty() {
            "no precision but fp32".into()
        } else {
            format!("fast in {}", fast.join(", "))
        };
        let [total, free] = [total_bytes, free_bytes].map(|bytes| wide(*bytes));
        let capability = capability.as_deref().unwrap_or("?");
        say(&format!("{device:<10} {total}, {free} free, compute capability {capability}, {fast}"));
    }
    if let Some(kernels) = &findings.gpu.kernels {
        say(&format!("kernels    {kernels}"));
    }
    if let Some(problem) = &findings.gpu.problem {
        say(&format!("problem    {problem}"));
    }
    if let Some(hint) = &findings.gpu.hint {
        say(&format!("hint       {hint}"));
    }
    for CacheFolder { folder, bytes, free_bytes } in &findings.caches {
        say(&format!("cache      {folder}: {}, {} free on its disk", gib(Some(*bytes)), gib(*free_bytes)));
    }
    say(&format!("hub        {}", findings.hub));
    say(&format!("\nself-test of {} against fp64 on the CPU", findings.device));
    let row = |check: &Check| {
        let error = check.error.map_or(String::new(), |error| format!("{error:.1e}"));
        let verdict = match &check.failure {
            Some(failure) => failure.clone(),
            None => if check.ok { "ok" } else { "WRONG" }.to_owned(),
        };
        vec![check.name.clone(), error, format!("{:.0e}", check.limit), verdict]
    };
    say(&table(
        &["what", "error", "limit", "verdict"],
        &findings.self_test.iter().map(row).collect::<Vec<_>>(),
    ));
}

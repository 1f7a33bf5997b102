//! `loraxs merge`: a checkpoint that Transformers loads, or an adapter that PEFT loads.

use tch::Kind;

use super::{environment, rebase};
use crate::adapters::Trained;
use crate::cli::{Dtype, Global, MergeArgs};
use crate::export::{AdaptedModel, hf, peft, probe, relative_difference};
use crate::fault::{Result, fault, usage};
use crate::files;
use crate::models::{Base, Build, Model};
use crate::report::say;
use crate::session::environment::Environment;
use crate::session::next::after_merge;
use crate::session::subject::Subject;
use crate::spec::request::MergeFormat;

/// Merges, checks the logits on a probe batch, and only then puts the folder in its place.
/// Fails when there is nothing to merge, a file cannot be written, or the logits differ by more than the
/// tolerance.
pub fn run(global: &Global, args: &MergeArgs) -> Result<()> {
    let place = environment(global, args.subject.run.as_deref())?;
    let subject = Subject::open(&place, &args.subject, &[])?;
    let Some(adapter) = &subject.adapter else {
        return Err(usage("nothing to merge: `--model` needs an `--adapter`")
            .hint("pass the folder of an adapter as `--adapter`, or a run as `--run`")
            .into());
    };
    let head = subject.head()?;
    let (model, trained) = subject.build(&place, Kind::Float, head)?;
    if let Some(folder) = &args.rebase {
        return rebase::run(&place, args, &subject, &trained, folder);
    }
    let labels = subject.labels(head);
    let base = &subject.base.base;
    match args.format {
        MergeFormat::Hf => merge_hf(&place, args, base, model, (&trained, &labels))?,
        MergeFormat::Peft => {
            let source = AdaptedModel { base, model: &model, trained: &trained, labels: &labels };
            let kind = kind(args).unwrap_or(Kind::Float);
            let limit = tolerance(args, kind);
            let difference = files::write_folder(&args.out, |folder| {
                let difference = peft::write(folder, &source, &adapter.config, kind)?;
                check(difference, limit, "weights")
            })?;
            say(&format!(
                "wrote {}: largest relative difference of a ΔW {difference:.2e}",
                args.out.display()
            ));
        }
    }
    say(&after_merge((&args.out, args.format), &subject, head));
    Ok(())
}

fn kind(args: &MergeArgs) -> Option<Kind> {
    args.dtype.map(|dtype| match dtype {
        Dtype::Fp32 => Kind::Float,
        Dtype::Fp16 => Kind::Half,
        Dtype::Bf16 => Kind::BFloat16,
    })
}

fn merge_hf(
    place: &Environment,
    args: &MergeArgs,
    base: &Base,
    mut model: Model,
    (trained, labels): (&Trained, &[String]),
) -> Result<()> {
    let kind = kind(args);
    let limit = tolerance(args, kind.unwrap_or_else(|| stored_kind(base)));
    if let Model::Classifier(classifier) = &mut model {
        hf::settle_padding(base, classifier)?;
    }
    let expected = probe(&base.config, &model)?;
    let head = model.classifier().ok().map(|model| model.shape);
    let (difference, bytes) = files::write_folder(&args.out, |folder| {
        hf::write(folder, &AdaptedModel { base, model: &model, trained, labels }, kind, args.max_shard_size)?;
        // Two models of 7B in fp32 would not fit where one does.
        drop(model);
        // Loaded as any user would, so that names, shapes and files are checked along with the numbers.
        let build = Build {
            devices: place.devices.clone(),
            kind: Kind::Float,
            head,
            seeds: vec![0],
            train_base: false,
        };
        let written = Model::load(&Base::open(folder)?, &build, &mut Trained::new(1))?;
        let difference =
            check(relative_difference(&expected, &probe(&base.config, &written)?), limit, "logits")?;
        Ok((difference, hf::weight_bytes(folder)?))
    })?;
    say(&format!(
        "wrote {} ({:.1} MiB): largest relative difference of a logit on the probe batch {difference:.2e}",
        args.out.display(),
        bytes as f64 / f64::from(1 << 20)
    ));
    Ok(())
}

/// Returns the kind of most of the trunk: that of its first float tensor in a layer.
fn stored_kind(base: &Base) -> Kind {
    let first = base
        .trunk_tensors()
        .into_iter()
        .filter(|(_, stored)| base.tensors.is_float(stored))
        .find(|(name, _)| name.contains(".encoder.") || name.contains(".layers."));
    first.and_then(|(_, name)| base.tensors.kind(&name)).unwrap_or(Kind::Float)
}

/// Returns the requested limit, else that of one rounding to `kind`: 1e-5 in fp32, more with fewer digits.
fn tolerance(args: &MergeArgs, kind: Kind) -> f64 {
    args.tolerance.unwrap_or(match kind {
        Kind::Half => 2e-2,
        Kind::BFloat16 => 1e-1,
        _ => 1e-5,
    })
}

fn check(difference: f64, limit: f64, what: &str) -> Result<f64> {
    if difference <= limit {
        return Ok(difference);
    }
    Err(fault(format!(
        "merged and unmerged {what} differ by {difference:.2e} of the largest, more than {limit:.0e}; nothing was written"
    ))
    .hint(if limit > 1e-5 {
        "merge with `--dtype fp32`, or raise `--tolerance`"
    } else {
        "if ΔW is large, this may be rounding: `--tolerance 1e-4` allows ten times as much"
    })
    .into())
}

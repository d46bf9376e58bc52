//! `compare`: two recorded runs, what changed, and whether that is allowed.

use super::read_run;
use crate::cli::{CompareArgs, Format};
use crate::compare::Comparison;
use crate::failure::Failure;

/// Reads, compares, writes, and fails where a gate is broken.
pub fn run(args: &CompareArgs) -> anyhow::Result<()> {
    let (old, new) = (read_run(&args.old)?, read_run(&args.new)?);
    let mut comparison = Comparison::between(&old, &new).map_err(|differences| {
        Failure::Setting(format!(
            "{} and {} are runs of unlike experiments ({}): compare runs of the same prompts, model and settings",
            args.old.display(),
            args.new.display(),
            differences.join("; ")
        ))
    })?;
    let mut broken = Vec::new();
    for gate in &args.fail_on {
        broken.extend(gate.broken_by(&comparison).map_err(Failure::Setting)?);
        let blind_spots = gate.blind_spots(&comparison);
        comparison.warnings.extend(blind_spots);
    }
    let text = match args.output.format {
        Format::Table => comparison.to_terminal(),
        Format::Md => comparison.to_markdown(),
        Format::Json => serde_json::to_string_pretty(&comparison)?,
        other => {
            return Err(Failure::Setting(format!(
                "--format {other:?} is not for compare: choose table, md or json"
            ))
            .into());
        }
    };
    args.output.put(&text)?;
    match broken.is_empty() {
        true => Ok(()),
        false => Err(Failure::Regression(broken.join("; ")).into()),
    }
}

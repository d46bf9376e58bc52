//! An interrupted run that goes on: whether what is here now is what was measured then, and which of
//! its requests are still to come.

use crate::environment::{Environment, same_bits_expected};
use crate::failure::Failure;
use crate::metrics::interference::InterferenceSample;
use crate::metrics::{Arm, Record, Sample, Status};
use crate::workload::Prompt;

use super::plan::way_of;
use super::{Way, now};

/// Takes an interrupted run up where `fresh` stands ready to measure: the result has everything of
/// the interrupted one, and is refused where anything that matters is another now.
pub fn continued(
    interrupted: Record,
    fresh: &Record,
    prompts: &[Prompt],
) -> Result<Record, Failure> {
    let differences = differences(&interrupted, fresh, prompts);
    if !differences.is_empty() {
        return Err(Failure::Setting(format!(
            "--resume: this is not the run that was interrupted any more ({}): restore that, or \
             measure anew without --resume",
            differences.join("; ")
        )));
    }
    let mut record = interrupted;
    record.run.status = Status::Running;
    record.run.error = None;
    record.run.finished_at = None;
    record.run.resumed_at.push(now());
    if record.link.is_none() {
        record.link.clone_from(&fresh.link);
    }
    Ok(record)
}

/// What is another now, one phrase each.
fn differences(then: &Record, now: &Record, prompts: &[Prompt]) -> Vec<String> {
    let mut all = Vec::new();
    let mut compare = |what: &str, then: String, now: String| {
        if then != now {
            all.push(format!("{what}: {then} then, {now} now"));
        }
    };
    compare("command", then.run.command.clone(), now.run.command.clone());
    compare(
        "model",
        then.model.fingerprint.clone(),
        now.model.fingerprint.clone(),
    );
    compare("seed", then.run.seed.to_string(), now.run.seed.to_string());
    if let (Some(then), Some(now)) = (&then.link, &now.link) {
        let socket = |link: &crate::metrics::LinkRecord| {
            let name = link.socket.congestion_control.as_deref();
            let over = if link.loopback {
                "loopback"
            } else {
                "a network"
            };
            format!("{}, {} over {over}", link.transport, name.unwrap_or("TCP"))
        };
        compare("link", socket(then), socket(now));
    }
    let file = |record: &Record| {
        let baseline = record.baseline.as_ref();
        baseline.map_or("none".to_owned(), |b| {
            format!("{} of {}", b.file, b.measured_at)
        })
    };
    compare("baseline", file(then), file(now));
    let known = prompts.len() >= then.cases.len()
        && then.cases.iter().zip(prompts).all(|(case, prompt)| {
            (
                case.prompt_digest.as_str(),
                case.output_tokens,
                case.ignore_eos,
            ) == (
                prompt.digest().as_str(),
                prompt.output_tokens,
                prompt.ignore_eos,
            )
        });
    let set = crate::workload::set_digest(prompts);
    if !known
        || then
            .prompt_set_digest
            .as_ref()
            .is_some_and(|digest| *digest != set)
    {
        all.push("other prompts".to_owned());
    }
    for (node, then, now) in [
        (
            "prefill",
            Some(&then.environment.prefill),
            Some(&now.environment.prefill),
        ),
        (
            "decode",
            then.environment.decode.as_ref(),
            now.environment.decode.as_ref(),
        ),
    ] {
        all.extend(
            other_machine(then, now)
                .into_iter()
                .map(|what| format!("{node} node's {what}")),
        );
    }
    let mut names: Vec<&String> = then.configuration.keys().collect();
    names.extend(now.configuration.keys());
    names.sort_unstable();
    names.dedup();
    for name in names {
        let value = |record: &Record| record.configuration.get(name).map(|s| s.value.clone());
        let (then, now) = (value(then), value(now));
        if !MAY_CHANGE.contains(&name.as_str()) && then != now {
            let text = |value: Option<serde_json::Value>| {
                value.map_or("nothing".to_owned(), |value| value.to_string())
            };
            all.push(format!(
                "--{}: {} then, {} now",
                name.replace('_', "-"),
                text(then),
                text(now)
            ));
        }
    }
    all
}

/// Settings that say how the run is reached and shown, not what is measured. Where the decode node
/// is another, its environment says so.
const MAY_CHANGE: [&str; 9] = [
    "format",
    "insecure",
    "offline",
    "out",
    "output",
    "peer",
    "resume",
    "retry_for",
    "token_file",
];

fn other_machine(then: Option<&Environment>, now: Option<&Environment>) -> Vec<String> {
    match (then, now) {
        (Some(then), Some(now)) => {
            let mut all = same_bits_expected(then, now);
            if !then.is_same_machine(now) {
                all.push(format!(
                    "machine: {} and {}",
                    then.host.hostname, now.host.hostname
                ));
            }
            if then.network_cores != now.network_cores {
                all.push("network thread's cores".to_owned());
            }
            all
        }
        (None, None) => Vec::new(),
        _ => vec!["description: missing from one of the two".to_owned()],
    }
}

/// Whether a round of a prompt has a request of this way that was answered.
pub(super) fn is_measured(samples: &[Sample], way: Way, repeat: u32) -> bool {
    samples
        .iter()
        .any(|s| !s.warmup && s.error.is_none() && s.repeat == repeat && way_of(s) == Some(way))
}

/// Whether a round of the scene was seen in this arm.
pub(super) fn is_seen(
    samples: &[InterferenceSample],
    (arm, chunk_tokens): (Arm, Option<u32>),
    repeat: u32,
) -> bool {
    samples.iter().any(|s| {
        !s.warmup
            && s.moments.is_some()
            && s.repeat == repeat
            && (s.arm, s.chunk_tokens) == (arm, chunk_tokens)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Origin, Setting};
    use crate::report::fixture;

    /// A run that was stopped before its first prompt.
    fn empty() -> Record {
        let mut record = fixture::record(Vec::new());
        record.prompt_set_digest = None;
        record
    }

    #[test]
    fn the_same_run_goes_on_with_all_that_it_has() {
        let fresh = empty();
        let mut interrupted = fresh.clone();
        interrupted.run.status = Status::Interrupted;
        interrupted.run.started_at = "2026-01-01T00:00:00Z".into();
        let going_on = continued(interrupted, &fresh, &[]).unwrap();
        assert_eq!(going_on.run.status, Status::Running);
        assert_eq!(going_on.run.started_at, "2026-01-01T00:00:00Z");
        assert_eq!(going_on.run.resumed_at.len(), 1);
        assert!(going_on.run.finished_at.is_none());
    }

    #[test]
    fn what_matters_is_refused_by_name_and_what_does_not_is_taken() {
        type Change = fn(&mut Record);
        let set = |record: &mut Record, name: &str, value: &str| {
            let setting = Setting {
                value: value.into(),
                origin: Origin::Flag,
            };
            record.configuration.insert(name.into(), setting);
        };
        let changes: [(&str, Change); 8] = [
            ("command: split then, run-prefill now", |r| {
                r.run.command = "run-prefill".into();
            }),
            ("model: ", |r| r.model.fingerprint = "other".into()),
            ("seed: ", |r| r.run.seed += 1),
            ("prefill node's git revision", |r| {
                r.environment.prefill.build.git_revision = "other".into();
            }),
            ("decode node's threads", |r| {
                r.environment.decode.as_mut().unwrap().threads += 1;
            }),
            ("decode node's machine", |r| {
                r.environment.decode.as_mut().unwrap().host.machine_id = "other".into();
            }),
            ("link: ", |r| {
                r.link.as_mut().unwrap().socket.congestion_control = Some("other".into());
            }),
            ("decode node's description", |r| r.environment.decode = None),
        ];
        let then = empty();
        for (wanted, change) in changes {
            let mut now = then.clone();
            change(&mut now);
            let refused = continued(then.clone(), &now, &[]).unwrap_err().to_string();
            assert!(refused.contains(wanted), "{wanted}: {refused}");
        }
        let mut now = then.clone();
        set(&mut now, "chunk_tokens", "64");
        let refused = continued(then.clone(), &now, &[]).unwrap_err().to_string();
        assert!(
            refused.contains("--chunk-tokens: nothing then, \"64\" now"),
            "{refused}"
        );

        let mut now = then.clone();
        set(&mut now, "peer", "10.0.0.3:5556");
        set(&mut now, "resume", "reports/run");
        now.environment.prefill.processor.load_average = None;
        assert!(continued(then, &now, &[]).is_ok());
    }
}

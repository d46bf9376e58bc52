//! Two runs of one experiment, an old one and a new one: what changed, and whether that may be
//! chance.
//!
//! A pure function of two records. `gate` judges a comparison, `table` is what people see.

mod gate;
mod table;
#[cfg(test)]
mod tests;

pub use gate::Gate;

use serde::{Deserialize, Serialize};

use crate::environment::{Environment, NetworkInterface};
use crate::metrics::changes::ArmKey;
use crate::metrics::figures::Figures;
use crate::metrics::{Case, LinkRecord, Record, SCHEMA_VERSION, Sample, Status};
use crate::report::number::{count, significant};
use crate::stats::Change;

/// A figure of a request.
type Of = fn(&Figures) -> Option<f64>;

/// What is compared, by the names that `summary.json` has.
const FIGURES: [(&str, Of); 12] = [
    ("ttft_ms", |f| Some(f.ttft_ns? as f64 / 1e6)),
    ("ttst_ms", |f| Some(f.ttst_ns? as f64 / 1e6)),
    ("tpot_ms", |f| Some(f.tpot_ns? / 1e6)),
    ("e2e_ms", |f| Some(f.e2e_ns? as f64 / 1e6)),
    ("tokens_per_s", |f| f.tokens_per_s),
    ("prefill_ms", |f| Some(f.prefill_ns? as f64 / 1e6)),
    ("decode_ms", |f| Some(f.decode_ns? as f64 / 1e6)),
    ("wire_busy_ms", |f| Some(f.wire_busy_ns? as f64 / 1e6)),
    ("exposed_transfer_ms", |f| {
        Some(f.exposed_transfer_ns? as f64 / 1e6)
    }),
    ("handoff_ms", |f| Some(f.handoff_ns? as f64 / 1e6)),
    ("transfer_overhead_pct", |f| f.transfer_overhead_pct),
    ("effective_gbps", |f| f.effective_gbps),
];

/// Two runs side by side.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Comparison {
    /// Version of this file's schema.
    pub schema_version: u32,
    /// The run that is compared with.
    pub old: RunName,
    /// The run that is compared.
    pub new: RunName,
    /// What makes the comparison doubtful.
    pub warnings: Vec<String>,
    /// One entry a prompt.
    pub cases: Vec<ComparedCase>,
}

/// Which run it was.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunName {
    /// When it started.
    pub started_at: String,
    /// Revision of the tool.
    pub git_revision: String,
    /// The prefill node's host.
    pub host: String,
}

/// One prompt.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ComparedCase {
    /// Name of the prompt.
    pub prompt: String,
    /// Its length.
    pub prompt_tokens: u32,
    /// One entry a way of running it.
    pub arms: Vec<ComparedArm>,
}

/// One way of running a prompt.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ComparedArm {
    /// Which way.
    #[serde(flatten)]
    pub key: ArmKey,
    /// Every figure that both runs have.
    pub figures: Vec<ComparedFigure>,
}

/// One figure of one arm.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ComparedFigure {
    /// Its name in `summary.json`.
    pub figure: String,
    /// Median of the old run.
    pub old: f64,
    /// Samples of the old run.
    pub old_n: usize,
    /// Median of the new run.
    pub new: f64,
    /// Samples of the new run.
    pub new_n: usize,
    /// From old to new.
    pub change: Change,
}

impl Comparison {
    /// Compares two runs, unless they are of unlike experiments: then it says what differs.
    pub fn between(old: &Record, new: &Record) -> Result<Self, Vec<String>> {
        let differences = differences(old, new);
        if !differences.is_empty() {
            return Err(differences);
        }
        let cases = old.cases.iter().zip(&new.cases);
        let cases = cases.map(|(old_case, new_case)| ComparedCase {
            prompt: new_case.prompt.clone(),
            prompt_tokens: new_case.prompt_tokens,
            arms: arms(old_case)
                .into_iter()
                .map(|key| ComparedArm {
                    key,
                    figures: figures(key, (old, old_case), (new, new_case)),
                })
                .collect(),
        });
        let name = |record: &Record| RunName {
            started_at: record.run.started_at.clone(),
            git_revision: record.run.git_revision.clone(),
            host: record.environment.prefill.host.hostname.clone(),
        };
        Ok(Self {
            schema_version: SCHEMA_VERSION,
            old: name(old),
            new: name(new),
            warnings: warnings(old, new),
            cases: cases.collect(),
        })
    }
}

/// Why two runs are not of one experiment, in words; empty where they are.
fn differences(old: &Record, new: &Record) -> Vec<String> {
    let mut differences = Vec::new();
    let mut compare = |what: &str, old: String, new: String| {
        if old != new {
            differences.push(format!(
                "{what}: {old} in the old run, {new} in the new one"
            ));
        }
    };
    let model = |r: &Record| {
        format!(
            "{} ({}, {})",
            r.model.name, r.model.weights, r.model.fingerprint
        )
    };
    if old.model.fingerprint != new.model.fingerprint {
        compare("model", model(old), model(new));
    }
    let prompts = |r: &Record| {
        r.cases
            .iter()
            .map(|c| c.prompt_digest.clone())
            .collect::<Vec<_>>()
    };
    if prompts(old) != prompts(new) {
        let lengths = |r: &Record| {
            let lengths: Vec<String> = r
                .cases
                .iter()
                .map(|c| c.prompt_tokens.to_string())
                .collect();
            format!(
                "{} of {} tokens",
                count(r.cases.len(), "prompt"),
                lengths.join(", ")
            )
        };
        compare("prompts", lengths(old), lengths(new));
        if lengths(old) == lengths(new) {
            differences.push("prompts: other texts of the same lengths".to_owned());
        }
        // What follows is of pairs of prompts.
        return differences;
    }
    for (old, new) in old.cases.iter().zip(&new.cases) {
        let mut compare = |what: &str, text: fn(&Case) -> String| {
            if text(old) != text(new) {
                let (old_text, new_text) = (text(old), text(new));
                differences.push(format!(
                    "{what} at {} prompt tokens: {old_text} in the old run, {new_text} in the new one",
                    new.prompt_tokens
                ));
            }
        };
        compare("output tokens", |case| {
            let past_its_end = if case.ignore_eos {
                ", whatever they are"
            } else {
                ""
            };
            format!("{}{past_its_end}", case.output_tokens)
        });
        compare("KV dtype", |case| {
            listed(case, |s| format!("{:?}", s.kv_dtype).to_lowercase())
        });
        compare("prefill chunk", |case| {
            listed(case, |s| {
                s.chunk_tokens.map_or("whole".into(), |n| n.to_string())
            })
        });
        compare("arms", |case| {
            let named: Vec<String> = arms(case).iter().map(table::name).collect();
            if named.is_empty() {
                "none".into()
            } else {
                named.join(", ")
            }
        });
    }
    differences
}

/// A property of the samples that enter figures, each value once.
fn listed(case: &Case, text: fn(&Sample) -> String) -> String {
    let samples = case.samples.iter().filter(|s| s.is_measured());
    let mut values: Vec<String> = samples.map(text).collect();
    values.sort();
    values.dedup();
    values.join(", ")
}

/// Ways of running a case that have a sample which enters figures.
fn arms(case: &Case) -> Vec<ArmKey> {
    let samples = case.samples.iter().filter(|s| s.is_measured());
    let mut keys: Vec<ArmKey> = samples.map(ArmKey::of).collect();
    keys.sort();
    keys.dedup();
    keys
}

fn figures(
    key: ArmKey,
    (old_run, old): (&Record, &Case),
    (new_run, new): (&Record, &Case),
) -> Vec<ComparedFigure> {
    let of = |run: &Record, case: &Case| -> Vec<Figures> {
        let round_trip_ns = run.link.as_ref().and_then(|l| l.min_round_trip_ns());
        let samples = case.samples.iter().filter(|s| s.is_measured());
        samples
            .filter(|s| ArmKey::of(s) == key)
            .map(|s| Figures::of(s, round_trip_ns))
            .collect()
    };
    let (old, new) = (of(old_run, old), of(new_run, new));
    let compared = |(name, of): &(&str, Of)| {
        let values = |figures: &[Figures]| figures.iter().filter_map(of).collect::<Vec<f64>>();
        let (old, new) = (values(&old), values(&new));
        Some(ComparedFigure {
            figure: (*name).to_owned(),
            old: crate::stats::Figure::of(&old)?.median,
            old_n: old.len(),
            new: crate::stats::Figure::of(&new)?.median,
            new_n: new.len(),
            change: Change::unpaired(&old, &new)?,
        })
    };
    FIGURES.iter().filter_map(compared).collect()
}

/// Fitted rates that are further apart are not of one link: fits of one repeat more closely.
const OTHER_RATE_FACTOR: f64 = 1.5;

/// What makes the comparison doubtful without forbidding it.
fn warnings(old: &Record, new: &Record) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut compare = |what: &str, text: &dyn Fn(&Record) -> String| {
        if text(old) != text(new) {
            warnings.push(format!(
                "another {what}: {} then, {} now",
                text(old),
                text(new)
            ));
        }
    };
    let unknown = || "unknown".to_owned();
    compare("prefill host", &|r| {
        let host = &r.environment.prefill.host;
        format!("{} ({})", host.hostname, host.machine_id)
    });
    compare("decode host", &|r| {
        let decode = r.environment.decode.as_ref();
        decode.map_or("none".into(), |d| {
            format!("{} ({})", d.host.hostname, d.host.machine_id)
        })
    });
    compare("link", &|r| {
        let Some(link) = &r.link else {
            return "none".into();
        };
        let on = if link.loopback { "loopback" } else { "network" };
        let control = link.socket.congestion_control.clone();
        format!(
            "{} over {on}, {}",
            link.transport,
            control.unwrap_or_else(unknown)
        )
    });
    warnings.extend(other_nodes(old, new));
    warnings.extend(other_line(old, new));
    for (which, run) in [("old", old), ("new", new)] {
        if run.run.status != Status::Complete {
            warnings.push(format!("the {which} run is not complete"));
        }
        if run.check_failed() {
            warnings.push(format!(
                "the outputs of the {which} run differ: its times answer nothing"
            ));
        }
    }
    warnings
}

/// A property of a node.
type OfNode = fn(&Environment) -> String;

/// What of a node makes its times others.
const OF_NODES: [(&str, OfNode); 4] = [
    ("processor", |node| {
        let model = node.processor.model.clone();
        model.unwrap_or_else(|| "unknown".to_owned())
    }),
    ("device", |node| {
        let device = node.device.as_ref();
        device.map_or("cpu".into(), ToString::to_string)
    }),
    ("build", |node| {
        let build = &node.build;
        format!(
            "{} {} {}",
            build.git_revision, build.profile, build.target_features
        )
    }),
    ("number of threads", |node| node.threads.to_string()),
];

/// What is another of the nodes; what is another of both alike is said once.
fn other_nodes(old: &Record, new: &Record) -> Vec<String> {
    let (old, new) = (&old.environment, &new.environment);
    let mut warnings = Vec::new();
    for (what, of) in OF_NODES {
        let prefill = (of(&old.prefill), of(&new.prefill));
        let decode = old.decode.as_ref().zip(new.decode.as_ref());
        let decode = decode.map(|(old, new)| (of(old), of(new)));
        let mut compare = |whose: &str, (then, now): &(String, String)| {
            if then != now {
                warnings.push(format!("another {what}{whose}: {then} then, {now} now"));
            }
        };
        match decode {
            Some(decode) if decode != prefill => {
                compare(" of the prefill node", &prefill);
                compare(" of the decode node", &decode);
            }
            _ => compare("", &prefill),
        }
    }
    warnings
}

/// What is another of the line under the connection, as far as both runs know it.
fn other_line(old: &Record, new: &Record) -> Vec<String> {
    let Some((old, new)) = old.link.as_ref().zip(new.link.as_ref()) else {
        return Vec::new();
    };
    let mut warnings = Vec::new();
    let interfaces = old.interface.as_ref().zip(new.interface.as_ref());
    let mut compare = |what: &str, unit: &str, of: fn(&NetworkInterface) -> Option<u64>| {
        let both = interfaces.and_then(|(old, new)| of(old).zip(of(new)));
        if let Some((then, now)) = both.filter(|(then, now)| then != now) {
            warnings.push(format!(
                "another {what}: {then} {unit} then, {now} {unit} now"
            ));
        }
    };
    compare("speed of the interface", "Mbit/s", |i| i.speed_mbps);
    compare("MTU of the interface", "bytes", |i| i.mtu_bytes);
    let rate = |link: &LinkRecord| link.fit.as_ref()?.beta_gbps;
    if let Some((then, now)) = rate(old).zip(rate(new))
        && then.max(now) > OTHER_RATE_FACTOR * then.min(now)
    {
        warnings.push(format!(
            "another fitted rate of the link: {} Gbps then, {} Gbps now",
            significant(then, 3),
            significant(now, 3)
        ));
    }
    warnings
}

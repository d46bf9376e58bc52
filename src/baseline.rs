//! `baseline_metrics.json`: the notebook's file, a superset of it, and when an earlier one may be
//! compared with a run.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::environment::Environment;
use crate::failure::Failure;
use crate::metrics::figures::Figures;
use crate::metrics::limits;
use crate::metrics::summary::single_e2e_ms;
use crate::metrics::{
    BaselineUse, Case, EventName, Record, RunInfo, SCHEMA_VERSION, write_atomically,
};
use crate::stats::Figure;
use crate::text_file::{self, MAX_RECORD_BYTES};
use crate::workload::Prompt;

mod batch;

pub use batch::BatchProcessing;

/// Name that the notebook gave the file.
pub const BASELINE_FILE: &str = "baseline_metrics.json";

/// Bytes of the notebook's MB.
const MB: f64 = 1e6;

/// The file: the notebook's keys first, then what makes it a record.
#[derive(Debug, Serialize, Deserialize)]
pub struct BaselineFile {
    /// When it was measured, UTC.
    pub timestamp: String,
    /// The model's name.
    pub model: String,
    /// Settings that the answer and the speed depend on.
    pub config: Config,
    /// The first prompt, alone; medians.
    pub single_request: Option<SingleRequest>,
    /// Several requests at once; medians. Null where they could not be run.
    pub batch_processing: Option<BatchProcessing>,
    /// Resident memory.
    pub memory: MemoryMb,
    /// Version of the schema of the keys below.
    pub schema_version: u32,
    /// What ran.
    pub run: RunInfo,
    /// Where.
    pub environment: Environment,
    /// The samples, without the events of single layers.
    pub cases: Vec<Case>,
}

/// What must be equal for two runs to be comparable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// Weights that ran.
    pub weights: String,
    /// Digest over file and weights.
    pub fingerprint: String,
    /// How tokens are chosen.
    pub sampling: String,
    /// Element type of the cache.
    pub kv_dtype: String,
    /// Prefill chunk; null for the whole prompt at once.
    pub chunk_tokens: Option<u32>,
    /// Compute threads.
    pub threads: usize,
}

/// The notebook's single request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SingleRequest {
    /// Request start to last token.
    pub latency_ms: f64,
    /// Tokens generated.
    pub tokens: usize,
    /// Tokens over latency.
    pub throughput_tokens_per_sec: f64,
    /// Name of the prompt.
    pub prompt: String,
    /// Its length.
    pub prompt_tokens: u32,
}

/// The notebook's memory block; null where the system does not tell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemoryMb {
    /// With the model loaded, before the first request.
    pub baseline_mb: Option<f64>,
    /// The most since then.
    pub peak_mb: Option<f64>,
    /// The difference.
    pub inference_mb: Option<f64>,
    /// The difference over the tokens of the longest request.
    pub memory_per_token_mb: Option<f64>,
}

impl Config {
    /// Of a run that is being set up or is done.
    pub fn of(record: &Record, kv_dtype: &str, chunk_tokens: Option<u32>) -> Self {
        Self {
            weights: record.model.weights.clone(),
            fingerprint: record.model.fingerprint.clone(),
            sampling: "greedy".into(),
            kv_dtype: kv_dtype.into(),
            chunk_tokens,
            threads: record.environment.prefill.threads,
        }
    }

    /// What differs, in words.
    fn differences(&self, ours: &Self) -> Vec<String> {
        let text = |chunk: Option<u32>| chunk.map_or("whole prompt".into(), |n| n.to_string());
        let compared = [
            ("weights", self.weights.clone(), ours.weights.clone()),
            ("model", self.fingerprint.clone(), ours.fingerprint.clone()),
            ("sampling", self.sampling.clone(), ours.sampling.clone()),
            ("KV dtype", self.kv_dtype.clone(), ours.kv_dtype.clone()),
            ("chunk", text(self.chunk_tokens), text(ours.chunk_tokens)),
            (
                "threads",
                self.threads.to_string(),
                ours.threads.to_string(),
            ),
        ];
        let differ = compared
            .into_iter()
            .filter(|(_, theirs, ours)| theirs != ours);
        differ
            .map(|(what, theirs, ours)| format!("{what} {theirs} there, {ours} here"))
            .collect()
    }
}

impl BaselineFile {
    /// Of a finished run of the single arm.
    pub fn of(record: &Record, config: Config, batch_processing: Option<BatchProcessing>) -> Self {
        let mut cases = record.cases.clone();
        for sample in cases.iter_mut().flat_map(|case| &mut case.samples) {
            sample.events.retain(|e| e.name != EventName::LayerDone);
        }
        cases
            .iter_mut()
            .for_each(|case| case.samples.retain(|s| !s.warmup));
        let longest = (cases.iter())
            .map(|c| c.prompt_tokens + c.output_tokens)
            .max();
        Self {
            timestamp: record.run.started_at.clone(),
            model: record.model.name.clone(),
            config,
            single_request: cases.first().and_then(SingleRequest::of),
            batch_processing,
            memory: MemoryMb::of(record, longest),
            schema_version: SCHEMA_VERSION,
            run: record.run.clone(),
            environment: record.environment.prefill.clone(),
            cases,
        }
    }

    /// Writes the file atomically.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        write_atomically(path, serde_json::to_string(self)?.as_bytes())
    }

    /// Reads a file that this tool wrote.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let unusable = |why: String| {
            Failure::Setting(format!(
                "{} cannot serve as a baseline: {why}: measure one with `disagg-bench baseline`",
                path.display()
            ))
        };
        let text = text_file::read(path, MAX_RECORD_BYTES).map_err(|e| unusable(e.to_string()))?;
        let value: serde_json::Value =
            serde_json::from_str(&text).map_err(|e| unusable(format!("not JSON ({e})")))?;
        match value
            .get("schema_version")
            .and_then(serde_json::Value::as_u64)
        {
            Some(version) if version == u64::from(SCHEMA_VERSION) => {}
            Some(version) => {
                let why = format!("schema version {version}, this build reads {SCHEMA_VERSION}");
                return Err(unusable(why).into());
            }
            None => return Err(unusable("it has no samples (the notebook's own?)".into()).into()),
        }
        let file: Self = serde_json::from_value(value).map_err(|e| unusable(e.to_string()))?;
        limits::check_cases(&file.cases).map_err(unusable)?;
        Ok(file)
    }

    /// Why it cannot be compared with a run of these settings and prompts; empty if it can.
    pub fn differences(&self, ours: &Config, prompts: &[Prompt]) -> Vec<String> {
        let mut differences = self.config.differences(ours);
        let theirs: Vec<_> = (self.cases.iter())
            .map(|c| (c.prompt_digest.clone(), c.output_tokens, c.ignore_eos))
            .collect();
        let ours: Vec<_> = (prompts.iter())
            .map(|p| (p.digest(), p.output_tokens, p.ignore_eos))
            .collect();
        if theirs != ours {
            differences.push(format!(
                "prompt set: {} prompts there, {} here, not the same texts and lengths",
                theirs.len(),
                ours.len()
            ));
        }
        differences
    }

    /// How a run uses it.
    pub fn used_by(&self, record: &Record, file: &Path, stands_in: bool) -> BaselineUse {
        let (theirs, ours) = (&self.environment, &record.environment.prefill);
        let mut warnings = Vec::new();
        if !theirs.is_same_machine(ours) {
            warnings.push(format!(
                "the baseline was measured on another host, {}",
                theirs.host.hostname
            ));
        }
        if theirs.device != ours.device {
            let device = theirs.device.as_ref().map(ToString::to_string);
            warnings.push(format!(
                "the baseline was measured on another device, {}",
                device.as_deref().unwrap_or("cpu")
            ));
        }
        if theirs.build != ours.build {
            warnings.push(format!(
                "the baseline was measured with another build, {} {}",
                theirs.build.git_revision, theirs.build.profile
            ));
        }
        BaselineUse {
            file: file.display().to_string(),
            measured_at: self.timestamp.clone(),
            stands_in,
            warnings,
            e2e_ms: self.e2e_ms(record),
        }
    }

    fn e2e_ms(&self, record: &Record) -> BTreeMap<String, Figure> {
        single_e2e_ms(&Record {
            cases: self.cases.clone(),
            ..record.clone()
        })
    }
}

impl SingleRequest {
    fn of(case: &Case) -> Option<Self> {
        let measured = || case.samples.iter().filter(|s| s.error.is_none());
        let e2e: Vec<f64> = measured()
            .filter_map(|s| Some(Figures::of(s, None).e2e_ns? as f64 / 1e6))
            .collect();
        let tokens = measured().find_map(|s| Some(s.output.as_ref()?.tokens.len()))?;
        let latency_ms = Figure::of(&e2e)?.median;
        Some(Self {
            latency_ms,
            tokens,
            throughput_tokens_per_sec: tokens as f64 / (latency_ms / 1e3),
            prompt: case.prompt.clone(),
            prompt_tokens: case.prompt_tokens,
        })
    }
}

impl MemoryMb {
    fn of(record: &Record, longest_tokens: Option<u32>) -> Self {
        let mb = |bytes: u64| bytes as f64 / MB;
        let (loaded, peak) = (record.memory.loaded_bytes, record.memory.peak_bytes);
        let inference_mb = (peak.zip(loaded)).map(|(p, l)| mb(p.saturating_sub(l)));
        Self {
            baseline_mb: loaded.map(mb),
            peak_mb: peak.map(mb),
            inference_mb,
            memory_per_token_mb: (inference_mb.zip(longest_tokens)).map(|(m, t)| m / f64::from(t)),
        }
    }
}

/// Finds the baseline for a run: the named one must match, `./baseline_metrics.json` may.
///
/// Returns it with whether it stands in for the single arm; `tell` hears why an unnamed one is
/// left aside.
pub fn find(
    named: Option<&Path>,
    ours: &Config,
    prompts: &[Prompt],
    tell: impl Fn(&str),
) -> anyhow::Result<Option<(BaselineFile, std::path::PathBuf, bool)>> {
    let path = named.unwrap_or(Path::new(BASELINE_FILE));
    if named.is_none() && !path.is_file() {
        return Ok(None);
    }
    let usable = BaselineFile::read(path).and_then(|file| {
        let differences = file.differences(ours, prompts);
        match differences.is_empty() {
            true => Ok(file),
            false => Err(Failure::Setting(format!(
                "{} is a baseline of another experiment ({}): measure one with `disagg-bench \
                 baseline` and the flags of this run",
                path.display(),
                differences.join("; ")
            ))
            .into()),
        }
    });
    match (usable, named) {
        (Ok(file), _) => Ok(Some((file, path.to_path_buf(), named.is_some()))),
        (Err(error), Some(_)) => Err(error).context("--baseline"),
        (Err(error), None) => {
            tell(&format!("not compared with {}: {error:#}", path.display()));
            Ok(None)
        }
    }
}

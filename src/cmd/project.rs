//! `project`: what other links, RDMA or a faster engine would change, from a run or from a model's
//! shape. Measures nothing.

use std::path::Path;

use serde::Serialize;

use super::{read_run, run_file};
use crate::cli::{Format, ProjectArgs};
use crate::failure::Failure;
use crate::link::{Fit, Sweep};
use crate::metrics::{Record, SCHEMA_VERSION};
use crate::model::published::{self, PublishedShape};
use crate::projection::{
    EngineSpeed, LINE_RATES_GBPS, Links, Outlook, Restated, ScoredRow, Unmeasured, WithoutModel,
    distrust, distrust_of_fit, outlooks, restate, score,
};
use crate::report::{projected, scored};

/// The answer from a run, as JSON. Every figure but `measured` and the scores' is projected.
#[derive(Serialize)]
struct FromRun {
    schema_version: u32,
    /// The run file.
    run: String,
    /// What TCP is projected from.
    fit: Fit,
    /// One a prompt, on every line rate.
    outlooks: Vec<Outlook>,
    /// One a prompt and mode, for the engine that was asked about.
    restated: Vec<Restated>,
    /// One a prompt and mode of every run that it was held against.
    scores: Vec<ScoredRow>,
}

/// The answer without a run, as JSON. All of it is projected.
#[derive(Serialize)]
struct FromShape {
    schema_version: u32,
    #[serde(flatten)]
    answer: WithoutModel,
}

/// Projects and prints.
pub fn run(args: &ProjectArgs) -> anyhow::Result<()> {
    let text = match (&args.model, &args.run) {
        (Some(model), _) => from_shape(args, model)?,
        (None, Some(run)) => from_run(args, run)?,
        (None, None) => unreachable!("clap demands one of them"),
    };
    args.output.put(&text)
}

fn from_run(args: &ProjectArgs, run: &Path) -> anyhow::Result<String> {
    let record = read_run(run)?;
    let links = match &args.link_fit {
        Some(path) => Some(links_of(path, streams(&record))?),
        None => Links::of_run(&record),
    };
    if let Some(why) = distrust(&record, links.as_ref()) {
        return Err(not_projected(&why).into());
    }
    let Some(links) = links else {
        unreachable!("without a link nothing is trusted");
    };
    let scores = scores(args, &record, &links)?;
    let outlooks = outlooks(&record, Some(&links), &rates(args))?;
    if outlooks.is_empty() {
        return Err(Failure::Setting(format!(
            "{}: no request sent a cache in bulk or layered: run `split` with --transfer bulk,layered",
            run.display()
        ))
        .into());
    }
    let restated = restated(args, &outlooks, &links);
    match args.output.format {
        Format::Table => {
            let mut parts = vec![projected::fit_note(links.fit())];
            match scores.is_empty() {
                true => parts.extend(outlooks.iter().map(projected::outlook_table)),
                false => parts.push(scored::score_table(&scores)),
            }
            if !restated.is_empty() {
                parts.push(projected::restated_table(&restated));
            }
            if scores.is_empty() {
                parts.push(projected::NOTE.to_owned());
            }
            Ok(parts.join("\n\n"))
        }
        Format::Json => Ok(serde_json::to_string_pretty(&FromRun {
            schema_version: SCHEMA_VERSION,
            run: run_file(run).display().to_string(),
            fit: links.fit().clone(),
            outlooks,
            restated,
            scores,
        })?),
        other => Err(unsuited(other).into()),
    }
}

/// The run on the engine that is asked about, in the modes that were measured.
fn restated(args: &ProjectArgs, outlooks: &[Outlook], links: &Links) -> Vec<Restated> {
    let Some(prefill) = args.prefill_tokens_per_s else {
        return Vec::new();
    };
    let decode = args.decode_tokens_per_s;
    let speed = EngineSpeed::TokensPerS { prefill, decode };
    let of = |o: &Outlook| {
        let modes = o.measured.modes.iter();
        let restated = modes.map(|mode| {
            let (prompt, output) = (o.prompt_tokens, o.output_tokens);
            restate(&o.measured, links, mode.transfer, prompt, output, speed)
        });
        restated.collect::<Vec<_>>()
    };
    outlooks.iter().flat_map(of).collect()
}

/// The projection against every run that was named.
fn scores(args: &ProjectArgs, record: &Record, links: &Links) -> anyhow::Result<Vec<ScoredRow>> {
    let line_rate_gbps = match args.gbps[..] {
        _ if args.against.is_empty() => return Ok(Vec::new()),
        [] => None,
        [rate] => Some(rate),
        _ => {
            return Err(Failure::Setting(format!(
                "--against runs went over one link, --gbps names {}: give the one rate of that link",
                args.gbps.len()
            ))
            .into());
        }
    };
    let mut scores = Vec::new();
    for path in &args.against {
        let name = path.display().to_string();
        let rows = score(record, links, line_rate_gbps, &read_run(path)?, &name);
        scores.extend(rows.map_err(|error| Failure::Setting(error.to_string()))?);
    }
    Ok(scores)
}

fn from_shape(args: &ProjectArgs, model: &str) -> anyhow::Result<String> {
    let shape = shape(model)?;
    let links = (args.link_fit.as_deref())
        .map(|path| {
            let fewest = Sweep::read(path)?.fits.iter().map(|f| f.streams).min();
            links_of(path, fewest.unwrap_or(1))
        })
        .transpose()?;
    if let Some(why) = (links.as_ref()).and_then(|links| distrust_of_fit(links.fit())) {
        return Err(not_projected(&why).into());
    }
    let (Some(prompt_tokens), Some(prefill_tokens_per_s)) =
        (args.prompt, args.prefill_tokens_per_s)
    else {
        unreachable!("clap demands both with --model");
    };
    let asked = Unmeasured {
        shape: &shape,
        element_bytes: args.kv_dtype.bytes(),
        prompt_tokens,
        prefill_tokens_per_s,
        decode_tokens_per_s: args.decode_tokens_per_s,
    };
    let answer = asked.project(links.as_ref(), &rates(args))?;
    match args.output.format {
        Format::Table => Ok(projected::shape_table(&shape, &answer)),
        Format::Json => Ok(serde_json::to_string_pretty(&FromShape {
            schema_version: SCHEMA_VERSION,
            answer,
        })?),
        other => Err(unsuited(other).into()),
    }
}

/// A published shape, or that of a config.json.
fn shape(model: &str) -> Result<PublishedShape, Failure> {
    if let Some(shape) = published::find(model) {
        return Ok(shape.clone());
    }
    let path = Path::new(model);
    if path.is_file() {
        return PublishedShape::of_config(path)
            .map_err(|why| Failure::Setting(format!("--model {model}: {why}")));
    }
    let known: Vec<&str> = published::all().iter().map(|s| s.model.as_str()).collect();
    Err(Failure::Setting(format!(
        "--model {model} is neither a file nor known, wanted the path of a config.json or one of: {}",
        known.join(", ")
    )))
}

fn rates(args: &ProjectArgs) -> Vec<f64> {
    match args.gbps.is_empty() {
        true => LINE_RATES_GBPS.to_vec(),
        false => args.gbps.clone(),
    }
}

/// Connections that carried the caches of a run.
fn streams(record: &Record) -> u32 {
    let samples = record.cases.iter().flat_map(|case| &case.samples);
    samples.map(|s| s.streams).max().unwrap_or(1).max(1)
}

fn links_of(path: &Path, streams: u32) -> Result<Links, Failure> {
    Links::of_sweep(&Sweep::read(path)?, streams).ok_or_else(|| {
        Failure::Setting(format!(
            "--link-fit {} has no fit of {streams} streams, as the run had: sweep that many with \
             `link --streams {streams}`",
            path.display()
        ))
    })
}

fn not_projected(why: &str) -> Failure {
    Failure::Setting(format!("nothing is projected: {why}"))
}

fn unsuited(format: Format) -> Failure {
    Failure::Setting(format!(
        "--format {format:?} is not for project: choose table or json"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use crate::link::fixture::sweep;
    use crate::link::{Row, Times};
    use crate::preparation::RUN_FILE;
    use crate::report::fixture::{record, usual_case};
    use crate::report::prose::{WIDTH, folded};
    use clap::Parser;

    /// What `project` with these arguments writes, or its error.
    fn project(arguments: &[&str]) -> anyhow::Result<String> {
        let folder = tempfile::tempdir()?;
        let output = folder.path().join("answer");
        let fixed = ["disagg-bench", "project", "-o", output.to_str().unwrap()];
        let cli = Cli::try_parse_from(fixed.iter().chain(arguments))?;
        let Command::Project(args) = &cli.command else {
            unreachable!("that was asked for");
        };
        run(args)?;
        Ok(std::fs::read_to_string(output)?)
    }

    /// A folder with a run of two prompts.
    fn run_folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let record = record(vec![usual_case(128), usual_case(1024)]);
        record.write(&folder.path().join(RUN_FILE)).unwrap();
        folder
    }

    #[test]
    fn a_run_is_projected_from_its_folder_or_its_file() {
        let folder = run_folder();
        let (run, file) = (folder.path(), folder.path().join(RUN_FILE));
        let table = project(&[run.to_str().unwrap()]).unwrap();
        for part in [
            "fit of the link",
            "1024 prompt tokens",
            "RDMA engine",
            "400",
            "projected",
        ] {
            assert!(table.contains(part), "{part}: {table}");
        }
        let of_file = [
            file.to_str().unwrap(),
            "--format",
            "json",
            "--gbps",
            "25,0.5",
        ];
        let json = project(&of_file).unwrap();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(
            json["outlooks"][1]["projections"].as_array().unwrap().len(),
            10
        );
        assert_eq!(json["outlooks"][1]["projections"][5]["line_rate_gbps"], 0.5);
        assert!(json["outlooks"][1]["measured"]["modes"][0]["exposed_ms"].is_f64());
    }

    #[test]
    fn a_run_is_restated_for_another_engine_and_held_against_another_run() {
        let folder = run_folder();
        let run = folder.path().to_str().unwrap();
        let engine = [
            "--prefill-tokens-per-s",
            "20000",
            "--decode-tokens-per-s",
            "100",
        ];
        let table = project(&[&[run][..], &engine].concat()).unwrap();
        assert!(
            table.contains("KV demand") && table.contains("51.20"),
            "{table}"
        );
        let table = project(&[run, "--against", run]).unwrap();
        assert!(
            table.contains("holds") && table.contains("within the bar of 0.2"),
            "{table}"
        );
        let table = project(&[run, "--gbps", "5", "--against", run]).unwrap();
        assert!(table.contains("MISSES"), "{table}");
        let error = project(&[run, "--gbps", "5,10", "--against", run]).unwrap_err();
        assert!(error.to_string().contains("give the one rate"), "{error}");
    }

    #[test]
    fn what_a_terminal_shows_fits_80_columns() {
        let folder = run_folder();
        let run = folder.path().to_str().unwrap();
        let engine = ["--prefill-tokens-per-s", "8"];
        let shape = ["--model", "llama-3.1-70b", "--prompt", "131072"];
        for arguments in [
            &[&[run, "--gbps", "0.1,400"][..], &engine].concat(),
            &[&shape[..], &engine, &["--gbps", "0.1,400"]].concat(),
        ] {
            let text = folded(&project(arguments).unwrap());
            assert!(
                text.contains("TTST") && text.contains("RDMA engine"),
                "{text}"
            );
            for line in text.lines() {
                assert!(line.chars().count() <= WIDTH, "{line}");
            }
        }
    }

    #[test]
    fn a_shape_or_a_config_is_enough() {
        let speed = ["--prompt", "4096", "--prefill-tokens-per-s", "8192"];
        let of =
            |model: &str, more: &[&str]| project(&[&["--model", model], &speed[..], more].concat());
        let table = of("llama-3.1-70b", &["--gbps", "25"]).unwrap();
        assert!(
            table.contains("1342 MB") && table.contains("21.5 Gbps"),
            "{table}"
        );
        let half = of("llama-3.1-70b", &["--gbps", "25", "--kv-dtype", "fp8"]).unwrap();
        assert!(half.contains("671.1 MB"), "{half}");
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("config.json");
        let text = r#"{"num_hidden_layers": 80, "num_key_value_heads": 8, "head_dim": 128}"#;
        std::fs::write(&config, text).unwrap();
        let table = of(config.to_str().unwrap(), &[]).unwrap();
        assert!(table.contains("1342 MB"), "{table}");
        std::fs::write(&config, "{}").unwrap();
        for (model, part) in [
            (config.to_str().unwrap(), "num_hidden_layers is missing"),
            ("no-such-model", "is neither a file nor known"),
        ] {
            let error = of(model, &[]).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    /// A sweep over 1 and 4 streams at 8 and 16 Gbps, the transfer of 4 MiB so many times slower.
    fn sweep_file(folder: &Path, slower: u64) -> String {
        let row = |streams, bytes: u64, times: u64| {
            let ns = times * (50_000 + bytes / u64::from(1 + streams / 4));
            let times = Times {
                cold_ns: ns,
                warm_ns: vec![ns; 5],
                after_idle_ns: None,
                more_after_idle_ns: Vec::new(),
            };
            Row::of(bytes, streams, 30, times).unwrap()
        };
        let sizes: [u64; 5] = [1 << 16, 1 << 20, 1 << 22, 1 << 24, 1 << 26];
        let rows = [1, 4].into_iter().flat_map(|streams| {
            sizes.map(|bytes| row(streams, bytes, if bytes == 1 << 22 { slower } else { 1 }))
        });
        let mut sweep = sweep();
        sweep.rows = rows.collect();
        sweep.fits = [1, 4]
            .map(|n| Fit::of_rows(&sweep.rows, n).unwrap())
            .to_vec();
        let file = folder.join("sweep.json");
        std::fs::write(&file, serde_json::to_string(&sweep).unwrap()).unwrap();
        file.to_str().unwrap().to_owned()
    }

    const SHAPE: [&str; 6] = [
        "--model",
        "llama-3.1-70b",
        "--prompt",
        "64",
        "--prefill-tokens-per-s",
        "100000",
    ];

    #[test]
    fn a_fit_that_no_run_is_projected_from_serves_no_shape_either() {
        let (folder, sweeps) = (run_folder(), tempfile::tempdir().unwrap());
        let file = sweep_file(sweeps.path(), 8);
        let run = folder.path().to_str().unwrap();
        let of_run = project(&[run, "--link-fit", &file]).unwrap_err();
        let of_shape = project(&[&SHAPE[..], &["--link-fit", &file]].concat()).unwrap_err();
        assert_eq!(of_run.to_string(), of_shape.to_string());
        assert!(
            of_shape
                .to_string()
                .starts_with("nothing is projected: the fit")
                || (of_shape.to_string()).starts_with("nothing is projected: fitted on"),
            "{of_shape}"
        );
    }

    #[test]
    fn better_tcp_of_a_shape_is_never_worse_than_what_was_fitted() {
        let folder = tempfile::tempdir().unwrap();
        let file = sweep_file(folder.path(), 1);
        let more = ["--link-fit", &file, "--format", "json"];
        let json = project(&[&SHAPE[..], &more].concat()).unwrap();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        let carried = json["carried"].as_array().unwrap();
        let of = |transport: &str, rate: f64| {
            let is =
                |c: &&serde_json::Value| c["transport"] == transport && c["line_rate_gbps"] == rate;
            carried.iter().find(is).unwrap()
        };
        for rate in LINE_RATES_GBPS {
            for mode in ["bulk_exposed_ms", "layered_exposed_ms"] {
                for end in ["low", "mid", "high"] {
                    let ms = |transport| of(transport, rate)[mode][end].as_f64().unwrap();
                    let (fitted, better) = (ms("tcp"), ms("better-tcp"));
                    assert!(
                        better <= fitted,
                        "{mode} {end} at {rate}: {better} {fitted}"
                    );
                }
            }
        }
        // 21 MB at the 16 Gbps of four streams, as measured, not as published.
        let got = of("better-tcp", 400.0)["bulk_exposed_ms"]["mid"]
            .as_f64()
            .unwrap();
        assert!((got - 10.5).abs() < 0.2, "{got}");
    }

    #[test]
    fn what_cannot_be_projected_says_why() {
        let folder = run_folder();
        let mut bad = record(vec![usual_case(128)]);
        bad.link.as_mut().unwrap().fit = None;
        let file = folder.path().join("bad.json");
        bad.write(&file).unwrap();
        for (arguments, part) in [
            (
                vec![file.to_str().unwrap()],
                "nothing is projected: the run has no fit",
            ),
            (vec!["/nonexistent/run.json"], "cannot read the run file"),
            (
                vec![folder.path().to_str().unwrap(), "--format", "csv"],
                "choose table or json",
            ),
            (vec![], "required"),
            (vec!["--model", "llama-3.1-8b"], "required"),
        ] {
            let error = project(&arguments).unwrap_err().to_string();
            assert!(error.contains(part), "{part}: {error}");
        }
    }
}

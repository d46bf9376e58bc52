//! Effective settings: flags, then `DISAGG_*` variables, then `--config` or
//! `./disagg-bench.toml`, then the notebook's `./environment_config.json`, then defaults.
//!
//! What a weaker layer says is put in front of the user's own flags and parsed by the same
//! parser, so a value is checked in one place wherever it comes from.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

use clap::parser::ValueSource;
use clap::{ArgAction, ArgMatches, CommandFactory, FromArgMatches};

use crate::cli::{Cli, DEFAULT_PORT};
use crate::metrics::{Origin, Setting};
use crate::text_file::{self, MAX_CONFIGURATION_BYTES};

/// File of settings that is read without being named.
const TOML_FILE: &str = "disagg-bench.toml";

/// The notebook's settings.
const NOTEBOOK_FILE: &str = "environment_config.json";

/// A configuration file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("cannot read the configuration file {file}: {why}")]
    Read {
        /// The file.
        file: String,
        /// What the system said.
        why: String,
    },
    /// It is not what its name promises.
    #[error("configuration file {file}: {why}")]
    Content {
        /// The file.
        file: String,
        /// What was found and what was wanted.
        why: String,
    },
}

/// A parsed command line with everything that was left to weaker layers filled in.
#[derive(Debug)]
pub struct Configuration {
    /// What to do.
    pub cli: Cli,
    /// Every setting of the subcommand with its origin; secrets are never among them.
    pub settings: BTreeMap<String, Setting>,
}

/// Why there is no configuration.
#[derive(Debug)]
pub enum Unusable {
    /// clap's own answer: an error, or help and version.
    Usage(clap::Error),
    /// A file.
    File(ConfigError),
}

impl From<ConfigError> for Unusable {
    fn from(error: ConfigError) -> Self {
        Self::File(error)
    }
}

/// Values that one layer gives, by argument id.
struct Layer {
    origin: Origin,
    /// One value, or several of a list.
    values: BTreeMap<String, Vec<String>>,
}

/// Parses `argv` (the program's name first) over the environment and the files in `folder`.
pub fn resolve(
    argv: &[OsString],
    variable: impl Fn(&str) -> Option<String>,
    folder: &Path,
) -> Result<Configuration, Unusable> {
    // Values that only a weaker layer gives may be required, so their absence is no error yet.
    let lenient = Cli::command()
        .ignore_errors(true)
        .try_get_matches_from(argv);
    let lenient = lenient.map_err(Unusable::Usage)?;
    let Some((name, given)) = lenient.subcommand() else {
        return parse(argv, BTreeMap::new()).map_err(Unusable::Usage);
    };
    let command = Cli::command();
    let Some(subcommand) = command.find_subcommand(name) else {
        return parse(argv, BTreeMap::new()).map_err(Unusable::Usage);
    };
    let arguments: Vec<&clap::Arg> = subcommand
        .get_arguments()
        .filter(|a| is_setting(a))
        .collect();
    let resumed = (given.try_get_one::<std::path::PathBuf>("resume")).unwrap_or_default();
    let layers = match resumed {
        // Its own settings, wherever they came from then.
        Some(run) => vec![resumed_layer(run)?],
        None => {
            let mut layers = vec![environment_layer(&arguments, variable)];
            layers.extend(file_layers(&lenient, &arguments, name, folder)?);
            layers
        }
    };

    let mut extra: Vec<OsString> = Vec::new();
    let mut origins = BTreeMap::new();
    for argument in &arguments {
        let id = argument.get_id().as_str();
        let said = |id: &str| given.value_source(id) == Some(ValueSource::CommandLine);
        if said(id) {
            origins.insert(id.to_string(), Origin::Flag);
            continue;
        }
        // A flag beats what a file says of the settings that it excludes.
        let excluded = |other: &&clap::Arg| {
            said(other.get_id().as_str())
                && (subcommand.get_arg_conflicts_with(other).contains(argument)
                    || subcommand.get_arg_conflicts_with(argument).contains(other))
        };
        if arguments.iter().any(excluded) {
            continue;
        }
        let found = layers
            .iter()
            .find_map(|layer| Some((layer, layer.values.get(id)?)));
        let Some((layer, values)) = found else {
            continue;
        };
        origins.insert(id.to_string(), layer.origin.clone());
        let flag = format!("--{}", argument.get_long().unwrap_or(id));
        for value in values {
            match (argument.get_action(), value.as_str()) {
                (ArgAction::SetTrue, "true" | "1") => extra.push((&flag).into()),
                (ArgAction::SetTrue, "false" | "0") => {}
                _ => extra.push(format!("{flag}={value}").into()),
            }
        }
    }
    // The value of `--config` may be spelt like the subcommand.
    let is_subcommand = |p: &usize| argv[*p] == name && (*p == 0 || argv[p - 1] != "--config");
    let position = (0..argv.len())
        .find(is_subcommand)
        .map_or(argv.len(), |p| p + 1);
    let (head, tail) = argv.split_at(position);
    let whole: Vec<OsString> = [head, &extra, tail].concat();
    parse(&whole, origins).map_err(Unusable::Usage)
}

/// Settings are what has a long flag and is not about the program itself.
fn is_setting(argument: &clap::Arg) -> bool {
    let about_the_program = [
        "help",
        "version",
        "config",
        "show_config",
        "quiet",
        "verbose",
    ];
    argument.get_long().is_some()
        && !argument.is_hide_set()
        && !about_the_program.contains(&argument.get_id().as_str())
}

fn parse(
    argv: &[OsString],
    origins: BTreeMap<String, Origin>,
) -> Result<Configuration, clap::Error> {
    let matches = Cli::command().try_get_matches_from(argv)?;
    let cli = Cli::from_arg_matches(&matches)?;
    let mut settings = BTreeMap::new();
    if let Some((name, given)) = matches.subcommand() {
        let command = Cli::command();
        let arguments = command
            .find_subcommand(name)
            .into_iter()
            .flat_map(|c| c.get_arguments());
        for argument in arguments.filter(|a| is_setting(a)) {
            let id = argument.get_id().as_str();
            let setting = Setting {
                value: value_of(given, argument),
                origin: origins.get(id).cloned().unwrap_or(Origin::Default),
            };
            settings.insert(id.to_string(), setting);
        }
    }
    Ok(Configuration { cli, settings })
}

/// The value in effect as JSON: true or false, null, text, or a list of texts.
fn value_of(matches: &ArgMatches, argument: &clap::Arg) -> serde_json::Value {
    let id = argument.get_id().as_str();
    if matches!(argument.get_action(), ArgAction::SetTrue) {
        return matches.get_flag(id).into();
    }
    let mut values: Vec<String> = (matches.get_raw(id).into_iter().flatten())
        .map(|value| value.to_string_lossy().into_owned())
        .collect();
    match (argument.get_action(), values.len()) {
        (_, 0) => serde_json::Value::Null,
        (ArgAction::Append, _) => values.into(),
        _ => values.swap_remove(0).into(),
    }
}

fn environment_layer(arguments: &[&clap::Arg], variable: impl Fn(&str) -> Option<String>) -> Layer {
    let values = arguments.iter().filter_map(|argument| {
        let id = argument.get_id().as_str();
        let value = variable(&format!("DISAGG_{}", id.to_uppercase()))?;
        (!value.is_empty()).then(|| (id.to_string(), vec![value]))
    });
    Layer {
        origin: Origin::Environment,
        values: values.collect(),
    }
}

/// Settings of an interrupted run that say something about this one too.
const NOT_RESUMED: [&str; 3] = ["out", "output", "resume"];

fn resumed_layer(run: &Path) -> Result<Layer, ConfigError> {
    let path = crate::cmd::run_file(run);
    let record = crate::metrics::Record::read(&path).map_err(|why| ConfigError::Content {
        file: path.display().to_string(),
        why: format!("{why:#}"),
    })?;
    let said = (record.configuration.into_iter())
        .filter(|(name, setting)| {
            setting.origin != Origin::Default && !NOT_RESUMED.contains(&name.as_str())
        })
        .map(|(name, setting)| (name, json_texts(&setting.value)));
    Ok(Layer {
        origin: name_of(&path),
        values: said.filter(|(_, texts)| !texts.is_empty()).collect(),
    })
}

/// A setting as [`value_of`] gives it, in the words of the command line.
fn json_texts(value: &serde_json::Value) -> Vec<String> {
    match value {
        serde_json::Value::Null => Vec::new(),
        serde_json::Value::String(text) => vec![text.clone()],
        serde_json::Value::Array(values) => values.iter().flat_map(json_texts).collect(),
        other => vec![other.to_string()],
    }
}

fn file_layers(
    matches: &ArgMatches,
    arguments: &[&clap::Arg],
    subcommand: &str,
    folder: &Path,
) -> Result<Vec<Layer>, ConfigError> {
    let named = matches.subcommand().and_then(|(_, given)| {
        (given.get_one::<std::path::PathBuf>("config")).or_else(|| matches.get_one("config"))
    });
    let mut layers = Vec::new();
    let unnamed = folder.join(TOML_FILE);
    match named {
        Some(path) => layers.push(toml_layer(path, arguments)?),
        None if unnamed.is_file() => layers.push(toml_layer(&unnamed, arguments)?),
        None => {}
    }
    let notebook = folder.join(NOTEBOOK_FILE);
    if notebook.is_file() {
        layers.push(notebook_layer(&notebook, subcommand)?);
    }
    Ok(layers)
}

fn read(path: &Path) -> Result<(String, String), ConfigError> {
    let file = path.display().to_string();
    match text_file::read(path, MAX_CONFIGURATION_BYTES) {
        Ok(text) => Ok((file, text)),
        Err(error) => Err(ConfigError::Read {
            file,
            why: error.to_string(),
        }),
    }
}

fn name_of(path: &Path) -> Origin {
    let name = path.file_name().unwrap_or(path.as_os_str());
    Origin::File(name.to_string_lossy().into_owned())
}

/// A flat table whose keys are flags with `_` for `-`; keys of other subcommands are ignored,
/// unknown ones refused.
fn toml_layer(path: &Path, arguments: &[&clap::Arg]) -> Result<Layer, ConfigError> {
    let (file, text) = read(path)?;
    let content = |why: String| ConfigError::Content {
        file: file.clone(),
        why,
    };
    let table: toml::Table = text.parse().map_err(|e| content(format!("{e}")))?;
    let mut values = BTreeMap::new();
    for (key, value) in table {
        if !is_known(&key) {
            return Err(content(format!(
                "unknown key {key:?}: keys are the flags of `disagg-bench --help` with _ for -"
            )));
        }
        if !arguments.iter().any(|a| a.get_id().as_str() == key) {
            continue;
        }
        values.insert(
            key.clone(),
            toml_texts(&value).ok_or_else(|| {
                content(format!(
                    "{key} is a {}, wanted text, a number, true, false or a list of them",
                    value.type_str()
                ))
            })?,
        );
    }
    Ok(Layer {
        origin: name_of(path),
        values,
    })
}

fn is_known(key: &str) -> bool {
    let mut command = Cli::command();
    command.build();
    (command.get_subcommands()).any(|c| {
        c.get_arguments()
            .any(|a| is_setting(a) && a.get_id().as_str() == key)
    })
}

fn toml_texts(value: &toml::Value) -> Option<Vec<String>> {
    match value {
        toml::Value::String(text) => Some(vec![text.clone()]),
        toml::Value::Integer(number) => Some(vec![number.to_string()]),
        toml::Value::Float(number) => Some(vec![number.to_string()]),
        toml::Value::Boolean(flag) => Some(vec![flag.to_string()]),
        toml::Value::Array(values) => {
            let texts: Option<Vec<Vec<String>>> = values.iter().map(toml_texts).collect();
            texts.map(|texts| texts.concat())
        }
        _ => None,
    }
}

/// Of the notebook's file: `model.name`, and `network.node2_ip` as the decode node.
fn notebook_layer(path: &Path, subcommand: &str) -> Result<Layer, ConfigError> {
    let (file, text) = read(path)?;
    let json: serde_json::Value =
        serde_json::from_str(&text).map_err(|e| ConfigError::Content {
            file: file.clone(),
            why: format!("not JSON: {e}"),
        })?;
    let text = |pointer: &str| match json.pointer(pointer) {
        None | Some(serde_json::Value::Null) => Ok(None),
        Some(serde_json::Value::String(text)) => Ok(Some(text.clone())),
        Some(other) => Err(ConfigError::Content {
            file: file.clone(),
            why: format!("{pointer} is {other}, wanted text"),
        }),
    };
    let mut values = BTreeMap::new();
    if let Some(model) = text("/model/name")? {
        values.insert("model".into(), vec![model]);
    }
    let connects = ["split", "run-prefill"].contains(&subcommand);
    if let (true, Some(address)) = (connects, text("/network/node2_ip")?) {
        let with_port = match address.parse::<std::net::Ipv6Addr>() {
            Ok(v6) => format!("[{v6}]:{DEFAULT_PORT}"),
            Err(_) if address.contains(':') => address,
            Err(_) => format!("{address}:{DEFAULT_PORT}"),
        };
        values.insert("peer".into(), vec![with_port]);
    }
    Ok(Layer {
        origin: name_of(path),
        values,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Command, Repeats};

    fn resolve_in(
        folder: &Path,
        argv: &[&str],
        variables: &[(&str, &str)],
    ) -> Result<Configuration, Unusable> {
        let argv: Vec<OsString> = argv.iter().map(Into::into).collect();
        let variable = |name: &str| {
            let found = variables.iter().find(|(n, _)| *n == name);
            found.map(|(_, value)| value.to_string())
        };
        resolve(&argv, variable, folder)
    }

    fn split(configuration: &Configuration) -> &crate::cli::SplitArgs {
        match &configuration.cli.command {
            Command::Split(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn stronger_layers_win_and_origins_are_told() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(
            folder.path().join(TOML_FILE),
            "repeats = 7\nwarmup = 3\nseed = 9\nprompt_tokens = [64, 128]\noffline = true\nlisten = \"x:1\"",
        )
        .unwrap();
        std::fs::write(
            folder.path().join(NOTEBOOK_FILE),
            r#"{"model": {"name": "org/hub"}, "network": {"node1_ip": "10.0.0.1", "node2_ip": "10.0.0.2"}}"#,
        )
        .unwrap();
        let argv = ["disagg-bench", "split", "--repeats", "2"];
        let c = resolve_in(folder.path(), &argv, &[("DISAGG_WARMUP", "4")]).unwrap();
        let args = split(&c);
        assert_eq!(
            (args.run.repeats, args.run.warmup, args.run.seed),
            (Repeats::Count(2), 4, 9)
        );
        assert_eq!(args.prompts.prompt_tokens, [64, 128]);
        assert!(args.model.offline);
        assert_eq!(args.model.model, "org/hub");
        assert_eq!(args.peer.as_deref(), Some("10.0.0.2:5556"));
        let origin = |key: &str| c.settings[key].origin.clone();
        assert_eq!(origin("repeats"), Origin::Flag);
        assert_eq!(origin("warmup"), Origin::Environment);
        assert_eq!(origin("seed"), Origin::File(TOML_FILE.into()));
        assert_eq!(origin("peer"), Origin::File(NOTEBOOK_FILE.into()));
        assert_eq!(origin("kv_dtype"), Origin::Default);
        assert_eq!(c.settings["kv_dtype"].value, "f16");
    }

    #[test]
    fn a_list_of_prompts_stays_a_list() {
        let folder = tempfile::tempdir().unwrap();
        let text = "prompt = [\"one, two\", \"three\"]";
        std::fs::write(folder.path().join(TOML_FILE), text).unwrap();
        let c = resolve_in(folder.path(), &["disagg-bench", "split"], &[]).unwrap();
        assert_eq!(split(&c).prompts.prompt, ["one, two", "three"]);
    }

    #[test]
    fn a_configuration_file_may_be_called_like_the_subcommand() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("split");
        std::fs::write(&file, "repeats = 3").unwrap();
        let argv = ["disagg-bench", "--config", file.to_str().unwrap(), "split"];
        let variables = [("DISAGG_INSECURE", "1")];
        let c = resolve_in(folder.path(), &argv, &variables).unwrap();
        assert_eq!(split(&c).run.repeats, Repeats::Count(3));
        assert!(split(&c).link.token.insecure);
    }

    #[test]
    fn a_flag_beats_what_a_file_says_of_settings_it_excludes() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(TOML_FILE), "prompt_tokens = [64]").unwrap();
        let argv = ["disagg-bench", "split", "--prompt", "hello"];
        let c = resolve_in(folder.path(), &argv, &[]).unwrap();
        assert_eq!(split(&c).prompts.prompt, ["hello"]);
        assert!(split(&c).prompts.prompt_tokens.is_empty());
    }

    #[test]
    fn nothing_connects_to_an_address_nobody_gave() {
        let folder = tempfile::tempdir().unwrap();
        let c = resolve_in(folder.path(), &["disagg-bench", "split"], &[]).unwrap();
        assert_eq!(split(&c).peer, None);
        let refused = resolve_in(folder.path(), &["disagg-bench", "run-prefill"], &[]);
        assert!(matches!(refused, Err(Unusable::Usage(_))));
    }

    #[test]
    fn bad_files_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(TOML_FILE);
        for (text, part) in [
            ("repets = 1", "repets"),
            ("repeats = {}", "table"),
            ("=", "TOML"),
        ] {
            std::fs::write(&path, text).unwrap();
            match resolve_in(folder.path(), &["disagg-bench", "split"], &[]) {
                Err(Unusable::File(error)) => {
                    assert!(
                        error.to_string().contains(part) || part == "TOML",
                        "{error}"
                    );
                    assert!(error.to_string().contains(TOML_FILE));
                }
                other => panic!("{text}: {other:?}"),
            }
        }
        std::fs::write(&path, "repeats = \"many\"").unwrap();
        let usage = resolve_in(folder.path(), &["disagg-bench", "split"], &[]);
        assert!(matches!(usage, Err(Unusable::Usage(_))));
        let named = ["disagg-bench", "split", "--config", "/nonexistent/x.toml"];
        assert!(matches!(
            resolve_in(folder.path(), &named, &[]),
            Err(Unusable::File(ConfigError::Read { .. }))
        ));
    }
}

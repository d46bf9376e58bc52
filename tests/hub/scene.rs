//! A hub on loopback beside a machine with an empty cache, where the program runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::server::{Hub, REPOSITORY, tag};
use super::tiny_model::{Ended, Workplace};

pub const CONFIG: &[u8] = br#"{"architectures":["LlamaForCausalLM"]}"#;
pub const TOKENIZER: &[u8] = br#"{"version":"1.0"}"#;

/// A safetensors file of one tensor.
pub fn weights(elements: usize, fill: u8) -> Vec<u8> {
    let bytes = elements * 4;
    let header =
        format!(r#"{{"a":{{"dtype":"F32","shape":[{elements}],"data_offsets":[0,{bytes}]}}}}"#);
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.bytes());
    file.resize(file.len() + bytes, fill);
    file
}

/// A hub, and a machine with an empty cache.
pub struct Scene {
    pub hub: Hub,
    pub place: Workplace,
}

impl Scene {
    pub fn new(files: &[(&str, &[u8])]) -> Self {
        Self {
            hub: Hub::serving(files),
            place: Workplace::new(),
        }
    }

    /// One file of weights, and what nobody needs.
    pub fn usual() -> Self {
        Self::new(&[
            ("config.json", CONFIG),
            ("tokenizer.json", TOKENIZER),
            ("tokenizer_config.json", b"{}"),
            ("model.safetensors", &weights(100_000, 7)),
            ("pytorch_model.bin", b"pickle"),
            ("README.md", b"words"),
        ])
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.place.command(arguments);
        command
            .env_remove("HF_HUB_OFFLINE")
            .env("HF_ENDPOINT", &self.hub.endpoint);
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Ended {
        Ended::of(self.command(arguments))
    }

    pub fn fetch(&self) -> Ended {
        self.run(&["models", "fetch", REPOSITORY])
    }

    pub fn repository(&self) -> PathBuf {
        self.place.path("no-hub/hub/models--org--tiny")
    }

    pub fn snapshot(&self) -> PathBuf {
        self.repository().join("snapshots").join(self.hub.commit())
    }

    pub fn blob(&self, tag: &str) -> PathBuf {
        self.repository().join("blobs").join(tag)
    }

    /// As another tool leaves a model in the cache.
    pub fn is_cached_by_others(&self, files: &[(&str, &[u8])]) {
        let commit = self.hub.commit();
        for (name, content) in files {
            let tag = tag(name, content);
            fs::create_dir_all(self.snapshot()).unwrap();
            fs::create_dir_all(self.blob("")).unwrap();
            fs::write(self.blob(&tag), content).unwrap();
            let link = self.snapshot().join(name);
            std::os::unix::fs::symlink(format!("../../blobs/{tag}"), link).unwrap();
        }
        let refs = self.repository().join("refs");
        fs::create_dir_all(&refs).unwrap();
        fs::write(refs.join("main"), commit).unwrap();
    }
}

/// Names in a folder, in order.
pub fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort_unstable();
    names
}

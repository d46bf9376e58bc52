//! What a hub's cache holds, under the names that `--model` takes.

use std::path::Path;

use super::super::folder;
use super::super::names::is_gguf;
use super::super::{Format, Held};
use super::cache::CachedRepository;

/// Folders of a snapshot that are looked into for GGUF files.
const MAX_DEPTH: usize = 2;

/// Most files of a snapshot that are looked at.
const MAX_FILES: usize = 10_000;

/// Every commit of every model that has safetensors or GGUF files in the cache.
pub(in crate::model::source) fn held(cache: &Path) -> Vec<Held> {
    let all = CachedRepository::all(cache);
    all.iter()
        .flat_map(|(name, cached)| of_repository(name, cached))
        .collect()
}

fn of_repository(repository: &str, cached: &CachedRepository) -> Vec<Held> {
    let revisions = cached.revisions();
    let mut held = Vec::new();
    for commit in cached.commits() {
        let named = || {
            revisions
                .iter()
                .filter(|(_, of)| *of == commit)
                .map(|(name, _)| name)
        };
        let name = match named().find(|name| *name == super::HubName::DEFAULT_REVISION) {
            Some(_) => repository.to_owned(),
            None => format!("{repository}@{}", named().next().unwrap_or(&commit)),
        };
        let snapshot = cached.snapshot(&commit);
        let mut files = Vec::new();
        collect(&snapshot, "", 0, &mut files);
        let gguf_files = files.iter().filter(|(file, _)| is_gguf(file));
        held.extend(gguf_files.map(|(file, bytes)| Held {
            name: format!("{name}:{file}"),
            format: Format::Gguf,
            bytes: *bytes,
            lacks: None,
            path: snapshot.join(file),
        }));
        if files.iter().any(|(file, _)| file.ends_with(".safetensors")) {
            held.push(Held {
                name,
                format: Format::Safetensors,
                bytes: (files.iter())
                    .filter(|(file, _)| !file.contains('/') && !is_gguf(file))
                    .map(|(_, bytes)| bytes)
                    .sum(),
                lacks: folder::files(&snapshot).err().map(|why| why.to_string()),
                path: snapshot,
            });
        }
    }
    held.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    held
}

/// Files that are there with their sizes, by their paths in the snapshot.
fn collect(folder: &Path, prefix: &str, depth: usize, files: &mut Vec<(String, u64)>) {
    for entry in folder.read_dir().into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let path = entry.path();
        let Ok(metadata) = path.metadata() else {
            continue;
        };
        if metadata.is_dir() && depth < MAX_DEPTH {
            collect(&path, &format!("{prefix}{name}/"), depth + 1, files);
        } else if metadata.is_file() && files.len() < MAX_FILES {
            files.push((format!("{prefix}{name}"), metadata.len()));
        }
    }
}
